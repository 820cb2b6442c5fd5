"""A client for server-sent events on a plain socket, cheap enough to run 500 of them in one process."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any, Self

import httpx

from tests.kit.http import key_of


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    data: dict[str, Any]


class Listener:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.comments = 0

    @classmethod
    async def connect(
        cls, api: httpx.AsyncClient, path: str, last_event_id: str = "", *, caller: str = "", slow: bool = False
    ) -> Self:
        """Connect to a stream. A `slow` listener has a tiny buffer and reads only when `next` is called."""
        sock = socket.socket()
        sock.setblocking(False)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(sock, (api.base_url.host, api.base_url.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096 if slow else 1 << 20)
        listener = cls(reader, writer)
        resume = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        key = f"Authorization: Bearer {key_of(caller)}\r\n" if caller else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{resume}{key}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *others = head.strip().split("\r\n")
        listener.status = int(first.split()[1])
        listener.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in others)}
        return listener

    async def next(self, *, within: float = 20) -> Event | None:
        """The next event, or None at the end of the stream. Skips the lines with chunk sizes."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(within):
            while line := await self._line():
                if line.startswith(b":"):
                    self.comments += 1
                elif line == b"\n" and fields:
                    return Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
                elif b": " in line:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    fields[name] = value
        self.disconnect()
        return None

    async def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):  # in pieces, because a line may be larger than the buffer
            piece = await self._reader.read(1)
            if not piece:
                return b""
            line += piece
            try:
                line += await self._reader.readuntil(b"\n") if piece != b"\n" else b""
            except asyncio.LimitOverrunError as error:
                line += await self._reader.read(error.consumed)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return b""
        return b"" if line == b"0\r\n" else line

    async def wait_for(self, order_id: str, status: str) -> Event:
        """Wait for the event that reports this status of an order."""
        while (event := await self.next()) is not None:
            if event.data.get("order_id") == order_id and event.data["status"] == status:
                return event
        raise AssertionError("the stream ended")

    def disconnect(self) -> None:
        """Close the connection without a goodbye, as a client that lost its network."""
        self._writer.transport.abort()
