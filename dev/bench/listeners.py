"""A process with many event streams: `python -m dev.bench.listeners API_URL COUNT`.

A line of input ends a measurement. Answers with the milliseconds from each change's commit in MongoDB to its arrival at
the last listener, for the changes that all listeners received since the last line.
"""

import asyncio
import re
import sys
import time
from datetime import datetime
from urllib.parse import urlsplit

from dev.bench.helper import lines, say
from dev.sample_stock import authorization

AT_ONCE = 50  # connections that are opened together
EVENT_ID = re.compile(rb"^id: (\S+)$", re.MULTILINE)
UPDATED_AT = re.compile(rb'"updated_at":"([^"]+)"')


class Listener(asyncio.Protocol):
    """One connection. `seen` is shared by all: when each change was committed, when last received, how often."""

    def __init__(self, request: bytes, seen: dict[bytes, list[float]]) -> None:
        self._request, self._seen, self._unread = request, seen, b""
        self.is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        *events, self._unread = (self._unread + data.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            if event.startswith(b"HTTP/1.1 "):
                if b" 200 " in event.split(b"\n")[0] and not self.is_open.done():
                    self.is_open.set_result(None)
            elif found := EVENT_ID.search(event):
                if (known := self._seen.get(found[1])) is None:
                    updated = UPDATED_AT.search(event)
                    committed = datetime.fromisoformat(updated[1].decode()).timestamp() if updated else now
                    known = self._seen[found[1]] = [committed, now, 0]
                known[1], known[2] = now, known[2] + 1

    def connection_lost(self, error: Exception | None) -> None:
        if not self.is_open.done():
            self.is_open.set_exception(ConnectionError("no event stream"))


async def main(url: str, count: int) -> None:
    parts = urlsplit(url)
    headers = {"Host": parts.netloc, "Accept": "text/event-stream", **authorization()}
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"GET /orders/events HTTP/1.1\r\n{fields}\r\n".encode()
    seen: dict[bytes, list[float]] = {}
    loop = asyncio.get_running_loop()
    host, port = parts.hostname or "", parts.port or 80
    for first in range(0, count, AT_ONCE):
        connecting = (
            loop.create_connection(lambda: Listener(request, seen), host, port)
            for _ in range(first, min(first + AT_ONCE, count))
        )
        await asyncio.gather(*(listener.is_open for _, listener in await asyncio.gather(*connecting)))
    begin = time.time()
    async for _ in lines():
        # What was committed earlier belongs to the state that a new listener gets first.
        changes = [change for change in seen.values() if change[0] >= begin]
        say([1_000 * (last - committed) for committed, last, times in changes if times == count])
        seen.clear()
        begin = time.time()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
