"""The whole thing in one place: Temporal, MongoDB, the worker and the API. `make dev` runs it in the foreground.

async with Stack(Config.on_free_ports(folder)) as stack:
    httpx.get(f"{stack.api_url}/orders")
"""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx

from dev.failed_tasks import report_failed_tasks
from dev.sample_stock import load_sample_stock
from dev.servers import HOST, Server, ServerError, check_port, free_port, start_mongod, start_temporal
from dev.sources import Sources

ROOT = Path(__file__).parent.parent
# Seconds before a worker or API that has ended is started again: doubled each time, until it has run for the longest.
FIRST_PAUSE = 1
LONGEST_PAUSE = 30


@dataclass(frozen=True)
class Config:
    """Where everything runs. A server whose address is given runs already, and is not started."""

    dev_dir: Path = ROOT / ".dev"
    api_port: int = 8000
    temporal_port: int = 7233
    temporal_ui_port: int | None = 8233
    mongodb_port: int = 27017
    temporal_address: str = ""
    mongodb_uri: str = ""
    workers: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)  # more environment for worker and API

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables of `make dev`. Raises ServerError when a port is taken or is no number."""
        config = cls(
            dev_dir=Path(os.environ.get("DEV_DIR") or cls.dev_dir).absolute(),
            api_port=_port("API_PORT", cls.api_port),
            temporal_port=_port("TEMPORAL_PORT", cls.temporal_port),
            temporal_ui_port=_port("TEMPORAL_UI_PORT", 8233),
            mongodb_port=_port("MONGODB_PORT", cls.mongodb_port),
            temporal_address=os.environ.get("TEMPORAL_ADDRESS", ""),
            mongodb_uri=os.environ.get("MONGODB_URI", ""),
        )
        ports = {"API_PORT": config.api_port}
        if not config.temporal_address:
            ports["TEMPORAL_PORT"] = config.temporal_port
            ports["TEMPORAL_UI_PORT"] = _port("TEMPORAL_UI_PORT", 8233)
        if not config.mongodb_uri:
            ports["MONGODB_PORT"] = config.mongodb_port
        variables: dict[int, str] = {}
        for variable, port in ports.items():
            check_port(port, variable)
            if (other := variables.setdefault(port, variable)) != variable:
                raise ServerError(f"{other} and {variable} are both {port}: choose another for one of them")
        return config

    @classmethod
    def on_free_ports(
        cls, dev_dir: Path, settings: Mapping[str, str] | None = None, *, mongodb_uri: str = "", workers: int = 1
    ) -> Self:
        """A stack beside all others, without the Web UI."""
        return cls(
            dev_dir=dev_dir,
            api_port=free_port(),
            temporal_port=free_port(),
            temporal_ui_port=None,
            mongodb_port=free_port(),
            mongodb_uri=mongodb_uri,
            workers=workers,
            settings=settings or {},
        )


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if text.isdecimal() and 0 < int(text) < 65_536:
        return int(text)
    raise ServerError(f"{variable} must be a port, from 1 to 65535, not {text!r}")


class Stack:
    """The running processes. Use it with `async with`; raises ServerError when one of them does not start."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.processes: dict[str, Server] = {}
        self.workers = ["worker", *(f"worker-{number}" for number in range(2, config.workers + 1))]
        self.apps = ["api", *self.workers]
        given = {"temporal": config.temporal_address, "mongod": config.mongodb_uri}
        self.servers = [name for name, address in given.items() if not address]
        self.names = [*self.apps, *self.servers]  # as they are stopped: first what depends on the others
        self._sources = Sources(ROOT)
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
            # All at once: worker and API load their code while the servers start, and wait for them if need be.
            async with asyncio.TaskGroup() as group:
                for name in self.names:
                    group.create_task(self.start(name))
            await asyncio.to_thread(load_sample_stock, self.api_url)
        except BaseException as error:
            await self.stop()
            if isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            if isinstance(error, OSError) and str(error.filename).startswith(str(self.config.dev_dir)):
                raise ServerError(
                    f"{error.filename} cannot be used: {error.strerror}. DEV_DIR names another folder"
                ) from None
            raise error from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, name: str) -> Server:
        """Start one of `names`, also again after it was stopped, and wait until it is ready."""
        config = self.config
        match name:
            case "mongod":
                start = start_mongod(config.dev_dir / "mongodb", config.mongodb_port, log_dir=self.logs)
            case "temporal":
                start = start_temporal(
                    config.temporal_port, ui_port=config.temporal_ui_port, db_file=self.temporal_data, log_dir=self.logs
                )
            case "api":
                start = self._start_api()
            case _:
                start = self._start_worker(name)
        self.processes[name] = await start
        return self.processes[name]

    async def _start_worker(self, name: str) -> Server:
        server = await self._python(name, "worker.py")

        async def ready() -> bool:
            return "worker ready" in server.log_text()

        return await server.until(ready, timeout=45)  # longer than a server takes: that is then the cause

    async def _start_api(self) -> Server:
        port = str(self.config.api_port)
        server = await self._python(
            "api", "-m", "uvicorn", "app.api.main:app", "--host", HOST, "--port", port,
            "--no-access-log", "--timeout-graceful-shutdown", "2",
        )  # fmt: skip

        async with httpx.AsyncClient(base_url=self.api_url) as http:

            async def ready() -> bool:
                try:
                    return (await http.get("/readyz")).is_success
                except httpx.TransportError:
                    return False

            return await server.until(ready, timeout=60)  # longer than the worker, which says what it waits for

    async def _python(self, name: str, *arguments: str) -> Server:
        return await Server.start(
            name,
            [sys.executable, *arguments],
            address=self.api_url if name == "api" else "",
            log=self.logs / f"{name}.log",
            cwd=ROOT,
            env={
                "MONGODB_URI": self.mongodb_uri,
                "TEMPORAL_ADDRESS": self.temporal_address,
                "API_PORT": str(self.config.api_port),
                **({"TEMPORAL_UI_URL": self.temporal_ui_url} if self.temporal_ui_url else {}),
                **self.config.settings,
            },
        )

    async def watch(self) -> NoReturn:
        """Keep worker and API running, on the newest code. Raises ServerError when another server ends."""
        async with asyncio.TaskGroup() as group:
            for name in self.servers:
                group.create_task(self._raise_when_ended(name))
            for name in self.workers:
                group.create_task(report_failed_tasks(self.logs / f"{name}.log", self.temporal_address))
            keeping = [group.create_task(self._keep_running(name)) for name in self.apps]
            while True:
                edited = await self._sources.edited()
                for task in keeping:
                    task.cancel()
                await asyncio.wait(keeping)
                print(f"{', '.join(edited)} edited: restarting worker and API", flush=True)
                keeping = [group.create_task(self._keep_running(name, restart=True)) for name in self.apps]

    async def _raise_when_ended(self, name: str) -> NoReturn:
        await self.processes[name].wait()
        raise ServerError(self.processes[name].exit_reason())

    async def _keep_running(self, name: str, *, restart: bool = False) -> NoReturn:
        """Start it again whenever it ends; first of all, if it is to be restarted."""
        # The process, not modules in it: a worker that imports an edited file anew mixes it with the old ones.
        if restart:
            await self._stop(name)
        pause = FIRST_PAUSE
        while True:
            try:
                if self.processes[name].exited:
                    await self.start(name)
                    print(f"{name} runs again", flush=True)
                began = time.monotonic()
                await self.processes[name].wait()
                if time.monotonic() - began > LONGEST_PAUSE:
                    pause = FIRST_PAUSE
                reason = self.processes[name].exit_reason()
            except ServerError as error:
                reason = str(error)
            print(f"{reason}; starting it again in {pause} s", flush=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def stop(self) -> None:
        """Stop what runs, in order."""
        for name in self.names:
            if name in self.processes:
                await self._stop(name)

    async def _stop(self, name: str) -> None:
        await self.processes[name].stop(timeout=15)  # the worker lets activities end first, for up to 10 s


@asynccontextmanager
async def running_or_new() -> AsyncIterator[str]:
    """The API's address: of the stack that runs on API_PORT, or of a new one that lives as long as this."""
    api_url = f"http://{HOST}:{_port('API_PORT', Config.api_port)}"
    try:
        async with httpx.AsyncClient(timeout=3) as http:
            ready = (await http.get(f"{api_url}/readyz")).json()["status"] == "ready"
    except (httpx.HTTPError, ValueError, LookupError, TypeError):  # no server there, or another one
        ready = False
    if ready:
        print(f"with the stack that runs at {api_url}\n", flush=True)
        yield api_url
        return
    print("no stack is running: starting one for this ...\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="order-saga-") as folder:
        async with Stack(Config.on_free_ports(Path(folder))) as stack:
            yield stack.api_url


def run(main: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a command of this folder and exit with its code: 1 and one line on a ServerError, 0 on Ctrl-C and SIGTERM."""

    async def until_told() -> int:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, lambda: None)  # once told is enough: stopping takes seconds at most
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        return await task

    try:
        code = asyncio.run(until_told())
    except asyncio.CancelledError:
        code = 0
    except ExceptionGroup as group:
        sys.exit(_complaint(group.exceptions[0]))
    except (ServerError, httpx.HTTPError, TimeoutError) as error:
        sys.exit(_complaint(error))
    sys.exit(code)


def _complaint(error: Exception) -> str:
    if isinstance(error, ServerError):
        return f"error: {error}"
    return f"error: the API did not answer as it should: {type(error).__name__} {error}"


async def serve() -> int:
    begin = time.monotonic()
    config = Config.from_environment()
    print("starting Temporal, MongoDB, worker and API ...", flush=True)
    async with Stack(config) as stack:
        addresses = {
            "Order desk": stack.api_url,
            "API docs": f"{stack.api_url}/docs",
            "Temporal UI": stack.temporal_ui_url or "(yours)",
            "Temporal": stack.temporal_address,
            "MongoDB": re.sub(r"//[^/@]*@", "//", stack.mongodb_uri),  # no password on a screen
            "Logs": str(stack.logs),
        }
        print(f"ready after {time.monotonic() - begin:.1f} s. Ctrl-C stops everything.\n")
        for what, where in addresses.items():
            print(f"  {what:<12} {where}")
        print(flush=True)
        try:
            await stack.watch()
        finally:
            print("stopping ...", flush=True)


if __name__ == "__main__":
    run(serve())
