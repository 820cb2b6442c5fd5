"""Conditional writes of the order document: a late write never moves a status backwards or overwrites a record."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.activities.tracking import Tracking
from app.domain import (
    ALLOWED_FROM,
    NOT_APPROVED,
    STATUS_AFTER,
    TERMINAL,
    Attempt,
    Failure,
    NotFound,
    OrderStatus,
    StepChange,
    StepEvent,
    StepName,
    StepStatus,
    next_status,
)
from app.messages import ApprovalDecision, OrderState, StatusUpdate
from app.mongo import Document, Mongo
from app.orders import OrderRepository
from tests.kit.attempts import attempt
from tests.kit.orders import order_document, steps_of
from tests.kit.shop import dependencies

S = OrderStatus
CHARGE = StepName.CHARGE_PAYMENT

# The way of an order forward, then back; defined independently of `ALLOWED_FROM`.
FORWARD = [S.PLACED, S.AWAITING_APPROVAL, *(STATUS_AFTER[step] for step in StepName)]
BACK = [S.COMPENSATING, S.NEEDS_ATTENTION, S.FAILED, S.CANCELLED]

THEN = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = Attempt(THEN, 1)
DECLINED = Failure(code="declined", message="no")


@pytest.fixture
def orders(mongo: Mongo) -> OrderRepository:
    return OrderRepository(mongo)


async def _order(mongo: Mongo, **changes: Any) -> str:
    document = {**order_document(), **changes}
    await mongo.orders.insert_one(document)
    return str(document["_id"])


async def _document(mongo: Mongo, order_id: str) -> Document:
    document = await mongo.orders.find_one({"_id": order_id})
    assert document is not None
    return document


def _change(event: StepEvent, detail: str = "-", step: StepName = CHARGE, attempts: int = 1) -> StepChange:
    failure = Failure(code="declined", message=detail) if event is StepEvent.DECLINED else None
    return StepChange(step, event, detail, failure, Attempt(THEN, attempts))


def _may_follow(before: OrderStatus, after: OrderStatus) -> bool:
    if after in FORWARD:
        return before in FORWARD[: FORWARD.index(after)]
    if after is S.COMPENSATING:
        return before in FORWARD[: FORWARD.index(S.SHIPPED)]
    return before in BACK[: BACK.index(after)] and before not in TERMINAL


# --- steps


@pytest.mark.parametrize("step", StepName)
async def test_step_never_moves_a_status_backwards(mongo: Mongo, orders: OrderRepository, step: StepName) -> None:
    for before in S:
        order_id = await _order(mongo, status=before.value)
        await orders.change_step(order_id, _change(StepEvent.SUCCEEDED, step=step))
        now = (await orders.get(order_id)).status
        assert now is (STATUS_AFTER[step] if _may_follow(before, STATUS_AFTER[step]) else before), before


async def test_status_update_never_moves_a_status_backwards(mongo: Mongo, orders: OrderRepository) -> None:
    for before, after in itertools.product(S, ALLOWED_FROM):
        order_id = await _order(mongo, status=before.value)
        state = await orders.update_status(StatusUpdate(order_id=order_id, status=after))
        now = (await orders.get(order_id)).status
        assert now is (after if _may_follow(before, after) else before), f"{before} -> {after}"
        assert state.status is now
        assert _may_follow(before, after) == (before in ALLOWED_FROM[after])


async def test_concurrent_writers_move_status_forward_only(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo)
    seen: list[OrderStatus] = []

    async def watch() -> None:
        while not seen or seen[-1] not in TERMINAL:
            seen.append((await orders.get(order_id)).status)

    watching = asyncio.create_task(watch())
    # Without shipped and completed: such an order cannot be compensated.
    statuses = [status for status in ALLOWED_FROM if status not in {S.SHIPPED, *TERMINAL}]
    updates = [StatusUpdate(order_id=order_id, status=status) for status in statuses * 3]
    await asyncio.gather(*map(orders.update_status, updates))
    for status in (S.COMPENSATING, S.FAILED, S.CANCELLED):
        await orders.update_status(StatusUpdate(order_id=order_id, status=status))
    await asyncio.wait_for(watching, 10)
    assert seen[-1] is S.FAILED
    assert seen == sorted(seen, key=[*FORWARD, *BACK].index)


@pytest.mark.parametrize("event", StepEvent)
@pytest.mark.parametrize("before", [None, *StepStatus])
async def test_conditional_write_matches_the_state_machine(
    mongo: Mongo, orders: OrderRepository, before: StepStatus | None, event: StepEvent
) -> None:
    record = {"status": before, "at": THEN, "detail": "before", "attempts": 5, "first_attempt_at": THEN}
    order_id = await _order(mongo, steps={CHARGE: record} if before else {})
    after = next_status(before, event)
    if after is None:
        with pytest.raises(KeyError):  # cannot happen: a compensation writes the fence first
            await orders.change_step(order_id, _change(event, "after", attempts=9))
    else:
        now, _ = await orders.change_step(order_id, _change(event, "after", attempts=9))
        assert now.status is after
    document = await _document(mongo, order_id)
    if after is before:  # a late event changes nothing
        assert document.get("steps", {}).get(CHARGE) == (record if before else None)
        assert document["status"] == "placed"
        return
    written = document["steps"][CHARGE]
    assert written["status"] == after
    assert document["status"] == ("charged" if event is StepEvent.SUCCEEDED else "placed")
    if event is StepEvent.COMPENSATED:
        assert abs(written.pop("compensated_at") - datetime.now(UTC)) < timedelta(minutes=1)
        assert written == {**record, "status": "compensated"}
    else:
        assert abs(written["at"] - datetime.now(UTC)) < timedelta(minutes=1)
        assert written["detail"] == "after"
        assert ("attempts" in written) == ("first_attempt_at" in written) == (event is not StepEvent.FENCED)
        assert ("failure" in written) == (event is StepEvent.DECLINED)


async def test_second_record_of_a_step_is_ignored(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo)
    await orders.change_step(order_id, _change(StepEvent.SUCCEEDED, "first", attempts=2))
    await orders.change_step(order_id, _change(StepEvent.SUCCEEDED, "again", attempts=3))
    await orders.change_step(order_id, _change(StepEvent.DECLINED, "late"))
    (done,) = (await orders.get(order_id)).steps
    assert (done.status, done.detail, done.attempts, done.first_attempt_at) == ("done", "first", 2, THEN)
    await orders.change_step(order_id, _change(StepEvent.COMPENSATED, ""))
    (compensated,) = (await orders.get(order_id)).steps
    assert compensated.compensated_at is not None
    assert compensated == done.model_copy(
        update={"status": StepStatus.COMPENSATED, "compensated_at": compensated.compensated_at}
    )
    for event in StepEvent:
        await orders.change_step(order_id, _change(event, "late", attempts=4))
    order = await orders.get(order_id)
    assert order.steps == [compensated]
    assert steps_of(order) == {"charge_payment": "compensated"}


async def test_late_event_keeps_time_of_last_change(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo)
    await orders.change_step(order_id, _change(StepEvent.SUCCEEDED))
    before = await _document(mongo, order_id)
    await orders.change_step(order_id, _change(StepEvent.FENCED))
    assert await _document(mongo, order_id) == {**before, "status_before": before["status"]}


@pytest.mark.parametrize("text", ["$total", "$$NOW", "$", "a.b", "{$literal: 1}", ""])
async def test_text_with_dollar_sign_is_stored_literally(mongo: Mongo, orders: OrderRepository, text: str) -> None:
    """Text from services, customers and approvers may contain MongoDB expressions."""
    order_id = await _order(mongo, status="awaiting_approval")
    await orders.decide_approval(order_id, approved=True, reason=text)
    await orders.change_step(order_id, _change(StepEvent.SUCCEEDED, text, StepName.RESERVE_INVENTORY))
    await orders.change_step(order_id, _change(StepEvent.DECLINED, text))
    await orders.request_cancellation(order_id, text)
    failure = Failure(code="payment_declined", message="late")
    await orders.update_status(StatusUpdate(order_id=order_id, status=S.COMPENSATING, failure=failure))
    order = await orders.get(order_id)
    assert [step.detail for step in order.steps] == [text] * 2
    assert order.steps[1].failure == Failure(code="declined", message=text)
    assert order.failure is not None
    assert order.failure.message == text
    assert order.approval is not None
    assert order.approval.reason == text

    other = await _order(mongo)
    await orders.update_status(
        StatusUpdate(order_id=other, status=S.COMPENSATING, failure=Failure(code=text, message=text))
    )
    assert (await orders.get(other)).failure == Failure(code=text, message=text)


async def test_document_without_status_counts_as_placed(mongo: Mongo, orders: OrderRepository) -> None:
    for work in (
        lambda order_id: orders.change_step(order_id, _change(StepEvent.SUCCEEDED)),
        lambda order_id: orders.update_status(StatusUpdate(order_id=order_id, status=S.CHARGED)),
    ):
        document = order_document()
        del document["status"]
        await mongo.orders.insert_one(document)
        await work(document["_id"])
        assert (await orders.get(document["_id"])).status is S.CHARGED


async def test_null_cancellation_of_another_program_is_none(mongo: Mongo, orders: OrderRepository) -> None:
    """Else the order would be shipped and paid, keep its status, and could then be cancelled."""
    order_id = await _order(mongo, cancellation=None)
    await orders.change_step(order_id, _change(StepEvent.SUCCEEDED))
    assert (await orders.get(order_id)).status is S.CHARGED
    state = await orders.update_status(StatusUpdate(order_id=order_id, status=S.COMPENSATING, failure=DECLINED))
    assert state.failure_code == "declined"


async def test_update_of_removed_order_does_not_recreate_it(mongo: Mongo, orders: OrderRepository) -> None:
    update = StatusUpdate(order_id="gone", status=S.CANCELLED, failure=DECLINED)
    assert await orders.update_status(update) == OrderState(status=S.CANCELLED, failure_code="declined")
    with pytest.raises(NotFound):
        await orders.change_step("gone", _change(StepEvent.SUCCEEDED))
    with pytest.raises(NotFound):
        await orders.request_cancellation("gone", None)
    with pytest.raises(NotFound):
        await orders.decide_approval("gone", approved=True)
    assert await mongo.orders.count_documents({}) == 0


# --- cancels


@pytest.mark.parametrize("status", S)
async def test_cancel_is_accepted_before_the_point_of_no_return(
    mongo: Mongo, orders: OrderRepository, status: OrderStatus
) -> None:
    order_id = await _order(mongo, status=status.value)
    order = await orders.request_cancellation(order_id, "changed my mind")
    assert (order.cancellation is not None) == (status in FORWARD[: FORWARD.index(S.SHIPPED)])
    assert order == await orders.get(order_id)
    assert order.status is status
    assert not order.cancellable


async def test_second_cancel_keeps_first_reason(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo)
    first = await orders.request_cancellation(order_id, "changed my mind")
    assert (await orders.request_cancellation(order_id, "too slow")).cancellation == first.cancellation


@pytest.mark.parametrize("step", StepName)
async def test_step_done_after_cancel_does_not_change_status(
    mongo: Mongo, orders: OrderRepository, step: StepName
) -> None:
    order_id = await _order(mongo)
    await orders.request_cancellation(order_id, "changed my mind")
    record, stop_reason = await orders.change_step(order_id, _change(StepEvent.SUCCEEDED, step=step))
    assert record.status is StepStatus.DONE
    assert stop_reason == Failure(code="cancelled", message="cancelled")
    assert (await orders.get(order_id)).status is S.PLACED


async def test_simultaneous_cancel_and_shipment_agree(mongo: Mongo, orders: OrderRepository) -> None:
    """Either the order is shipped and the cancel refused, or the cancel is accepted and the order not shipped."""
    order_ids = [await _order(mongo, status="charged") for _ in range(50)]

    async def race(order_id: str) -> bool:
        shipment = _change(StepEvent.SUCCEEDED, step=StepName.CREATE_SHIPMENT)
        (_, stop_reason), order = await asyncio.gather(
            orders.change_step(order_id, shipment), orders.request_cancellation(order_id, None)
        )
        assert (stop_reason is not None) == (order.cancellation is not None)
        now = await orders.get(order_id)
        assert (now.status, now.cancellation is None) in {(S.SHIPPED, True), (S.CHARGED, False)}
        return now.cancellation is None

    await asyncio.gather(*map(race, order_ids))


# --- status updates by the workflow


async def test_second_failure_is_ignored(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo)
    first = Failure(code="payment_declined", message="no")
    late = Failure(code="payment_unavailable", message="late")
    for status, failure in ((S.COMPENSATING, first), (S.COMPENSATING, late), (S.FAILED, late), (S.CANCELLED, late)):
        state = await orders.update_status(StatusUpdate(order_id=order_id, status=status, failure=failure))
        assert state.failure_code == "payment_declined"
    assert (await orders.get(order_id)).failure == first


async def test_failure_of_late_status_is_not_written(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo, status="shipped")
    state = await orders.update_status(StatusUpdate(order_id=order_id, status=S.COMPENSATING, failure=DECLINED))
    assert state == OrderState(status=S.SHIPPED)
    assert (await orders.get(order_id)).failure is None


@pytest.mark.parametrize(("reason", "message"), [("changed my mind", "changed my mind"), (None, "cancelled")])
async def test_accepted_cancel_wins_over_simultaneous_failure(
    mongo: Mongo, orders: OrderRepository, reason: str | None, message: str
) -> None:
    order_id = await _order(mongo, status="reserved")
    await orders.request_cancellation(order_id, reason)
    state = await orders.update_status(StatusUpdate(order_id=order_id, status=S.COMPENSATING, failure=DECLINED))
    assert state == OrderState(status=S.COMPENSATING, failure_code="cancelled")
    assert (await orders.get(order_id)).failure == Failure(code="cancelled", message=message)


async def test_update_status_returns_the_actual_state(mongo: Mongo) -> None:
    """The workflow relies on the returned state."""
    tracking = Tracking(dependencies(mongo))
    order_id = await _order(mongo)

    async def update(status: OrderStatus, **more: Any) -> OrderState:
        return await attempt(tracking.update_status, StatusUpdate(order_id=order_id, status=status, **more))

    decision = ApprovalDecision(approved=True)
    assert await update(S.AWAITING_APPROVAL) == OrderState(status=S.AWAITING_APPROVAL)
    assert await update(S.AWAITING_APPROVAL, approval=decision) == OrderState(status=S.AWAITING_APPROVAL, approved=True)
    failed = OrderState(status=S.COMPENSATING, failure_code="declined", approved=True)
    assert await update(S.COMPENSATING, failure=DECLINED) == failed
    assert await update(S.AWAITING_APPROVAL) == failed
    assert await update(S.SHIPPED) == failed
    final = OrderState(status=S.FAILED, failure_code="declined", approved=True)
    assert await update(S.FAILED) == final
    assert await update(S.CANCELLED) == final
    assert await update(S.COMPENSATING) == final


# --- approvals

YES, NO = ApprovalDecision(approved=True), ApprovalDecision(approved=False)


@pytest.mark.parametrize("first", [YES, NO])
async def test_second_decision_is_ignored(mongo: Mongo, orders: OrderRepository, first: ApprovalDecision) -> None:
    """The first decision may be recorded by the API or by the workflow."""
    for second in (YES, NO):
        by_api, by_workflow = [await _order(mongo, status="awaiting_approval") for _ in range(2)]
        decided = (await orders.decide_approval(by_api, first.approved, "as I said")).approval
        await orders.update_status(StatusUpdate(order_id=by_workflow, status=S.AWAITING_APPROVAL, approval=first))
        for order_id in (by_api, by_workflow):
            assert (await orders.decide_approval(order_id, second.approved)).approval == (
                await orders.get(order_id)
            ).approval
            update = StatusUpdate(order_id=order_id, status=S.AWAITING_APPROVAL, approval=second)
            assert (await orders.update_status(update)).approved is first.approved
            approval = (await orders.get(order_id)).approval
            assert approval is not None
            assert (approval.approved, approval.reason) == (first.approved, "as I said" if order_id == by_api else None)
        assert (await orders.get(by_api)).approval == decided


@pytest.mark.parametrize("status", S)
async def test_decision_is_accepted_only_while_awaiting_approval(
    mongo: Mongo, orders: OrderRepository, status: OrderStatus
) -> None:
    order_id = await _order(mongo, status=status.value)
    order = await orders.decide_approval(order_id, approved=True)
    assert (order.approval is not None) == (status is S.AWAITING_APPROVAL)
    other = await _order(mongo, status=status.value)
    await orders.update_status(StatusUpdate(order_id=other, status=S.AWAITING_APPROVAL, approval=YES))
    assert ((await orders.get(other)).approval is not None) == (status is S.AWAITING_APPROVAL)


async def test_decision_after_cancel_is_refused(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo, status="awaiting_approval")
    await orders.request_cancellation(order_id, None)
    assert (await orders.decide_approval(order_id, approved=True)).approval is None
    update = StatusUpdate(order_id=order_id, status=S.AWAITING_APPROVAL, approval=YES)
    assert (await orders.update_status(update)).approved is None
    assert (await orders.get(order_id)).approval is None


async def test_rejection_reason_is_stored_only_in_mongodb(mongo: Mongo, orders: OrderRepository) -> None:
    order_id = await _order(mongo, status="awaiting_approval")
    await orders.decide_approval(order_id, approved=False, reason="too much")
    failure = Failure(code=NOT_APPROVED, message="not approved")
    state = await orders.update_status(StatusUpdate(order_id=order_id, status=S.COMPENSATING, failure=failure))
    assert state == OrderState(status=S.COMPENSATING, failure_code=NOT_APPROVED, approved=False)
    assert "too much" not in state.model_dump_json()  # the state is stored in the workflow history
    assert (await orders.get(order_id)).failure == Failure(code=NOT_APPROVED, message="too much")
