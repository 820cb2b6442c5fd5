"""Restore MongoDB from a backup, as docs/operations.md describes. Stock and money stay correct (G3, G5, G6)."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from datetime import UTC, datetime, timedelta

import pytest

from app.domain import OrderStatus
from app.mongo import Document
from app.names import NAME, WORKFLOW_ID_PREFIX
from dev.servers import find_temporal
from dev.stack import ROOT
from tests.kit.orders import ADDRESS
from tests.kit.relay import running_relay
from tests.kit.shop import Shop, build_shop_worker
from tests.kit.waiting import eventually

PAGE = ROOT / "docs" / "operations.md"
CARRIER_DOWN = {**ADDRESS, "postal_code": "99999"}


async def test_orders_of_restored_database_continue_and_are_charged_once(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Gateways and Temporal are not restored. The workflows are terminated, as the page says.

    The reconciliation names the order that was placed after the backup.
    """
    await shop.stock(available=10)
    order = await shop.place({"MUG": 2}, shipping_address=CARRIER_DOWN)
    orders, inventory = await _all(shop)
    async with build_shop_worker(shop):
        await shop.workflows.start(order)
        later = await shop.start({"MUG": 1})
        await shop.wait_for_status(order.order_id, OrderStatus.CHARGED)
        await later.result()

    await eventually(shop.workflows.running, lambda running: running == {order.order_id})
    await _run_command(shop, "workflow terminate")
    await eventually(shop.workflows.running, lambda running: not running)
    await _restore(shop, orders, inventory)
    await shop.mongo.orders.update_one({}, {"$set": {"shipping_address": ADDRESS}})  # end of the carrier's outage

    async with build_shop_worker(shop), running_relay(shop):
        restored = await shop.wait_for_status(order.order_id, OrderStatus.COMPLETED)
        await _run_command(shop, "workflow start")

        async def logged() -> bool:
            return f"order {later.id.removeprefix(WORKFLOW_ID_PREFIX)}: unknown_order" in caplog.text

        await eventually(logged)
    assert (await shop.available(), await shop.held()) == (8, 2)
    assert await shop.net_money(order.order_id) == restored.total.amount
    assert await shop.mongo.orders.count_documents({}) == 1


async def _run_command(shop: Shop, name: str) -> None:
    """Run a command of the page, but on this test's task queue and as if the backup was an hour old."""
    (command,) = re.findall(rf"^ +temporal ({name} .*)$", PAGE.read_text(), re.MULTILINE)
    an_hour_ago = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    command = command.replace(NAME, shop.settings.task_queue)
    arguments = shlex.split(re.sub(r"\d{4}-\d\d-\d\dT00:00:00Z", an_hour_ago, command))
    environment = {**os.environ, "TEMPORAL_ADDRESS": shop.client.service_client.config.target_host}
    process = await asyncio.create_subprocess_exec(find_temporal(), *arguments, env=environment)
    assert await process.wait() == 0


async def _all(shop: Shop) -> tuple[list[Document], list[Document]]:
    return await shop.mongo.orders.find().to_list(None), await shop.mongo.inventory.find().to_list(None)


async def _restore(shop: Shop, orders: list[Document], inventory: list[Document]) -> None:
    for collection, documents in ((shop.mongo.orders, orders), (shop.mongo.inventory, inventory)):
        await collection.delete_many({})
        await collection.insert_many(documents)
