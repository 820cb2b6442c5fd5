"""The complete stack: Temporal, MongoDB, worker and API. `make dev` runs it in the foreground.

async with Stack(Config.on_free_ports(folder)) as stack:
    httpx.get(f"{stack.api_url}/orders")
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx

from dev.control import Control
from dev.failed_tasks import report_failed_tasks
from dev.sample_stock import load_sample_stock
from dev.servers import HOST, Server, ServerError, check_port, free_port, start_mongod, start_temporal
from dev.sources import SourceWatcher

ROOT = Path(__file__).parent.parent
# Delays in seconds before a worker or API that exited is restarted. The delay doubles with each restart, and is reset
# once the process has run for longer than MAX_RESTART_DELAY.
INITIAL_RESTART_DELAY = 1
MAX_RESTART_DELAY = 30
UVICORN = ("-m", "uvicorn", "--host", HOST, "--no-access-log", "--timeout-graceful-shutdown", "2")
# For the API alone. Without the first three, `make dev` starts an open API, which listens on 127.0.0.1 only.
AUTHENTICATION = ("API_KEYS", "OIDC_ISSUER", "API_OPEN", "OIDC_AUDIENCE")


@dataclass(frozen=True)
class Config:
    """Ports, addresses and folders. A server with an address is already running, so the stack does not start it."""

    dev_dir: Path = ROOT / ".dev"
    api_port: int = 8000
    temporal_port: int = 7233
    temporal_ui_port: int | None = 8233
    mongodb_port: int = 27017
    control_port: int = 8009
    temporal_address: str = ""
    mongodb_uri: str = ""
    workers: int = 1
    temporary: bool = False  # nothing of it is kept: its servers are killed at the end, which takes no time
    settings: Mapping[str, str] = field(default_factory=dict)  # additional environment variables for worker and API

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment variables of `make dev`. Raises ServerError if a port is in use or invalid."""
        config = cls(
            dev_dir=Path(os.environ.get("DEV_DIR") or cls.dev_dir).absolute(),
            api_port=port_from("API_PORT", cls.api_port),
            temporal_port=port_from("TEMPORAL_PORT", cls.temporal_port),
            temporal_ui_port=port_from("TEMPORAL_UI_PORT", 8233),
            mongodb_port=port_from("MONGODB_PORT", cls.mongodb_port),
            control_port=port_from("DEV_CONTROL_PORT", cls.control_port),
            temporal_address=os.environ.get("TEMPORAL_ADDRESS", ""),
            mongodb_uri=os.environ.get("MONGODB_URI", ""),
        )
        ports = {"API_PORT": config.api_port, "DEV_CONTROL_PORT": config.control_port}
        if not config.temporal_address:
            ports["TEMPORAL_PORT"] = config.temporal_port
            ports["TEMPORAL_UI_PORT"] = port_from("TEMPORAL_UI_PORT", 8233)
        if not config.mongodb_uri:
            ports["MONGODB_PORT"] = config.mongodb_port
        variables: dict[int, str] = {}
        for variable, port in ports.items():
            check_port(port, variable)
            if (other := variables.setdefault(port, variable)) != variable:
                raise ServerError(f"{other} and {variable} are both {port}: change one of them")
        return config

    @classmethod
    def on_free_ports(
        cls, dev_dir: Path, settings: Mapping[str, str] | None = None, *, mongodb_uri: str = "", workers: int = 1
    ) -> Self:
        """A temporary stack on ports of its own, without the Web UI, that can run beside others."""
        return cls(
            dev_dir=dev_dir,
            api_port=free_port(),
            temporal_port=free_port(),
            temporal_ui_port=None,
            mongodb_port=free_port(),
            control_port=free_port(),
            mongodb_uri=mongodb_uri,
            workers=workers,
            temporary=True,
            settings=settings or {},
        )


def port_from(variable: str, default: int) -> int:
    """The port that an environment variable sets. Raises ServerError if it is no port."""
    text = os.environ.get(variable) or str(default)
    if text.isdecimal() and 0 < int(text) < 65_536:
        return int(text)
    raise ServerError(f"{variable} must be a port from 1 to 65535, not {text!r}")


class Stack:
    """The running processes. Use it with `async with`, which raises ServerError if a process does not start."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.processes: dict[str, Server] = {}
        self.workers = ["worker", *(f"worker-{number}" for number in range(2, config.workers + 1))]
        self.apps = ["api", *self.workers]
        external = {"temporal": config.temporal_address, "mongod": config.mongodb_uri}
        self.servers = [name for name, address in external.items() if not address]
        # Popped, so that the other processes do not inherit them.
        given = {name: os.environ.pop(name, "") for name in AUTHENTICATION} | {**config.settings}
        self.authentication = {name: given[name] for name in AUTHENTICATION if given[name]}
        self.token = ""
        if not self.authentication:
            self.authentication = {"API_OPEN": "true"}
        self._use_own_issuer()
        self.names = [*self.apps, *self.servers]  # in the sequence of stopping: dependents first
        # Servers that the control endpoint has stopped; the event is set when it has started them again.
        self.stopped_on_purpose: dict[str, asyncio.Event] = {}
        self.control = Control(self, config.control_port)
        self.sources: dict[str, Path] = {}  # of a process that runs other sources than these: its folder
        self._watcher = SourceWatcher(ROOT)
        self.api_url = f"http://{HOST}:{config.api_port}"
        self.temporal_address = config.temporal_address or f"{HOST}:{config.temporal_port}"
        self.mongodb_uri = config.mongodb_uri or f"mongodb://{HOST}:{config.mongodb_port}/?replicaSet=rs0"
        self.temporal_ui_url = ""
        if config.temporal_ui_port and not config.temporal_address:
            self.temporal_ui_url = f"http://{HOST}:{config.temporal_ui_port}"
        self.logs = config.dev_dir / "logs"
        self.temporal_data = config.dev_dir / "temporal.db"

    async def __aenter__(self) -> Self:
        try:
            for old in self.logs.glob("*.log"):
                old.unlink()
            # Concurrently: worker and API load their code while the servers start, and then wait for them.
            async with asyncio.TaskGroup() as group:
                group.create_task(self.control.start())
                for name in self.names:
                    group.create_task(self.start(name))
            await asyncio.to_thread(load_sample_stock, self.api_url, self.token)
        except BaseException as error:
            await self.stop()
            if isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            if isinstance(error, OSError) and str(error.filename).startswith(str(self.config.dev_dir)):
                raise ServerError(
                    f"cannot use {error.filename}: {error.strerror}. Set DEV_DIR to another folder"
                ) from None
            raise error from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, name: str) -> Server:
        """Start one of `names`, or restart it after it was stopped, and wait until it is ready."""
        config = self.config
        match name:
            case "mongod":
                start = start_mongod(config.dev_dir / "mongodb", config.mongodb_port, log_dir=self.logs)
            case "temporal":
                start = start_temporal(
                    config.temporal_port, ui_port=config.temporal_ui_port, db_file=self.temporal_data, log_dir=self.logs
                )
            case "issuer":
                start = self._start_issuer()
            case "api":
                start = self._start_api()
            case _:
                start = self._start_worker(name)
        self.processes[name] = await start
        return self.processes[name]

    async def _start_worker(self, name: str) -> Server:
        server = await self._python(name, "-m", "dev.worker")

        async def ready() -> bool:
            return "worker ready" in server.log_text()

        return await server.wait_until(ready, timeout=45)  # longer than a server, whose error then comes first

    def _use_own_issuer(self) -> None:
        """If the API is closed, but has no keys: accept tokens of an issuer on this machine."""
        if self.authentication == {"API_OPEN": "false"}:
            from dev import issuer  # noqa: PLC0415 - takes as long to import as all of this module

            self.servers.append("issuer")
            self.authentication |= {"OIDC_ISSUER": issuer.url(), "OIDC_AUDIENCE": issuer.AUDIENCE}
            self.token = issuer.make_token("make-dev")  # for the sample products

    async def _start_issuer(self) -> Server:
        url = self.authentication["OIDC_ISSUER"]
        port = url.rpartition(":")[2]
        server = await self._python("issuer", *UVICORN, "--factory", "dev.issuer:create_app", "--port", port)
        return await _until_it_answers(server, f"{url}/keys", timeout=30)

    async def _start_api(self) -> Server:
        port = str(self.config.api_port)
        environment = {**self.authentication, "DEV_CONTROL_URL": self.control.url}
        server = await self._python("api", *UVICORN, "dev.desk:app", "--port", port, **environment)
        # Longer than the worker, whose error is more specific.
        return await _until_it_answers(server, f"{self.api_url}/readyz", timeout=60)

    async def _python(self, name: str, *arguments: str, **environment: str) -> Server:
        return await Server.start(
            name,
            [sys.executable, *arguments],
            address=self.api_url if name == "api" else "",
            log=self.logs / f"{name}.log",
            cwd=self.sources.get(name, ROOT),
            env={
                "MONGODB_URI": self.mongodb_uri,
                "TEMPORAL_ADDRESS": self.temporal_address,
                "API_PORT": str(self.config.api_port),
                "ORDER_DESK_URL": self.api_url,
                **({"TEMPORAL_UI_URL": self.temporal_ui_url} if self.temporal_ui_url else {}),
                **self.config.settings,
                **environment,
            },
        )

    async def watch(self) -> NoReturn:
        """Keep worker and API running on the current code. Raises ServerError if Temporal or mongod exits."""
        async with asyncio.TaskGroup() as group:
            for name in self.servers:
                group.create_task(self._raise_on_exit(name))
            for name in self.workers:
                group.create_task(report_failed_tasks(self.logs / f"{name}.log", self.temporal_address))
            keep_running = [group.create_task(self._keep_running(name)) for name in self.apps]
            while True:
                changed = await self._watcher.wait_for_edit()
                for task in keep_running:
                    task.cancel()
                await asyncio.wait(keep_running)
                print(f"{', '.join(changed)} changed: restarting worker and API", flush=True)
                keep_running = [group.create_task(self._keep_running(name, restart=True)) for name in self.apps]

    async def _raise_on_exit(self, name: str) -> NoReturn:
        while True:
            server = self.processes[name]
            await server.wait()
            if name not in self.stopped_on_purpose:
                raise ServerError(server.exit_reason())
            await self.stopped_on_purpose[name].wait()

    async def _keep_running(self, name: str, *, restart: bool = False) -> NoReturn:
        """Start the process again whenever it exits, unless on purpose. With `restart`, stop it first."""
        # Restart the process: a worker that reloads single modules would mix old and new code.
        if restart:
            if self.control.state(name) == "starting":  # it may have loaded the old code
                await self.stopped_on_purpose[name].wait()
            await self._stop(name)
        delay = INITIAL_RESTART_DELAY
        while True:
            try:
                if name in self.stopped_on_purpose:
                    await self.stopped_on_purpose[name].wait()
                if self.processes[name].exited:
                    await self.start(name)
                    print(f"{name} restarted", flush=True)
                started_at = time.monotonic()
                await self.processes[name].wait()
                if name in self.stopped_on_purpose:
                    continue
                if time.monotonic() - started_at > MAX_RESTART_DELAY:
                    delay = INITIAL_RESTART_DELAY
                reason = self.processes[name].exit_reason()
            except ServerError as error:
                reason = str(error)
            print(f"{reason}; restarting in {delay} s", flush=True)
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RESTART_DELAY)

    async def stop(self) -> None:
        """Stop the running processes, dependents first."""
        await self.control.close()
        if self.config.temporary:
            await asyncio.gather(*(server.kill() for server in self.processes.values()))
            return
        for server in self.processes.values():  # those that depend on it wait for its answers
            server.resume()
        for name in self.names:
            if name in self.processes:
                await self._stop(name)

    async def _stop(self, name: str) -> None:
        # The worker waits up to 10 s for running activities, but could not report their ends without its servers.
        alone = any(self.processes[server].exited for server in self.servers if server in self.processes)
        await self.processes[name].stop(timeout=3 if alone and name in self.apps else 15)


async def _until_it_answers(server: Server, url: str, timeout: float) -> Server:
    async with httpx.AsyncClient() as http:

        async def ready() -> bool:
            try:
                return (await http.get(url)).is_success
            except httpx.TransportError:
                return False

        return await server.wait_until(ready, timeout=timeout)


def run(main: Coroutine[Any, Any, int], *, stopped: int | None = None) -> NoReturn:
    """Run a command of this folder and exit with its code, or with 1 and one line on an error.

    Ctrl-C, SIGTERM and SIGHUP cancel it, and it exits with `stopped`, or else as a shell reports the signal: 130 for
    Ctrl-C.
    """
    received: list[int] = []

    async def run_until_signalled() -> int:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if not received:  # ignore further signals while stopping
                task.cancel()
            received.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        return await task

    try:
        code = asyncio.run(run_until_signalled())
    except BaseException as error:
        if not received:  # else its servers have been ended, too
            error = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            if isinstance(error, ServerError | httpx.HTTPError | TimeoutError):
                sys.exit(_error_line(error))
            raise error from None
    if received:
        # At once: threads of a driver may still wait for servers that have ended.
        sys.stdout.flush()
        os._exit(128 + received[0] if stopped is None else stopped)
    sys.exit(code)


def _error_line(error: BaseException) -> str:
    if isinstance(error, ServerError):
        return f"error: {error}"
    return f"error: request to the API failed: {type(error).__name__} {error}"


async def serve() -> int:
    begin = time.monotonic()
    config = Config.from_environment()
    print("starting Temporal, MongoDB, worker and API ...", flush=True)
    async with Stack(config) as stack:
        addresses = {
            "Order desk": stack.api_url,
            "API docs": f"{stack.api_url}/docs",
            "Temporal UI": stack.temporal_ui_url or "(external)",
            "Temporal": stack.temporal_address,
            "MongoDB": re.sub(r"//[^/@]*@", "//", stack.mongodb_uri),  # never print a password
            "Logs": str(stack.logs),
        }
        print(f"ready after {time.monotonic() - begin:.1f} s. Ctrl-C stops everything.\n")
        for name, address in addresses.items():
            print(f"  {name:<12} {address}")
        print(flush=True)
        try:
            await stack.watch()
        finally:
            print("stopping ...", flush=True)


if __name__ == "__main__":
    run(serve(), stopped=0)
