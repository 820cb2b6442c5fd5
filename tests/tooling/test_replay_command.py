"""`python -m dev.replay` as docs/debugging.md describes it, on a copy of the program with an edited workflow."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.domain import StepName
from dev.servers import Server, find_temporal
from dev.stack import ROOT
from tests.kit.shop import Shop
from tests.replay.record import HISTORIES

Replay = Callable[..., Awaitable[tuple[int | None, str]]]

COMPLETED = HISTORIES / "completed.json"
STEP_BEGINS = "        activity = calls.start(step, self._progress)\n"


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    """Replay a history with an edited `order.py`. Returns exit code and output."""
    for each in ("app", "dev"):
        shutil.copytree(ROOT / each, tmp_path / each, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "worker.py", tmp_path)

    async def run(
        history: Path, edit: tuple[str, str] = ("", ""), keys: str = "", debug: str = ""
    ) -> tuple[int | None, str]:
        file = tmp_path / "app/workflows/order.py"
        code = file.read_text()
        if edit[0]:
            assert code.count(edit[0]) == 1
            file.write_text(code.replace(*edit))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dev.replay", str(history)),
            cwd=tmp_path,
            env={**os.environ, "TEMPORAL_DEBUG": debug},
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
        )
        output, _ = await process.communicate(keys.encode())
        return process.returncode, output.decode()

    return run


async def test_replay_of_unchanged_code_succeeds(replay: Replay) -> None:
    code, output = await replay(COMPLETED)
    assert (code, output) == (0, f"{COMPLETED}: replayed\n")


async def test_replay_of_incompatible_code_fails(replay: Replay) -> None:
    code, output = await replay(COMPLETED, ("for step in REVERSIBLE_STEPS:", "for step in REVERSIBLE_STEPS[::-1]:"))
    assert code == 1
    assert "[TMPRL1100] Nondeterminism error" in output


async def test_breakpoint_stops_at_each_step(replay: Replay) -> None:
    edit = (STEP_BEGINS, f"        breakpoint()\n{STEP_BEGINS}")
    code, output = await replay(COMPLETED, edit, keys="p str(step.name)\nc\n" * len(StepName), debug="1")
    assert code == 0
    assert {step: output.count(f"(Pdb) '{step}'") for step in StepName} == dict.fromkeys(StepName, 1)


async def test_breakpoint_without_debug_mode_is_refused(replay: Replay) -> None:
    code, output = await replay(COMPLETED, (STEP_BEGINS, f"        breakpoint()\n{STEP_BEGINS}"))
    assert code == 1
    assert "RestrictedWorkflowAccessError: breakpoint() inside workflow code requires debug_mode=True" in output


async def test_code_that_does_not_yield_is_reported_as_deadlock(replay: Replay) -> None:
    code, output = await replay(COMPLETED, (STEP_BEGINS, f"        while True:\n            pass\n{STEP_BEGINS}"))
    assert code == 1
    assert "[TMPRL1101] Potential deadlock detected: workflow didn't yield within 2 second(s)" in output


@pytest.mark.usefixtures("worker")
async def test_history_printed_by_the_command_line_replays(
    replay: Replay, shop: Shop, temporal_server: Server, tmp_path: Path
) -> None:
    await shop.stock()
    handle = await shop.start()
    await handle.result()
    show = ("workflow", "show", "--workflow-id", handle.id, "--output", "json", "--address", temporal_server.address)
    process = await asyncio.create_subprocess_exec(find_temporal(), *show, stdout=PIPE)
    printed, _ = await process.communicate()
    history = tmp_path / "history.json"
    history.write_bytes(printed)
    code, output = await replay(history)
    assert (code, output) == (0, f"{history}: replayed\n")
