"""The guarded writes of the order document: whoever writes late, no order moves backwards."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from app.models import FINAL, MAY_FOLLOW, Failure, OrderStatus, StepName
from app.mongo import Mongo
from app.orders import Orders
from tests.support import order_document, steps_of

S = OrderStatus

# How far an order has come, told apart from `MAY_FOLLOW`: forward, then undoing, then final.
RANK = {
    S.PLACED: 0, S.AWAITING_APPROVAL: 1, S.RESERVED: 2, S.CHARGED: 3, S.SHIPPED: 4,
    S.COMPENSATING: 5, S.NEEDS_ATTENTION: 6,
    S.COMPLETED: 9, S.FAILED: 9, S.CANCELLED: 9,
}  # fmt: skip


@pytest.fixture
def orders(mongo: Mongo) -> Orders:
    return Orders(mongo)


async def _order(mongo: Mongo, **changes: object) -> str:
    document = {**order_document(), **changes}
    await mongo.orders.insert_one(document)
    return str(document["_id"])


@pytest.mark.parametrize("by", ["mark", "step"])
async def test_a_status_never_moves_backwards(mongo: Mongo, orders: Orders, by: str) -> None:
    """Every status on every other, written by a mark and by a step."""
    for before, after in itertools.product(S, MAY_FOLLOW):
        order_id = await _order(mongo, status=before.value)
        if by == "mark":
            await orders.mark(order_id, after, None)
        else:
            await orders.step_done(order_id, StepName.CHARGE_PAYMENT, after, "-")
        now = (await orders.require(order_id)).status
        may = RANK[before] < RANK[after] and not (
            before in {S.COMPENSATING, S.NEEDS_ATTENTION} and after is S.COMPLETED
        )
        assert now is (after if may else before), f"{before} -> {after}"
        assert may == (before in MAY_FOLLOW[after])


async def test_many_writers_at_once(mongo: Mongo, orders: Orders) -> None:
    order_id = await _order(mongo)
    seen: list[OrderStatus] = []

    async def watch() -> None:
        while not seen or seen[-1] not in FINAL:
            seen.append((await orders.require(order_id)).status)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(orders.mark(order_id, status, None) for status in [*MAY_FOLLOW] * 3))
    await asyncio.wait_for(watching, 10)
    assert [RANK[status] for status in seen] == sorted(RANK[status] for status in seen)


async def test_a_step_is_recorded_once_and_undone_once(mongo: Mongo, orders: Orders) -> None:
    order_id = await _order(mongo)
    step = StepName.CHARGE_PAYMENT
    await orders.step_done(order_id, step, S.CHARGED, "first")
    await orders.step_done(order_id, step, S.CHARGED, "again")
    await orders.step_failed(order_id, step, "late")
    (done,) = (await orders.require(order_id)).steps
    assert (done.status, done.detail) == ("done", "first")
    await orders.step_undone(order_id, step, "undone")
    first = (await orders.require(order_id)).steps
    await orders.step_undone(order_id, step, "again")
    await orders.step_done(order_id, step, S.CHARGED, "late")
    await orders.step_failed(order_id, step, "late")
    order = await orders.require(order_id)
    assert order.steps == first
    assert steps_of(order) == {"charge_payment": "undone"}
    assert order.steps[0].detail == "undone"


async def test_the_first_failure_stays(mongo: Mongo, orders: Orders) -> None:
    order_id = await _order(mongo)
    first = Failure(code="cancelled", message="changed my mind")
    await orders.mark(order_id, S.COMPENSATING, first)
    await orders.mark(order_id, S.CANCELLED, Failure(code="payment_declined", message="late"))
    assert (await orders.require(order_id)).failure == first


@pytest.mark.parametrize("text", ["$total", "$$NOW", "$", "a.b", "{$literal: 1}", ""])
async def test_text_is_never_read_as_an_expression(mongo: Mongo, orders: Orders, text: str) -> None:
    """What a service, a customer or an approver wrote may begin with a dollar sign."""
    order_id = await _order(mongo)
    await orders.step_done(order_id, StepName.RESERVE_INVENTORY, S.RESERVED, text)
    await orders.step_failed(order_id, StepName.CHARGE_PAYMENT, text)
    await orders.step_undone(order_id, StepName.CREATE_SHIPMENT, text)
    await orders.mark(order_id, S.CANCELLED, Failure(code="cancelled", message=text))
    order = await orders.require(order_id)
    assert [step.detail for step in order.steps] == [text] * 3
    assert order.failure is not None
    assert order.failure.message == text


async def test_a_document_without_a_status_is_as_good_as_placed(mongo: Mongo, orders: Orders) -> None:
    document = order_document()
    del document["status"]
    await mongo.orders.insert_one(document)
    await orders.step_done(document["_id"], StepName.RESERVE_INVENTORY, S.RESERVED, "reserved")
    assert (await orders.require(document["_id"])).status is S.RESERVED


async def test_an_order_that_is_gone_is_not_made_anew(mongo: Mongo, orders: Orders) -> None:
    await orders.mark("gone", S.CANCELLED, None)
    await orders.step_done("gone", StepName.CHARGE_PAYMENT, S.CHARGED, "-")
    assert await mongo.orders.count_documents({}) == 0
