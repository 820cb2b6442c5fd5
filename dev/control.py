"""The control endpoint of the dev stack: it stops, kills, freezes, resumes and starts the worker, Temporal and MongoDB.

    curl localhost:8009/servers
    curl localhost:8009/servers/worker -H 'Content-Type: application/json' -d '{"action": "freeze"}'

It belongs to the process of the stack, never to the API, and listens on 127.0.0.1 alone. Pages of other sites cannot
use it: it answers to loopback names only (DNS rebinding) and refuses every origin but the order desk's (CSRF).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dev.servers import HOST, ServerError

if TYPE_CHECKING:
    from dev.stack import Stack

LOOPBACK = (HOST, "localhost", "[::1]")
TITLES = {"worker": "Worker", "temporal": "Temporal", "mongod": "MongoDB"}
ACTIONS = {  # by the state of the server
    "running": ("stop", "kill", "freeze"),
    "frozen": ("resume", "kill"),
    "stopped": ("start",),
    "starting": ("kill",),
}
RETRY_DELAY = 1  # seconds before a worker is started again that has not found Temporal or MongoDB


class Control:
    """Acts on the servers of one stack, which then counts them as stopped on purpose; serves the endpoint."""

    def __init__(self, stack: Stack, port: int) -> None:
        self.url = f"http://{HOST}:{port}"
        self._stack = stack
        self._port = port
        self._names = [name for name in stack.names if name.rstrip("-0123456789") in TITLES]
        self._tasks: dict[str, asyncio.Task[None]] = {}  # the last start or stop of each server
        self._problems: dict[str, str] = {}  # why the last start failed
        self._server: _Server | None = None

    async def start(self) -> None:
        """Serve the endpoint. Raises ServerError if the port is in use."""
        try:
            listener = socket.create_server((HOST, self._port))
        except OSError as error:
            raise ServerError(f"port {self._port} cannot be used: {error.strerror}") from error
        config = uvicorn.Config(
            self._app(),
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=0,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]))

    async def close(self) -> None:
        """End the endpoint and what it has begun."""
        if self._server:  # first, so that nothing else begins
            self._server.should_exit = True
            with suppress(asyncio.CancelledError):
                await self._serving
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def state(self, name: str) -> str:
        if (task := self._tasks.get(name)) and not task.done():
            return task.get_name()
        server = self._stack.processes.get(name)
        if server is None:
            return "starting"
        if server.exited:
            return "stopped" if name in self._stack.stopped_on_purpose else "restarting"
        return "frozen" if server.paused else "running"

    def actions(self, name: str) -> tuple[str, ...]:
        """What can be done to a server in its state; nothing before its first start has ended."""
        return ACTIONS.get(self.state(name), ()) if name in self._stack.processes else ()

    def describe(self) -> dict[str, Any]:
        servers = []
        for name in self._names:
            kind, _, number = name.partition("-")
            title, state = f"{TITLES[kind]} {number}".strip(), self.state(name)
            problem = self._problems.get(name) if state == "stopped" else None
            known = {"name": name, "title": title, "state": state, "problem": problem}
            servers.append({**known, "actions": self.actions(name)})
        return {"api": self._stack.api_url, "servers": servers}

    def act(self, name: str, action: str) -> None:
        """Begin an action. Raises HTTPException if the server is unknown, or in a state that does not allow it."""
        if name not in self._names:
            raise HTTPException(404, f"no such server: {name}")
        if action not in self.actions(name):
            raise HTTPException(409, f"cannot {action} {name}: it is {self.state(name)}")
        if not self._stack.config.temporary:
            print(f"{name}: {action}, as the control endpoint was told", flush=True)
        match action:
            case "freeze":
                self._stack.processes[name].pause()
            case "resume":
                self._stack.processes[name].resume()
            case "start":
                self._tasks[name] = asyncio.create_task(self._start(name), name="starting")
            case _:
                stop = self._stop(name, action, self._tasks.get(name))
                self._tasks[name] = asyncio.create_task(stop, name="stopping")

    async def _stop(self, name: str, action: str, last: asyncio.Task[None] | None) -> None:
        if last:  # it may still start
            last.cancel()
            await asyncio.wait([last])
        self._stack.stopped_on_purpose.setdefault(name, asyncio.Event())
        server = self._stack.processes[name]
        await (server.kill() if action == "kill" else server.stop(timeout=15))

    async def _start(self, name: str) -> None:
        self._problems.pop(name, None)
        while True:
            try:
                await self._stack.start(name)
            except ServerError as error:
                # A worker waits for Temporal and MongoDB: it starts once they are back.
                if name in self._stack.servers or all(self.state(each) == "running" for each in self._stack.servers):
                    self._problems[name] = str(error)
                    return
                await asyncio.sleep(RETRY_DELAY)
            else:
                self._stack.stopped_on_purpose.pop(name).set()
                return

    def _app(self) -> ASGIApp:
        port = self._stack.config.api_port
        origins = [f"http://{host}:{port}" for host in LOOPBACK]
        hosts = [f"{host}:{self._port}" for host in LOOPBACK]

        async def servers(_: Request) -> JSONResponse:
            return JSONResponse(self.describe())

        async def act(request: Request) -> JSONResponse:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise HTTPException(415, "send the action as Content-Type: application/json")
            try:
                action = (await request.json())["action"]
            except (ValueError, TypeError, LookupError, RecursionError):
                action = None
            if not isinstance(action, str):
                raise HTTPException(422, 'send {"action": "stop"}, or kill, freeze, resume, start')
            self.act(request.path_params["name"], action)
            return JSONResponse(self.describe(), status_code=202)

        routes = [Route("/servers", servers), Route("/servers/{name}", act, methods=["POST"])]
        # The browser asks first (preflight) before a page of another origin may send JSON.
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["POST"], allow_headers=["Content-Type"])
        return Guard(Starlette(routes=routes, middleware=[cors]), hosts, origins)


class Guard:
    """Middleware: refuses other host names and other origins."""

    def __init__(self, app: ASGIApp, hosts: list[str], origins: list[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value.decode("latin-1").lower()) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        app = self._app
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            app = PlainTextResponse("this host name is refused: use localhost", 421)
        elif any(origin not in self._origins for origin in origins):
            app = PlainTextResponse("this origin is refused: only the order desk may use this endpoint", 403)
        await app(scope, receive, send)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the stack."""
        yield
