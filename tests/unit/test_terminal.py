"""The commands that run for a while show that they do."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import pytest
from rich.console import Console

from dev import demo, terminal
from dev.servers import free_port
from dev.terminal import progress, running_or_new_stack
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


async def test_stack_without_control_endpoint_leaves_out_the_killed_worker(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_PORT", str(api.base_url.port))
    monkeypatch.setenv("DEV_CONTROL_PORT", str(free_port()))
    async with asyncio.timeout(10), running_or_new_stack() as stack:
        assert stack == terminal.Addresses(str(api.base_url).rstrip("/"), control_url="")
    kills = [scenario for scenario in demo.SCENARIOS if scenario.kills_worker]
    assert [demo.is_left_out(scenario, stack) for scenario in kills] == [True]
    assert not any(demo.is_left_out(scenario, stack) for scenario in demo.SCENARIOS if scenario not in kills)


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_tour_is_coloured_only_in_a_terminal(is_terminal: bool) -> None:
    shown = io.StringIO()
    order: dict[str, Any] = {"status": "completed", "failure": None, "steps": []}
    async with httpx.AsyncClient() as http:
        run = demo.Run(demo.SCENARIOS[0], 1, ["reserve_inventory"], http, http, order)
        Console(file=shown, force_terminal=is_terminal, color_system="auto", width=120).print(run.render())
    assert "Reserve inventory" in shown.getvalue()
    assert ("\x1b[" in shown.getvalue()) is is_terminal
