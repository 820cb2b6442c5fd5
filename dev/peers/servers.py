"""The peers' servers: PostgreSQL, DBOS with its API, Restate with its service and API. All listen on 127.0.0.1 only."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from app.names import NAME
from dev.bench.load import Http
from dev.bench.shop import Shop
from dev.servers import HOST, Server, ServerError, free_port
from dev.stack import ROOT, Config, Stack

PEERS = ROOT / "dev" / "peers"
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OWNER = "postgres"  # PostgreSQL does not run as root; Debian's package makes this user
UVICORN = ("-m", "uvicorn", "--host", HOST, "--no-access-log", "--timeout-graceful-shutdown", "2")


class Contender:
    """A running program: its API as the benchmark's client sees it, and its processes."""

    def __init__(self, http: Http, processes: Mapping[str, Server]) -> None:
        self.shop, self.processes = Shop(http), processes

    def cpu(self) -> dict[str, float]:
        """CPU milliseconds by process so far, those that it has started included. Linux only."""
        return {name: _cpu(server.pid) for name, server in self.processes.items()}


def _cpu(pid: int) -> float:
    """Of a process, of the children that it has waited for, and of those that still run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = 1_000 * sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
    return own + sum(_cpu(int(child)) for child in found.stdout.split())


@asynccontextmanager
async def this_program() -> AsyncIterator[Contender]:
    """This program, as `make dev` runs it."""
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as folder:
        async with Stack(Config.on_free_ports(Path(folder))) as stack, Http(stack.api_url) as http:
            yield Contender(http, stack.processes)


@asynccontextmanager
async def dbos() -> AsyncIterator[Contender]:
    async with AsyncExitStack() as resources:
        database = await resources.enter_async_context(postgresql())
        port, environment = free_port(), {"DATABASE_URL": database.address}
        command = (*UVICORN, "dev.peers.dbos_orders:app", "--port", str(port))
        api = await _python(resources, "dbos", database.log.parent, command, environment)
        url = f"http://{HOST}:{port}"
        await _until_it_answers(api, f"{url}/openapi.json")
        http = await resources.enter_async_context(Http(url))
        yield Contender(http, {"api and workflows": api, "PostgreSQL": database})


@asynccontextmanager
async def restate() -> AsyncIterator[Contender]:
    async with AsyncExitStack() as resources:
        database = await resources.enter_async_context(postgresql())
        logs, api_port, service_port, ingress, admin, node = database.log.parent, *(free_port() for _ in range(5))
        environment = {"DATABASE_URL": database.address, "RESTATE_INGRESS": f"http://{HOST}:{ingress}"}
        server = await Server.start(
            "restate",
            [find_restate(), "--base-dir", logs / "restate", "--node-name", "one", "--no-logo", "--listen-mode", "tcp"],
            address="",
            log=logs / "restate.log",
            env={
                "RESTATE_BIND_ADDRESS": f"{HOST}:{node}",
                "RESTATE_INGRESS__BIND_ADDRESS": f"{HOST}:{ingress}",
                "RESTATE_ADMIN__BIND_ADDRESS": f"{HOST}:{admin}",
                "RESTATE_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "1",
            },
        )
        resources.push_async_callback(server.kill)
        module = ("-m", "dev.peers.restate_orders", f"{HOST}:{service_port}")
        service = await _python(resources, "service", logs, module, environment)
        uvicorn = (*UVICORN, "dev.peers.restate_orders:app", "--port", str(api_port))
        api = await _python(resources, "api", logs, uvicorn, environment)
        url = f"http://{HOST}:{api_port}"
        await _until_it_answers(api, f"{url}/openapi.json")
        await _until_it_answers(server, f"http://{HOST}:{admin}/health")
        await _until_it_answers(server, f"http://{HOST}:{ingress}/restate/health")
        await _until_it_listens(service, service_port)
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"http://{HOST}:{admin}/deployments", json={"uri": f"http://{HOST}:{service_port}"}, timeout=30
            )
        if not answer.is_success:
            raise ServerError(f"Restate cannot use the service: {answer.text}")
        http = await resources.enter_async_context(Http(url))
        yield Contender(http, {"API": api, "service": service, "Restate": server, "PostgreSQL": database})


async def _python(
    resources: AsyncExitStack, name: str, logs: Path, command: tuple[str, ...], environment: Mapping[str, str]
) -> Server:
    if not PYTHON.exists():
        raise ServerError(f"{PYTHON} not found: `make peers` installs it")
    server = await Server.start(
        name, [PYTHON, *command], address="", log=logs / f"{name}.log", cwd=ROOT, env=environment
    )
    resources.push_async_callback(server.stop)
    return server


@asynccontextmanager
async def postgresql() -> AsyncIterator[Server]:
    """An empty database with PostgreSQL's defaults: each commit waits for the disk, as with MongoDB's majority."""
    folder = Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    as_owner: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, OWNER)
        as_owner = [find("setpriv"), "--reuid", OWNER, "--regid", OWNER, "--clear-groups"]
    try:
        data, port = folder / "postgresql", free_port()
        initialize = [*as_owner, find("initdb"), "--auth=trust", "--username=orders", "--pgdata", str(data)]
        made = await asyncio.to_thread(subprocess.run, initialize, capture_output=True, text=True, cwd="/", check=False)
        if made.returncode:
            raise ServerError(f"initdb failed: {(made.stderr.strip() or made.stdout.strip()).splitlines()[-1]}")
        # The change of user would clear the signal by which it dies with its parent: set it after that.
        die = ["--pdeathsig", "KILL"] if as_owner else []
        options = ["-h", HOST, "-p", str(port), "-k", "", "-c", "max_connections=200"]
        server = await Server.start(
            "postgresql",
            [*as_owner, *die, find("postgres"), "-D", str(data), *options],
            address=f"postgresql://orders@{HOST}:{port}/postgres",
            log=folder / "postgresql.log",
            cwd=Path("/"),
        )
        try:
            await _until_it_listens(server, port)
            yield server
        finally:
            await server.stop()
    finally:
        shutil.rmtree(folder)


def find(program: str) -> str:
    """A program on PATH, or PostgreSQL's where Debian puts it: the newest one. Raises ServerError."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found = shutil.which(program, path=os.pathsep.join([*map(str, installed), os.environ["PATH"]]))
    if not found:
        raise ServerError(f"{program} not found: install PostgreSQL (on Debian: apt-get install postgresql)")
    return found


def find_restate() -> Path:
    """The server, of which npm has installed the build for this machine. Raises ServerError."""
    for found in PEERS.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"):
        return found
    raise ServerError("Restate's server not found: `make peers` installs it")


def versions() -> dict[str, str]:
    """Of all parts of the peers."""
    script = "import importlib.metadata as m; print(m.version('dbos'), m.version('restate-sdk'))"
    dbos, sdk = _output(str(PYTHON), "-c", script).split()
    database, server = _output(find("postgres"), "--version"), _output(str(find_restate()), "--version")
    numbers = [found[0] if (found := re.search(r"\d+(\.\d+)+", text)) else "?" for text in (database, server)]
    return {"DBOS": dbos, "PostgreSQL": numbers[0], "Restate's SDK": sdk, "Restate": numbers[1]}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def _until_it_answers(server: Server, url: str) -> None:
    async with httpx.AsyncClient() as client:

        async def answers() -> bool:
            try:
                return (await client.get(url)).is_success
            except httpx.TransportError:
                return False

        await server.wait_until(answers, timeout=60)


async def _until_it_listens(server: Server, port: int) -> None:
    async def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    await server.wait_until(listens, timeout=60)
