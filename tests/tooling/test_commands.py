"""Ctrl-C ends `make demo`, `make bench` and `make chaos`. test_stack.py has the whole tour."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.kit.waiting import eventually
from tests.tooling.dev_process import Dev


async def ctrl_c(dev: Dev, until: Callable[[], Awaitable[bool]], *command: str) -> None:
    """Start a command, and press Ctrl-C once `until` is true."""
    await dev.start(*command)
    try:
        await eventually(until)
        dev.send(signal.SIGINT)
        code, lines = await dev.wait_for_exit()
        assert (code, [line for line in lines if "Traceback" in line]) == (130, []), lines
        assert dev.processes() == {}
    finally:
        dev.kill()


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("dev.demo", 5),  # with a stack of four processes
        ("dev.bench", 5),
        ("dev.chaos", 2),  # with the first mongod
    ],
)
async def test_ctrl_c_ends_command_whose_servers_start(tmp_path: Path, command: str, number: int) -> None:
    dev = Dev(tmp_path)

    async def have_begun() -> bool:
        return len(dev.processes()) >= number

    await ctrl_c(dev, have_begun, command)
