"""The saga, with skipped time, on the real servers."""

from __future__ import annotations

import time

from temporalio.testing import TimeSkipper

from app.models import OrderStatus
from tests.support import Shop, build_shop_worker, steps_of


async def test_an_order_completes(shop: Shop, worker: None) -> None:
    await shop.stock(available=10)
    handle = await shop.start({"MUG": 3})
    result = await handle.result()
    order = await shop.order(handle)

    assert result.status is order.status is OrderStatus.COMPLETED
    assert steps_of(order) == dict.fromkeys(
        ["reserve_inventory", "charge_payment", "create_shipment", "send_confirmation"], "done"
    )
    assert (await shop.available(), await shop.held()) == (7, 3)
    assert await shop.net_money(order.order_id) == order.total.amount == 3_000


async def test_no_answer_within_a_day_is_a_no(shop: Shop, skipper: TimeSkipper) -> None:
    skipping = shop.with_client(skipper.client)
    async with build_shop_worker(skipping):
        await shop.stock(price=50_000)
        began = time.monotonic()
        handle = await skipping.start({"MUG": 1}, price=50_000)
        result = await handle.result()
        assert result.failure is not None
        assert (result.status, result.failure.code) == (OrderStatus.FAILED, "not_approved")
        assert time.monotonic() - began < 1
