"""The commands that run for a while show that they do."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dev import terminal
from dev.terminal import progress
from tests.kit.waiting import eventually


def use_console(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> io.StringIO:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=is_terminal, highlight=False, width=120)
    monkeypatch.setattr(terminal, "console", console)
    return shown


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_progress_shows_counts_and_a_clock(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr(terminal, "INTERVAL", 0.01)
    shown, done = use_console(monkeypatch, is_terminal=is_terminal), 0

    async def text() -> str:
        return shown.getvalue()

    async with progress(lambda: f"{done} of 2 orders"):
        await eventually(text, lambda text: "0 of 2 orders (0:0" in text)
        done = 2
        await eventually(text, lambda text: "2 of 2 orders (0:0" in text)
    assert ("\x1b[" in shown.getvalue()) is is_terminal  # the line changes in place
