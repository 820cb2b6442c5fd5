"""The guided tour of `make demo`; tests/tooling/test_stack.py runs it."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import pytest
from rich.console import Console

from dev import demo, terminal
from dev.servers import free_port
from dev.terminal import running_or_new_stack


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
        run = demo.Run(demo.SCENARIOS[0], 1, {"reserve_inventory": "placed"}, http, http, order)
        Console(file=shown, force_terminal=is_terminal, color_system="auto", width=120).print(run.render())
    assert "Reserve inventory" in shown.getvalue()
    assert ("\x1b[" in shown.getvalue()) is is_terminal
