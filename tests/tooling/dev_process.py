"""Run `make dev` as a process, and read its output and its child processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from dev.servers import free_port
from dev.stack import ROOT
from tests.kit.http import NO_TLS
from tests.kit.orders import order_body
from tests.kit.waiting import eventually

PORTS = ("API_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "MONGODB_PORT", "DEV_CONTROL_PORT")


class Dev:
    """`make dev`: its process, its output, and the processes that it starts."""

    def __init__(self, dev_dir: Path, root: Path = ROOT, **environment: str) -> None:
        self.dev_dir = dev_dir
        self.root = root
        self.environment = {
            "DEV_DIR": str(dev_dir),
            "TEMPORAL_ADDRESS": "",
            "MONGODB_URI": "",
            **{name: str(free_port()) for name in PORTS},
            **environment,
        }
        self.control = f"http://127.0.0.1:{self.environment['DEV_CONTROL_PORT']}"
        self.api_url = f"http://127.0.0.1:{self.environment['API_PORT']}"
        self.temporal = f"127.0.0.1:{self.environment['TEMPORAL_PORT']}"
        self.mongodb = f"mongodb://127.0.0.1:{self.environment['MONGODB_PORT']}/?replicaSet=rs0"
        self.printed = ""
        self._process: asyncio.subprocess.Process

    async def start(self, *command: str) -> Self:
        """Start the process, or that of another command, with standard error redirected to standard output."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *(command or ["dev.stack"])),
            cwd=self.root,
            env={**os.environ, **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def wait_for_output(self, *texts: str) -> str:
        """Wait until the output contains all of `texts`. Returns the output since the last call."""
        assert self._process.stdout
        self.printed = ""
        try:
            async with asyncio.timeout(45):
                while not all(text in self.printed for text in texts):
                    line = await self._process.stdout.readline()
                    assert line, f"the process has exited: {self.printed}"
                    self.printed += line.decode()
        except TimeoutError:
            pytest.fail(f"{texts} not found in the output: {self.printed}")
        return self.printed

    async def wait_until_ready(self) -> None:
        """Wait until the stack is ready."""
        printed = await self.wait_for_output("Logs")
        assert re.search(r"ready after \d+\.\d s", printed), printed

    async def wait_for_exit(self, timeout: float = 45) -> tuple[int, list[str]]:
        """Wait until the process exits. Returns its exit code and its output after the line `starting ...`."""
        async with asyncio.timeout(timeout):
            printed, _ = await self._process.communicate()
        lines = printed.decode().splitlines()
        assert self._process.returncode is not None
        return self._process.returncode, [line for line in lines if line and not line.startswith("starting ")]

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal. Returns the exit code, or the negated number of the signal that ended the process."""
        self.send(number)
        return (await self.wait_for_exit())[0]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def processes(self) -> dict[int, str]:
        """The command of each process that it started, by pid. Finds processes even after their parent has exited."""
        mark = f"DEV_DIR={self.dev_dir}"
        if sys.platform == "linux":
            found = {}
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if mark in (folder / "environ").read_bytes().decode(errors="replace").split("\0"):
                        found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
                except OSError:  # the process has exited
                    continue
            return found
        listed = subprocess.run(["ps", "-axEww", "-o", "pid=,command="], capture_output=True, text=True, check=True)  # noqa: S607
        lines = (line.split(maxsplit=1) for line in listed.stdout.splitlines() if mark in line)
        return {int(pid): command for pid, command in lines}

    def pid_of(self, command: str) -> int:
        (pid,) = (pid for pid, running in self.processes().items() if command in running)
        return pid

    async def act(self, server: str, action: str) -> None:
        """Stop, kill, freeze, resume or start one of its servers, and wait until that is done."""
        done = {"stop": "stopped", "kill": "stopped", "freeze": "frozen", "resume": "running", "start": "running"}
        async with httpx.AsyncClient(base_url=self.control, verify=NO_TLS) as http:

            async def state() -> str:
                servers = (await http.get("/servers")).json()["servers"]
                return next(str(each["state"]) for each in servers if each["name"] == server)

            assert (await http.post(f"/servers/{server}", json={"action": action})).status_code == 202
            await eventually(state, lambda state: state == done[action])

    def kill(self) -> None:
        """Kill processes that a failed test has left."""
        for pid in self.processes():
            with suppress(ProcessLookupError):  # exited with its parent
                os.kill(pid, signal.SIGKILL)


async def place(http: httpx.AsyncClient, **changes: Any) -> str:
    body = order_body(lines=[{"sku": "MUG-BLUE", "quantity": 1}], **changes)
    answer = await http.post("/orders", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["order_id"])


async def wait_for_status(http: httpx.AsyncClient, order_id: str, status: str, *, within: float = 15) -> dict[str, Any]:
    async def look() -> dict[str, Any]:
        order: dict[str, Any] = (await http.get(f"/orders/{order_id}")).raise_for_status().json()
        return order

    return await eventually(look, lambda order: order["status"] == status, within=within)
