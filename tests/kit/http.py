"""Serve the API over real HTTP in this process, and send requests to it."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Self
from unittest.mock import patch

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import model_validator

from app.api import admission, orders, route
from app.api.auth import Caller
from app.api.main import create_app
from app.settings import ApiSettings, Scope
from dev.servers import free_port

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # by default, each client reads all certificates of the system


@contextmanager
def long_deadlines() -> Iterator[None]:
    """Extend the API's deadlines, so that a slow server on a busy machine does not cause a 503."""
    with (
        patch.object(orders, "START_TIMEOUT", 5.0),
        patch.object(route, "DEADLINE", 9.0),
        patch.object(admission, "MAX_WAIT", 9.0),
    ):
        yield


class InProcessServer(uvicorn.Server):
    """Stops at once. Uvicorn's own looks ten times a second whether to stop, then waits a tenth for its connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for _ in range(100):  # until the connections that the client has closed are gone
            if not (self.server_state.connections or self.server_state.tasks):
                await self.lifespan.shutdown()
                return
            await asyncio.sleep(0.001)
        await super().shutdown(sockets)


@asynccontextmanager
async def serve(
    settings: ApiSettings, temporal_address: str, *, patient: bool = True
) -> AsyncIterator[httpx.AsyncClient]:
    """The API over real HTTP, in this process; not `patient` where a server is away."""
    app = create_app_for(settings, temporal_address)
    port = free_port()
    server = InProcessServer(
        # A client that reuses a connection just when the server closes it, idle, would see an error.
        uvicorn.Config(
            app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=60
        )
    )
    running = asyncio.create_task(server.serve())
    while not server.started:
        assert not running.done(), "the API did not start"
        await asyncio.sleep(0.01)
    try:
        with long_deadlines() if patient else nullcontext():
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, verify=NO_TLS) as http:
                yield http
    finally:
        server.stop()
        await running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def raw(http: httpx.AsyncClient, request: bytes) -> tuple[int, bytes]:
    """Send raw bytes, such as a request that an HTTP client refuses to send. Returns status and body."""
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1])) if length else b""
        return int(head.split()[1]), body
    finally:
        writer.close()


def kind_of(answer: httpx.Response) -> str:
    """The problem type of an error, without its prefix."""
    return str(answer.json()["type"]).removeprefix("urn:problem:")


def key_of(caller: str) -> str:
    return f"8c1e0b7d4a63-of-{caller}-5f2a9d0b37c1"


class ClosedSettings(ApiSettings):
    """Of an API that has these callers instead of API keys and tokens: see `create_app_for`."""

    callers: dict[str, Caller]

    async def identify(self, credentials: str) -> Caller | None:
        return {key_of(name): caller for name, caller in self.callers.items()}.get(credentials)

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        return self


def closed(settings: ApiSettings, *callers: str, **limited: Caller) -> ClosedSettings:
    """The settings of an API that is not open. Each of `callers` has every scope; `limited` has those of its key."""
    everything = {caller: limited_to(caller, *Scope) for caller in callers}
    given = {**settings.model_dump(), "api_open": False, "callers": {**everything, **limited}}
    return ClosedSettings.model_validate(given)


def limited_to(caller: str, *scopes: Scope, customer: str | None = None) -> Caller:
    return Caller(caller, frozenset(scopes), customer)


def create_app_for(settings: ApiSettings, temporal_address: str) -> FastAPI:
    app = create_app(settings, target_host=temporal_address)
    if isinstance(settings, ClosedSettings):
        app.state.authenticators = [settings]
    return app


def assert_secure(answer: httpx.Response) -> None:
    """The response has the headers that browsers obey."""
    headers = answer.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
