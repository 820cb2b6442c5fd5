"""A copy of the program, in which a test makes the changes that a page of the docs describes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from app.settings import Settings
from dev.apply import apply, recipes
from dev.servers import Server, free_port
from dev.stack import ROOT
from tests.kit.waiting import eventually

REPLAY = """
import asyncio, os, pathlib, sys
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from app.workflows.order import OrderWorkflow
from worker import SANDBOX

async def replay():
    replayer = Replayer(
        workflows=[OrderWorkflow], data_converter=pydantic_data_converter, workflow_runner=SANDBOX
    )
    async def histories():
        for path in pathlib.Path(sys.argv[1]).glob("*.json"):
            yield WorkflowHistory.from_json(path.stem, path.read_text())
    results = await replayer.replay_workflows(histories(), raise_on_replay_failure=False)
    print(len(results.replay_failures))

asyncio.run(replay())
sys.stdout.flush()
os._exit(0)  # the SDK's threads may abort the interpreter as it ends: sdk-python 300
"""


def python_blocks(page: str, section: str) -> list[str]:
    """The Python code of a section of a page in docs/."""
    text = (ROOT / "docs" / page).read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return [
        textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    ]


def files_of_tests(*folders: str) -> list[str]:
    """The test files in these folders of tests/."""
    return sorted(str(path.relative_to(ROOT)) for each in folders for path in (ROOT / "tests" / each).glob("test_*.py"))


def environment_of(settings: Settings, server: Server) -> dict[str, str]:
    """The environment variables of worker and API."""
    return {
        "MONGODB_URI": settings.mongodb_uri,
        "MONGODB_DATABASE": settings.mongodb_database,
        "TASK_QUEUE": settings.task_queue,
        "TEMPORAL_ADDRESS": server.address,
        "API_OPEN": "true",
    }


class ProgramCopy:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.add("app", "dev", "worker.py")

    def add(self, *names: str) -> None:
        for name in names:
            source, target = ROOT / name, self.folder / name
            if target.exists():
                continue
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)

    def add_tests(self) -> None:
        self.add("tests", "pyproject.toml")

    def add_the_rest(self) -> None:
        """Copy the rest of the project: tests, docs, settings of tools."""
        names = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(names, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (ROOT / name).exists():
                self.add(name)

    async def passed(self, *arguments: str, within: float = 170) -> int:
        """Run tests in the copy. Returns how many passed; raises AssertionError if one failed."""
        pytest = ("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider")
        code, output = await self.run(*pytest, *arguments, within=within)
        assert code == 0, output
        (count,) = re.findall(r"(\d+) passed", output)
        return int(count)

    def insert(self, path: str, after: str, text: str) -> None:
        self.replace(path, after, after + text)

    def replace(self, path: str, old: str, new: str) -> None:
        file = self.folder / path
        text = file.read_text()
        assert text.count(old) == 1, f"{path} has another {old!r}"
        file.write_text(text.replace(old, new))

    def apply(self, recipe: str) -> None:
        """Make the changes of a section of docs/, as `make apply` does."""
        apply(self.folder, recipes()[recipe])

    def replace_line(self, path: str, part: str, new: str) -> None:
        """Replace the only line with this part. The new lines get its indentation."""
        (line,) = [each for each in (self.folder / path).read_text().splitlines(keepends=True) if part in each]
        self.replace(path, line, textwrap.indent(new, line[: -len(line.lstrip())]))

    def insert_below(self, path: str, part: str, new: str) -> None:
        """Insert lines below the only line with this part. They get its indentation."""
        (line,) = [each for each in (self.folder / path).read_text().splitlines(keepends=True) if part in each]
        self.replace_line(path, part, line.lstrip() + new)

    async def run(
        self, *arguments: str, environment: dict[str, str] | None = None, within: float = 30, folder: Path | None = None
    ) -> tuple[int | None, str]:
        """Run Python in the copy, or in another folder, until it exits. Returns exit code and output."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments),
            cwd=folder or self.folder,
            env={**os.environ, **(environment or {}), "PYTHONPATH": ""},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(within):
                output = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode, output

    async def replay_failures(self) -> int:
        """The number of recorded histories that the copy cannot replay."""
        code, output = await self.run("-c", REPLAY, str(ROOT / "tests" / "replay" / "histories"))
        assert code == 0, output
        return int(output.splitlines()[-1])

    @asynccontextmanager
    async def worker(self, environment: dict[str, str], *command: str) -> AsyncIterator[Server]:
        """Run the copy's worker, by default with the sandbox gateways."""
        async with self._process("worker", *(command or ("-m", "dev.worker")), environment=environment) as server:
            yield server

    @asynccontextmanager
    async def api(self, environment: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
        """Run the copy's API."""
        port = str(free_port())
        command = ("-m", "uvicorn", "app.api.main:app", "--port", port)
        url = f"http://127.0.0.1:{port}"
        async with self._process("api", *command, environment=environment), httpx.AsyncClient(base_url=url) as http:

            async def is_ready() -> bool:
                try:
                    return (await http.get("/readyz", timeout=10)).is_success
                except httpx.TransportError:
                    return False

            await eventually(is_ready)
            yield http

    @asynccontextmanager
    async def _process(self, name: str, *command: str, environment: dict[str, str]) -> AsyncIterator[Server]:
        log = self.folder / f"{name}.log"
        server = await Server.start(
            name, [sys.executable, *command], address="", log=log, cwd=self.folder, env=environment
        )
        try:
            yield server
        finally:
            await server.stop()
