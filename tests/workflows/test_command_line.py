"""The `temporal` command line can cancel and query a running order, as the API can."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from subprocess import PIPE
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from app.domain import OrderStatus
from dev.servers import Server, find_temporal
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.orders import CHARGING
from tests.kit.shop import Shop
from tests.kit.workflows import Handle

Temporal = Callable[..., Awaitable[str]]


@pytest.fixture
def temporal_command(temporal_server: Server) -> Temporal:
    """Run `temporal workflow ...`, and return what it prints."""

    async def run(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            find_temporal(), "workflow", *words, "--address", temporal_server.address, stdout=PIPE, stderr=PIPE
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        return output.decode()

    return run


@pytest.fixture
async def charging(shop: Shop) -> AsyncIterator[Handle]:
    """An order whose payment is being charged."""
    await shop.stock(available=10)
    pause = Pause(done=True)
    async with FaultyGateways(shop, ChargePayment=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        yield handle
        pause.resume.set()


@pytest.mark.parametrize(
    "words",
    [[], ["--input", '{"reason": "changed my mind"}'], ["--input", '"changed my mind"']],
    ids=["no input", "reason", "text"],
)
async def test_temporal_workflow_signal_cancels_the_order(
    shop: Shop, charging: Handle, temporal_command: Temporal, words: list[str]
) -> None:
    await temporal_command("signal", "--workflow-id", charging.id, "--name", "cancel", *words)
    result = await charging.result()
    order = await shop.order(charging)
    assert order.failure is not None
    assert (result.status, order.failure.message) == (OrderStatus.CANCELLED, "cancelled")
    assert (await shop.available(), await shop.net_money(result.order_id)) == (10, 0)


async def test_temporal_workflow_cancel_cancels_the_order(
    shop: Shop, charging: Handle, temporal_command: Temporal
) -> None:
    await temporal_command("cancel", "--workflow-id", charging.id)
    order = await shop.wait_for_status(charging, OrderStatus.CANCELLED)
    assert (await shop.available(), await shop.net_money(order.order_id)) == (10, 0)
    description = await charging.describe()
    while description.status is WorkflowExecutionStatus.RUNNING:
        description = await charging.describe()
    assert description.status is WorkflowExecutionStatus.CANCELED


async def test_temporal_workflow_query_prints_the_status(charging: Handle, temporal_command: Temporal) -> None:
    printed = await temporal_command("query", "--workflow-id", charging.id, "--type", "status", "--output", "json")
    progress: dict[str, Any] = json.loads(printed)["queryResult"][0]
    assert (progress["status"], progress["step"], progress["cancel_requested"]) == (CHARGING, "charge_payment", False)
