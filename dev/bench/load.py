"""The load: a cheap HTTP client, and callers that send one request after the other.

A request costs this client less than a millisecond of CPU: it shares the machine with the servers that it measures.
`Http` and `callers` know nothing of this program: any service can be put under the same load.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """The response to a request; `seconds` is the time from the first byte sent to the last one received."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """A client of one HTTP/1.1 server, with as many connections as there are requests at a time."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._headers = {"Host": parts.netloc, **(headers or {})}
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, and read its response.

        Raises:
            ConnectionError: the server closed the connection, or refused it.
        """
        begin = time.perf_counter()
        stream = reader, writer = await self._connection()
        try:
            writer.write(self._head(method, path, len(body), headers) + body)
            status, answer_headers = await read_head(reader)
            content = await reader.readexactly(int(answer_headers.get("content-length", 0)))
        except BaseException as error:
            writer.close()
            if isinstance(error, asyncio.IncompleteReadError):
                raise ConnectionError("connection closed before the response") from error
            raise
        if answer_headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append(stream)
        return Answer(status, answer_headers, content, time.perf_counter() - begin)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the server has not closed it meanwhile
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    async def stream(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open an endless response, such as server-sent events, and return it after its head.

        Raises:
            ConnectionError: the status is not 200.
        """
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(self._head("GET", path, 0, {"Accept": "text/event-stream"}))
        status, _ = await read_head(reader)
        if status != 200:
            writer.close()
            raise ConnectionError(f"GET {path}: {status}")
        return reader, writer

    def _head(self, method: str, path: str, length: int, headers: Mapping[str, str] | None) -> bytes:
        fields = {**self._headers, **(headers or {})}
        if length:
            fields |= {"Content-Type": "application/json", "Content-Length": str(length)}
        elif method != "GET":
            fields["Content-Length"] = "0"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in head[1:] if line)
    return int(head[0].split()[1]), {name.lower(): value.strip() for name, _, value in fields}


@dataclass(frozen=True)
class Load:
    """The result of a load."""

    times: list[float]  # seconds of each call
    seconds: float  # of all of them

    @property
    def rate(self) -> float:
        """Calls per second."""
        return len(self.times) / self.seconds

    def percentile(self, percent: float) -> float:
        return percentile(self.times, percent)


def percentile(numbers: list[float], percent: float) -> float:
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def callers(
    call: Callable[[], Awaitable[object]],
    *,
    in_flight: int,
    count: int,
    timeout: float = 300,
    on_done: Callable[[], object] = lambda: None,
) -> Load:
    """Call `count` times, by `in_flight` callers that each wait for the end of one call before the next.

    Raises:
        TimeoutError: not all calls ended within `timeout` seconds.
    """
    times: list[float] = []
    numbers = iter(range(count))

    async def caller() -> None:
        for _ in numbers:
            begin = time.perf_counter()
            await call()
            times.append(time.perf_counter() - begin)
            on_done()

    begin = time.perf_counter()
    async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    return Load(times, time.perf_counter() - begin)


async def callers_for(call: Callable[[], Awaitable[object]], *, in_flight: int, seconds: float) -> Load:
    """The same for a time instead of a number of calls; those in flight at its end are waited for."""
    times: list[float] = []
    begin = time.perf_counter()

    async def caller() -> None:
        while (started := time.perf_counter()) < begin + seconds:
            with suppress(ConnectionError):
                await call()
                times.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return Load(times, time.perf_counter() - begin)
