"""`make dev` in a process, on its own ports and data: what it prints, starts, keeps and leaves behind.

The examples of README.md run here too, against that stack.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from dev.servers import find_temporal, free_port
from dev.stack import ROOT
from tests.support import eventually, order_body

README = (ROOT / "README.md").read_text()
PORTS = ("API_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "MONGODB_PORT")
ORDER_ID = re.compile(r"ord_[0-9a-f]{26}")


class Dev:
    """`make dev`: its process, its output, and the processes that it starts."""

    def __init__(self, dev_dir: Path, **environment: str) -> None:
        self.dev_dir = dev_dir
        self.environment = {
            "DEV_DIR": str(dev_dir),
            "TEMPORAL_ADDRESS": "",
            "MONGODB_URI": "",
            **{name: str(free_port()) for name in PORTS},
            **environment,
        }
        self.api_url = f"http://127.0.0.1:{self.environment['API_PORT']}"
        self.printed = ""
        self._process: asyncio.subprocess.Process

    async def start(self) -> Self:
        """Start it. Standard output and errors are read as one."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dev.stack"),
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def reads(self, text: str) -> str:
        """Wait until it has printed this. Returns all that it has printed since its start."""
        assert self._process.stdout
        self.printed = ""
        async with asyncio.timeout(45):
            while text not in self.printed:
                line = await self._process.stdout.readline()
                assert line, f"it has ended: {self.printed}"
                self.printed += line.decode()
        return self.printed

    async def ready(self) -> float:
        """Wait until it is ready. Returns the seconds that it says this took."""
        printed = await self.reads("Logs")
        took = re.search(r"ready after (\d+\.\d) s", printed)
        assert took, printed
        return float(took[1])

    async def ends(self) -> tuple[int, list[str]]:
        """Wait until it has ended. Returns its exit code, and its last lines: what followed the first, `starting`."""
        async with asyncio.timeout(45):
            printed, _ = await self._process.communicate()
        lines = printed.decode().splitlines()
        assert self._process.returncode is not None
        return self._process.returncode, [line for line in lines if line and not line.startswith("starting ")]

    async def stop(self, number: signal.Signals) -> int:
        """Send it a signal; the exit code, or minus the number of the signal that ended it."""
        self._process.send_signal(number)
        return (await self.ends())[0]

    def processes(self) -> dict[int, str]:
        """Every process that it started, also after the end of their parent, and the command of each."""
        mark = f"DEV_DIR={self.dev_dir}"
        if sys.platform == "linux":
            found = {}
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if mark in (folder / "environ").read_bytes().decode(errors="replace").split("\0"):
                        found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
                except OSError:  # has ended meanwhile
                    continue
            return found
        listed = subprocess.run(["ps", "-axEww", "-o", "pid=,command="], capture_output=True, text=True, check=True)  # noqa: S607
        lines = (line.split(maxsplit=1) for line in listed.stdout.splitlines() if mark in line)
        return {int(pid): command for pid, command in lines}

    def pid_of(self, command: str) -> int:
        (pid,) = (pid for pid, running in self.processes().items() if command in running)
        return pid


@pytest.fixture(autouse=True)
def kill_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    for folder in (tmp_path, tmp_path / "dev"):
        for pid in Dev(folder).processes():
            with suppress(ProcessLookupError):  # its parent took it along
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A stack that runs."""
    dev = Dev(tmp_path_factory.mktemp("dev"))
    await dev.start()
    await dev.ready()
    yield dev
    assert await dev.stop(signal.SIGTERM) == 0
    assert dev.processes() == {}


@pytest.fixture
async def http(dev: Dev) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=dev.api_url, timeout=10) as http:
        yield http


async def place(http: httpx.AsyncClient, **changes: Any) -> str:
    body = order_body(lines=[{"sku": "MUG-BLUE", "quantity": 1}], **changes)
    answer = await http.post("/orders", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["order_id"])


async def reaches(http: httpx.AsyncClient, order_id: str, status: str) -> dict[str, Any]:
    async def look() -> dict[str, Any]:
        order: dict[str, Any] = (await http.get(f"/orders/{order_id}")).raise_for_status().json()
        return order

    return await eventually(look, lambda order: order["status"] == status)


# --- running, stopping, coming back


async def test_start_prints_one_table_of_addresses_that_answer(dev: Dev, http: httpx.AsyncClient) -> None:
    table = dict(re.findall(r"^  (\S+(?: \S+)*)  +(\S+)$", dev.printed, re.MULTILINE))
    assert list(table) == ["Order desk", "API docs", "Temporal UI", "Temporal", "MongoDB", "Logs"]
    for name in ("Order desk", "API docs", "Temporal UI"):
        page = await http.get(table[name], follow_redirects=True)
        assert (page.status_code, "<html" in page.text.lower()) == (200, True)
    for address in (table["Temporal"], table["MongoDB"].removeprefix("mongodb://").split("/")[0]):
        host, port = address.split(":")
        socket.create_connection((host, int(port))).close()
    assert {log.name for log in Path(table["Logs"]).iterdir()} == {
        *("api.log", "worker.log", "temporal.log", "mongod.log")
    }
    assert len((await http.get("/inventory")).json()["items"]) >= 5


async def test_stop_leaves_no_process_and_restart_keeps_all_data(dev: Dev, http: httpx.AsyncClient) -> None:
    done, waiting = await place(http), await place(http, payment_method="pm_card_outage")
    await reaches(http, done, "completed")
    await reaches(http, waiting, "reserved")
    assert len(dev.processes()) == 5, dev.processes()  # itself, and four more

    assert await dev.stop(signal.SIGINT) == 0
    assert dev.processes() == {}
    logs = {name: (dev.dev_dir / "logs" / f"{name}.log").read_text() for name in ("api", "worker", "mongod")}
    assert '"exitCode":0' in logs["mongod"].splitlines()[-1]  # by itself, not by force
    # In order: no process missed a server that had stopped before it.
    lines = (logs["api"] + logs["worker"]).splitlines()
    expected = re.compile("waiting for|the payment service is unavailable")
    assert [line for line in lines if re.search("WARN|ERROR", line) and not expected.search(line)] == []

    await dev.start()
    took = await dev.ready()
    if took > 4:  # other work may slow this machine
        await dev.stop(signal.SIGINT)
        await dev.start()
        took = await dev.ready()
    assert took <= 4
    assert [step["status"] for step in (await reaches(http, done, "completed"))["steps"]] == ["done"] * 4
    # Temporal kept both workflows: one has completed, the other goes on and can be cancelled.
    assert (await http.get(f"/orders/{done}/status")).json()["status"] == "completed"
    assert (await http.post(f"/orders/{waiting}/cancel", json={})).status_code == 202
    await reaches(http, waiting, "cancelled")


async def test_stop_during_start_leaves_no_process(tmp_path: Path) -> None:
    dev = await Dev(tmp_path).start()

    async def all_are_there() -> bool:
        return len(dev.processes()) == 5

    await eventually(all_are_there)
    assert await dev.stop(signal.SIGINT) == 0
    assert dev.processes() == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
async def test_kill_ends_all_its_processes(tmp_path: Path) -> None:
    dev = await Dev(tmp_path).start()
    await dev.reads("starting")

    async def processes() -> int:
        return len(dev.processes())

    await eventually(processes, lambda number: number == 5)
    assert await dev.stop(signal.SIGKILL) == -signal.SIGKILL
    await eventually(processes, lambda number: number == 0)


async def test_running_servers_are_used_and_a_dead_worker_ends_the_stack(dev: Dev, tmp_path: Path) -> None:
    mongodb = f"mongodb://someone:secret@127.0.0.1:{dev.environment['MONGODB_PORT']}/?replicaSet=rs0"
    second = Dev(
        tmp_path,
        TEMPORAL_ADDRESS=f"127.0.0.1:{dev.environment['TEMPORAL_PORT']}",
        MONGODB_URI=mongodb.replace("someone:secret@", ""),
        MONGODB_DATABASE="second",
        TASK_QUEUE="second",
    )
    await second.start()
    await second.ready()
    assert len(second.processes()) == 3, second.processes()  # itself, worker and API
    assert re.search(r"Temporal UI +\(yours\)$", second.printed, re.MULTILINE)
    async with httpx.AsyncClient(base_url=second.api_url) as http:
        await reaches(http, await place(http), "completed")

    os.kill(second.pid_of("worker.py"), signal.SIGKILL)
    code, lines = await second.ends()
    assert (code, lines[0]) == (1, "stopping ...")
    (complaint,) = lines[1:]
    assert complaint.startswith("error: worker has ended (exit code -9): ")
    assert second.processes() == {}
    assert len(dev.processes()) == 5  # the servers were not its own to stop


# --- errors at the start: one line, with the remedy


@pytest.mark.parametrize("variable", PORTS)
async def test_taken_port_is_named_before_anything_starts(variable: str, tmp_path: Path) -> None:
    dev = Dev(tmp_path / "dev")
    port = int(dev.environment[variable])
    with socket.create_server(("127.0.0.1", port)):
        await dev.start()
        code, (complaint,) = await dev.ends()
    assert code == 1
    assert complaint == (
        f"error: port {port} is taken: stop what listens there, or choose another: {variable}={port + 1}"
    )
    assert not dev.dev_dir.exists()  # nothing was started


async def test_same_port_twice_is_refused(tmp_path: Path) -> None:
    dev = Dev(tmp_path / "dev")
    dev.environment["MONGODB_PORT"] = port = dev.environment["API_PORT"]
    await dev.start()
    assert await dev.ends() == (
        1,
        [f"error: API_PORT and MONGODB_PORT are both {port}: choose another for one of them"],
    )


BROKEN_MONGOD = """#!/bin/sh
echo "mongod: error while loading shared libraries: libcurl.so.4: cannot open shared object file" >&2
exit 127
"""


async def test_missing_library_of_mongod_is_named(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "mongod").write_text(BROKEN_MONGOD)
    (programs / "mongod").chmod(0o755)
    dev = await Dev(tmp_path / "dev", PATH=f"{programs}{os.pathsep}{os.environ['PATH']}").start()
    complaint = "error: mongod cannot start, libcurl.so.4 is missing: on Debian, apt-get install libcurl4"
    assert await dev.ends() == (1, [complaint])
    assert dev.processes() == {}


async def test_unreadable_data_of_mongod_is_named(tmp_path: Path) -> None:
    (tmp_path / "mongodb").mkdir()
    for name in ("WiredTiger", "storage.bson"):
        (tmp_path / "mongodb" / name).write_text("no data of mongod's")
    dev = await Dev(tmp_path).start()
    code, (complaint,) = await dev.ends()
    assert (code, dev.processes()) == (1, {})
    assert re.match(r"error: mongod has ended \(exit code \d+\): Unable to read the storage engine metadata", complaint)
    assert complaint.endswith(f"(log: {tmp_path}/logs/mongod.log)")


async def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "mongodb").write_text("a file where the folder should be")
    dev = await Dev(tmp_path).start()
    complaint = f"error: {tmp_path}/mongodb cannot be used: File exists. DEV_DIR names another folder"
    assert await dev.ends() == (1, [complaint])
    assert dev.processes() == {}


async def test_wrong_setting_is_named(tmp_path: Path) -> None:
    dev = await Dev(tmp_path, APPROVAL_TIMEOUT="soon").start()
    code, (complaint,) = await dev.ends()
    assert (code, dev.processes()) == (1, {})
    assert re.match(r"error: (worker|api) has ended \(exit code 1\): wrong setting: APPROVAL_TIMEOUT: ", complaint)


# --- README.md


def blocks(beginning: str) -> list[str]:
    """The indented blocks of README.md that begin with this."""
    paragraphs = re.findall(r"(?:^    .*\n)+", README, re.MULTILINE)
    return [block for block in paragraphs if block.startswith(f"    {beginning}")]


def shown_after(block: str, order_id: str) -> dict[str, Any]:
    """The output that README.md shows for order `order_id`; ` ... ` stands for omitted fields."""
    _, _, rest = README.partition(block)
    (printed, *_) = re.findall(r"^    (\{(?:.|\n)*?\})\n(?!    )", rest, re.MULTILINE)
    order: dict[str, Any] = json.loads(ORDER_ID.sub(order_id, printed.replace("...", "")))
    return order


async def typed(block: str, dev: Dev, order_id: str = "") -> str:
    """Run a block of README.md on the stack `dev`, for the order `order_id`. Returns its output."""
    script = block.replace("localhost:8000", f"localhost:{dev.environment['API_PORT']}")
    script = script.replace(".venv/bin/temporal", shlex.quote(str(find_temporal())))
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", ORDER_ID.sub(order_id, script) if order_id else script),
        env={**os.environ, "TEMPORAL_ADDRESS": f"127.0.0.1:{dev.environment['TEMPORAL_PORT']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return printed.decode()


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
async def test_readme_examples_with_curl_answer_as_shown(dev: Dev, http: httpx.AsyncClient) -> None:
    (placing,) = blocks("curl -i localhost")
    head, body = (await typed(placing, dev)).split("\r\n\r\n")
    order_id = json.loads(body)["order_id"]
    assert head.startswith("HTTP/1.1 202 Accepted\r\n")
    assert f"location: /orders/{order_id}" in head
    assert json.loads(body).items() >= shown_after(placing, order_id).items()
    again = await typed(placing, dev)
    assert again.startswith("HTTP/1.1 202 Accepted\r\n")
    assert set(ORDER_ID.findall(again)) == {order_id}, "the same key made another order"
    assert len((await reaches(http, order_id, "completed"))["steps"]) == 4

    outage = placing.replace("pm_card_ok", "pm_card_outage").replace("my-first-order", "another")
    (order_id,) = set(ORDER_ID.findall(await typed(outage, dev)))
    await reaches(http, order_id, "reserved")
    (cancelling,) = blocks("curl -X POST")
    body = await typed(cancelling, dev, order_id)
    assert json.loads(body).items() >= shown_after(cancelling, order_id).items()
    await reaches(http, order_id, "cancelled")


async def test_readme_examples_with_the_command_line_cancel_the_order(dev: Dev, http: httpx.AsyncClient) -> None:
    order_id = await place(http, payment_method="pm_card_outage")
    await reaches(http, order_id, "reserved")
    (both,) = blocks(".venv/bin/temporal")
    printed = await typed(both, dev, order_id)
    assert '"cancel_requested":true' in printed.replace(" ", "")
    await reaches(http, order_id, "cancelled")


async def test_guided_tour_ends_every_order_as_it_should(dev: Dev) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dev.demo"),
        cwd=ROOT,
        env={**os.environ, **dev.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    assert printed.startswith(f"with the stack that runs at {dev.api_url}\n")
    assert printed.endswith("7 of 7 orders ended as they should\n")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {"app/activities/warehouse.py"}  # the reader writes it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE)) <= targets
    named = set(re.findall(r"(?<![\w/.])(?:(?:app|dev|docs|tests)/[\w./-]*\w/?|worker\.py)", text)) - EXAMPLES
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_readme_layout_names_existing_files() -> None:
    """Left a folder or file; the files named beside it are in that folder."""
    (layout,) = blocks("worker.py  ")
    rows = [line.strip().split(maxsplit=1) for line in layout.splitlines()]
    assert {name.rstrip("/") for name, _ in rows} >= {"worker.py", "app/workflows", "app/api", "dev", "tests"}
    for name, what in rows:
        for part in re.findall(r"\b[\w]+\.py|\b\w+/(?!\w)", what):
            assert (ROOT / name / part).exists(), f"{name}{part}"


def test_automatic_checks_run_the_makefile() -> None:
    shebang, *lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", 'cd "$(dirname "$0")/.."'))]
    assert shebang == "#!/usr/bin/env bash"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert set(commands) >= {"make lint", "make test"}
    assert all(re.fullmatch(r"make [a-z]+", command) for command in commands)
    assert "    make test " in README
