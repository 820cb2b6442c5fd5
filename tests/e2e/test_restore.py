"""Restore MongoDB from a backup, as docs/operations.md describes. Stock and money stay correct (G3, G5, G6)."""

from __future__ import annotations

import asyncio
import os
import re
import shlex

from app.domain import OrderStatus
from app.mongo import Document
from dev.servers import find_temporal
from dev.stack import ROOT
from tests.kit.orders import ADDRESS
from tests.kit.shop import Shop, build_shop_worker, running_relay
from tests.kit.waiting import eventually

PAGE = ROOT / "docs" / "operations.md"
CARRIER_DOWN = {**ADDRESS, "postal_code": "99999"}


async def test_orders_of_restored_database_continue_and_are_charged_once(shop: Shop) -> None:
    """Gateways and Temporal are not restored. The workflows are terminated, as the page says."""
    await shop.stock(available=10)
    order = await shop.place({"MUG": 2}, shipping_address=CARRIER_DOWN)
    orders, inventory = await _all(shop)
    async with build_shop_worker(shop):
        await shop.workflows.start(order)
        later = await shop.start({"MUG": 1})
        await shop.wait_for_status(order.order_id, OrderStatus.CHARGED)
        await later.result()

    await eventually(shop.workflows.running, lambda running: running == {order.order_id})
    await _terminate_all(shop)
    await eventually(shop.workflows.running, lambda running: not running)
    await _restore(shop, orders, inventory)
    await shop.mongo.orders.update_one({}, {"$set": {"shipping_address": ADDRESS}})  # end of the carrier's outage

    async with build_shop_worker(shop), running_relay(shop):
        restored = await shop.wait_for_status(order.order_id, OrderStatus.COMPLETED)
    assert (await shop.available(), await shop.held()) == (8, 2)
    assert await shop.net_money(order.order_id) == restored.total.amount
    assert await shop.mongo.orders.count_documents({}) == 1


async def _terminate_all(shop: Shop) -> None:
    """Terminate with the command of the page, but only this test's task queue: other tests share the server."""
    (command,) = re.findall(r"^ +temporal (workflow terminate (?:.|\n)*?)\n\n", PAGE.read_text(), re.MULTILINE)
    arguments = shlex.split(
        command.replace("AND", f'AND TaskQueue="{shop.settings.task_queue}" AND').replace("\\\n", "")
    )
    environment = {**os.environ, "TEMPORAL_ADDRESS": shop.client.service_client.config.target_host}
    process = await asyncio.create_subprocess_exec(find_temporal(), *arguments, env=environment)
    assert await process.wait() == 0


async def _all(shop: Shop) -> tuple[list[Document], list[Document]]:
    return await shop.mongo.orders.find().to_list(None), await shop.mongo.inventory.find().to_list(None)


async def _restore(shop: Shop, orders: list[Document], inventory: list[Document]) -> None:
    for collection, documents in ((shop.mongo.orders, orders), (shop.mongo.inventory, inventory)):
        await collection.delete_many({})
        await collection.insert_many(documents)
