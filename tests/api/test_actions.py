"""Cancel, approval and change of address. Each answer must match the final state of the order (G7)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from app.domain import STATUS_AFTER, OrderStatus
from app.order_workflows import workflow_id
from app.workflows.steps import COMPENSATABLE_STEPS
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.http import kind_of
from tests.kit.orders import ADDRESS, CHARGING, order_body, steps_of
from tests.kit.shop import Shop, build_shop_worker
from tests.kit.waiting import eventually
from tests.kit.workflows import pause

RACES = 10
# When the cancel of a race is sent: at once, or after the order has reached this status or a later one.
AFTER = [None, *STATUS_AFTER.values()]
NEW_ADDRESS = {**ADDRESS, "city": "Bath"}
LARGE = {"lines": [{"sku": "MUG", "quantity": 50}]}  # needs approval


async def place(api: httpx.AsyncClient, **changes: Any) -> str:
    answer = await api.post("/orders", json=order_body(**changes))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["order_id"])


async def history_of(shop: Shop, order_id: str) -> str:
    return (await shop.handle(order_id).fetch_history()).to_json()


# --- cancel


async def test_cancel_of_waiting_order_compensates_it(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock(available=10)
    order_id = await place(api, payment_method="pm_card_outage")
    await shop.wait_for_status(order_id, CHARGING)
    answer = await api.post(f"/orders/{order_id}/cancel", json={"reason": "found it cheaper"})
    assert (answer.status_code, answer.json()["order_id"]) == (202, order_id)

    order = await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert order.failure is not None
    assert (order.failure.code, order.failure.message) == ("cancelled", "found it cheaper")
    assert not order.cancellable
    assert await shop.available() == 10
    again = await api.post(f"/orders/{order_id}/cancel")
    assert (again.status_code, again.json()["detail"]) == (409, "cannot cancel: the order is cancelled")
    assert kind_of(again) == "too-late-to-cancel"


async def test_cancel_of_completed_order_is_refused(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock()
    order_id = await place(api)
    await shop.wait_for_status(order_id, OrderStatus.COMPLETED)
    assert (await api.post(f"/orders/{order_id}/cancel")).status_code == 409
    assert (await shop.order(order_id)).status is OrderStatus.COMPLETED


async def test_cancel_racing_completion_answers_the_actual_outcome(
    api: httpx.AsyncClient, shop: Shop, worker: None
) -> None:
    await shop.stock(available=RACES * 2)

    async def race(number: int) -> tuple[str, int]:
        order_id = await place(api)
        if reached := AFTER[number % len(AFTER)]:
            await shop.wait_for_status(order_id, *(status for status in AFTER[AFTER.index(reached) :] if status))
        return order_id, (await api.post(f"/orders/{order_id}/cancel")).status_code

    answers: list[tuple[str, int]] = []
    for begin in range(0, RACES, 4):
        answers += await asyncio.gather(*(race(number) for number in range(begin, begin + 4)))
    outcomes: Counter[tuple[int, str]] = Counter()
    for order_id, status in answers:
        order = await shop.wait_for_status(order_id, OrderStatus.COMPLETED, OrderStatus.CANCELLED)
        outcomes[status, order.status] += 1
        assert await shop.net_money(order_id) == (2_000 if order.status is OrderStatus.COMPLETED else 0)
    assert outcomes.keys() <= {(202, "cancelled"), (409, "completed")}, outcomes
    completed = outcomes[409, "completed"]
    assert completed >= RACES / len(AFTER)  # at least the orders that were cancelled after completion
    assert await shop.available() == RACES * 2 - 2 * completed


async def test_simultaneous_cancels_of_one_order_agree(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock(available=2)
    order_id = await place(api, payment_method="pm_card_outage")
    await shop.wait_for_status(order_id, CHARGING)
    answers = await asyncio.gather(*(api.post(f"/orders/{order_id}/cancel") for _ in range(20)))
    # A cancel that arrives after the end gets a 409.
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert answers[0].status_code == 202
    await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert await shop.available() == 2


async def test_cancel_without_worker_takes_effect_later(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock(available=2)
    order_id = await place(api)
    answer = await api.post(f"/orders/{order_id}/cancel")
    assert answer.status_code == 202
    async with build_shop_worker(shop):
        order = await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert steps_of(order).get("charge_payment") != "done"
    assert await shop.available() == 2


async def test_cancel_of_shipped_order_without_worker_is_refused(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    order = await shop.place(status="shipped")
    await shop.workflows.start(order)
    answer = await api.post(f"/orders/{order.order_id}/cancel")
    assert (answer.status_code, answer.json()["detail"]) == (409, "cannot cancel: the order is shipped")


async def test_cancel_with_lost_signal_takes_effect(api: httpx.AsyncClient, shop: Shop) -> None:
    """The next attempt of any step finds the cancel in MongoDB."""
    await shop.stock(available=2)
    order_id = await place(api, payment_method="pm_card_outage")
    async with build_shop_worker(shop):
        await shop.wait_for_status(order_id, CHARGING)
        order = await shop.orders.request_cancellation(order_id, "my neighbour Jim")
        assert not order.cancellable
        order = await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert order.failure is not None
    assert (order.failure.code, order.failure.message) == ("cancelled", "my neighbour Jim")
    assert "Jim" not in await history_of(shop, order_id)


async def test_accepted_cancel_answers_not_cancellable(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    answer = await api.post(f"/orders/{await place(api)}/cancel", json={"reason": "private"})
    assert answer.json()["cancellable"] is False


async def test_cancel_and_rejection_reasons_stay_out_of_the_history(
    api: httpx.AsyncClient, shop: Shop, worker: None
) -> None:
    await shop.stock()
    order_id = await place(api, payment_method="pm_card_outage")
    await shop.wait_for_status(order_id, CHARGING)
    await api.post(f"/orders/{order_id}/cancel", json={"reason": "my neighbour Jim"})
    await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert "Jim" not in await history_of(shop, order_id)
    order_id = await place(api, **LARGE)
    await shop.wait_for_status(order_id, OrderStatus.AWAITING_APPROVAL)
    await api.post(f"/orders/{order_id}/approval", json={"approved": False, "reason": "my neighbour Jim"})
    order = await shop.wait_for_status(order_id, OrderStatus.FAILED)
    assert order.failure is not None
    assert order.failure.message == "my neighbour Jim"
    assert "Jim" not in await history_of(shop, order_id)


async def test_cancel_before_workflow_start_starts_and_cancels_it(
    api: httpx.AsyncClient, shop: Shop, worker: None
) -> None:
    """Temporal was down when the order was placed, and no relay runs: the signal starts the workflow."""
    await shop.stock(available=2)
    order = await shop.place()
    assert (await api.post(f"/orders/{order.order_id}/cancel")).status_code == 202
    await shop.wait_for_status(order.order_id, OrderStatus.CANCELLED)
    assert await shop.net_money(order.order_id) == 0
    assert await shop.available() == 2


# --- approval


@pytest.mark.parametrize(("approved", "ending"), [(True, OrderStatus.COMPLETED), (False, OrderStatus.FAILED)])
async def test_large_order_awaits_approval(
    api: httpx.AsyncClient, shop: Shop, worker: None, approved: bool, ending: OrderStatus
) -> None:
    await shop.stock()
    order_id = await place(api, **LARGE)
    await shop.wait_for_status(order_id, OrderStatus.AWAITING_APPROVAL)
    answer = await api.post(f"/orders/{order_id}/approval", json={"approved": approved, "reason": "credit check"})
    assert answer.status_code == 202
    opposite = await api.post(f"/orders/{order_id}/approval", json={"approved": not approved})
    assert (opposite.status_code, kind_of(opposite)) in ((409, "already-decided"), (409, "not-awaiting-approval"))
    order = await shop.wait_for_status(order_id, OrderStatus.COMPLETED, OrderStatus.FAILED)
    assert order.status is ending
    assert (order.failure and order.failure.code) == (None if approved else "not_approved")


async def test_simultaneous_cancel_and_approval_agree(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    """An order that is being approved can still be cancelled, so the cancel always succeeds."""
    await shop.stock(price=50_000)
    for _ in range(2):
        order_id = (await api.post("/orders", json=order_body())).json()["order_id"]
        await shop.wait_for_status(order_id, OrderStatus.AWAITING_APPROVAL)
        cancelled, approved = await asyncio.gather(
            api.post(f"/orders/{order_id}/cancel"), api.post(f"/orders/{order_id}/approval", json={"approved": True})
        )
        assert cancelled.status_code == 202
        ended = await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
        assert await shop.net_money(ended.order_id) == 0
        if approved.status_code == 202:  # approved first, then cancelled before shipment
            assert ended.approval
            assert ended.approval.approved
        else:
            assert approved.status_code == 409


async def test_simultaneous_decisions_first_one_counts(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock(available=1_000)
    for _ in range(3):
        order_id = await place(api, **LARGE)
        await shop.wait_for_status(order_id, OrderStatus.AWAITING_APPROVAL)
        yes, no = await asyncio.gather(
            *(api.post(f"/orders/{order_id}/approval", json={"approved": approved}) for approved in (True, False))
        )
        order = await shop.wait_for_status(order_id, OrderStatus.COMPLETED, OrderStatus.FAILED)
        expected = (202, 409) if order.status is OrderStatus.COMPLETED else (409, 202)
        assert (yes.status_code, no.status_code) == expected
        assert kind_of(no if yes.is_success else yes) in {"already-decided", "not-awaiting-approval"}


async def test_approval_of_order_that_awaits_none_is_refused(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock()
    order_id = await place(api, payment_method="pm_card_outage")
    await shop.wait_for_status(order_id, CHARGING)
    refused = await api.post(f"/orders/{order_id}/approval", json={"approved": True})
    assert (refused.status_code, kind_of(refused)) == (409, "not-awaiting-approval")
    assert (await api.post("/orders/ord_none/approval", json={"approved": True})).status_code == 404


# --- address


async def test_address_change_before_shipping_is_applied(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock()
    order_id = await place(api, payment_method="pm_card_outage")
    await shop.wait_for_status(order_id, CHARGING)
    answer = await api.put(f"/orders/{order_id}/shipping-address", json=NEW_ADDRESS)
    assert (answer.status_code, answer.json()["shipping_address"]) == (200, NEW_ADDRESS)
    assert (await shop.order(order_id)).shipping_address.city == NEW_ADDRESS["city"]
    assert NEW_ADDRESS["city"] not in await history_of(shop, order_id)
    await api.post(f"/orders/{order_id}/cancel")
    await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert (await api.put(f"/orders/{order_id}/shipping-address", json=ADDRESS)).status_code == 409


async def test_address_change_after_charge_is_refused(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock()
    order_id = await place(api, shipping_address={**ADDRESS, "postal_code": "99999"})  # the carrier is down
    await shop.wait_for_status(order_id, OrderStatus.CHARGED)
    answer = await api.put(f"/orders/{order_id}/shipping-address", json=NEW_ADDRESS)
    assert (answer.status_code, answer.json()["detail"]) == (409, "cannot change the address: the order is charged")
    assert kind_of(answer) == "address-not-changeable"
    assert (await shop.order(order_id)).shipping_address.city == ADDRESS["city"]
    missing = await api.put("/orders/ord_none/shipping-address", json=NEW_ADDRESS)
    assert missing.status_code == 404


async def test_address_change_before_workflow_start_is_applied(
    api: httpx.AsyncClient, shop: Shop, worker: None
) -> None:
    await shop.stock()
    order = await shop.place(payment_method="pm_card_outage")
    answer = await api.put(f"/orders/{order.order_id}/shipping-address", json=NEW_ADDRESS)
    assert (answer.status_code, answer.json()["shipping_address"]) == (200, NEW_ADDRESS)


async def test_address_change_without_worker_answers_503(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    order_id = await place(api)
    answer = await api.put(f"/orders/{order_id}/shipping-address", json=NEW_ADDRESS)
    assert (answer.status_code, kind_of(answer), "Retry-After" in answer.headers) == (503, "no-worker", True)


@pytest.mark.parametrize("done", [True, False], ids=["after the write", "before the write"])
async def test_address_change_whose_workflow_is_terminated_is_not_refused(
    api: httpx.AsyncClient, shop: Shop, done: bool
) -> None:
    """A 409 would be final, but the change has been applied, or a late attempt applies it."""
    await shop.stock()
    applying = Pause(done=done)
    async with FaultyGateways(shop, ChangeShippingAddress=applying).worker():
        order_id = await place(api, payment_method="pm_card_outage")
        await shop.wait_for_status(order_id, CHARGING)
        change = asyncio.create_task(api.put(f"/orders/{order_id}/shipping-address", json=NEW_ADDRESS))
        reached = asyncio.create_task(applying.reached.wait())
        await asyncio.wait({reached, change}, return_when=asyncio.FIRST_COMPLETED)
        assert reached.done(), change.result().text
        await shop.handle(order_id).terminate()
        answer = await change
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        applying.resume.set()
        again = await api.put(f"/orders/{order_id}/shipping-address", json=NEW_ADDRESS)
        assert (again.status_code, again.json()["shipping_address"]) == (200, NEW_ADDRESS)


async def test_cancel_of_open_order_with_closed_workflow_takes_effect(
    api: httpx.AsyncClient, shop: Shop, worker: None
) -> None:
    """This happens when MongoDB is restored from a backup: the order is open again, so a cancel is accepted."""
    await shop.stock(available=10)
    order_id = await place(api)
    await shop.wait_for_status(order_id, OrderStatus.COMPLETED)
    await shop.handle(order_id).result()
    await shop.mongo.orders.update_one({"_id": order_id}, {"$set": {"status": "reserved"}})
    assert (await api.post(f"/orders/{order_id}/cancel")).status_code == 202
    await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert (await shop.available(), await shop.net_money(order_id)) == (10, 0)


# --- status


async def test_status_answers_the_state_of_the_workflow(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock()
    order_id = await place(api, payment_method="pm_card_outage")

    async def status() -> dict[str, Any]:
        return dict((await api.get(f"/orders/{order_id}/status")).json())

    def waits_again(status_now: dict[str, Any]) -> bool:
        return any(each["attempt"] >= 3 and each["state"] == "waiting" for each in status_now.get("activities", []))

    status_now = await eventually(status, waits_again)
    assert (status_now["order_id"], status_now["step"], status_now["status"]) == (order_id, "charge_payment", CHARGING)
    [charge] = status_now["activities"]
    assert (charge["activity"], charge["step"], charge["compensates"]) == ("ChargePayment", "charge_payment", False)
    assert charge["last_failure"] == {"code": "unavailable", "message": "the payment service is unavailable"}
    assert charge["next_attempt_at"].endswith("Z")
    await pause(shop.handle(order_id), "ChargePayment")
    [charge] = (await eventually(status, lambda now: now["activities"][0]["state"] == "paused"))["activities"]
    assert charge["next_attempt_at"] is None
    await shop.client.get_workflow_handle(workflow_id(order_id)).cancel()
    await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    # MongoDB has the status before the workflow hears that it was written.
    status_now = await eventually(status, lambda now: (now["status"], now["activities"]) == ("cancelled", []))
    assert (status_now["cancel_requested"], status_now["failure_code"]) == (True, "cancelled")
    assert status_now["compensated"] == [step.name for step in reversed(COMPENSATABLE_STEPS)]


@pytest.mark.usefixtures("worker")
async def test_status_of_order_without_workflow_starts_it(api: httpx.AsyncClient, shop: Shop) -> None:
    """The answer to a POST does not wait for the workflow, so the next request may come before it."""
    await shop.stock()
    order_id = (await shop.place()).order_id
    answer = await api.get(f"/orders/{order_id}/status")
    assert (answer.status_code, answer.json()["order_id"]) == (200, order_id)


async def test_status_without_worker_answers_503(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    order_id = await place(api)
    answer = await api.get(f"/orders/{order_id}/status")
    assert (answer.status_code, kind_of(answer), answer.headers["Retry-After"]) == (503, "no-worker", "2")
    unstarted = (await shop.place()).order_id  # the relay starts it, in a worker
    assert kind_of(await api.get(f"/orders/{unstarted}/status")) == "no-worker"
    assert (await api.get(f"/orders/{order_id}")).status_code == 200
