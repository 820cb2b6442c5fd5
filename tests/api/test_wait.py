"""`Prefer: wait=N`: the answer to a POST waits for the final status, and takes no longer than the client prefers."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.api import admission, hub, route
from app.api.hub import each
from app.settings import ApiSettings
from dev.servers import Server
from tests.kit.faults import change_streams
from tests.kit.http import serve
from tests.kit.orders import CHARGING, order_body
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

APPLIED = "Preference-Applied"


def wait(preference: str, key: str = "") -> dict[str, str]:
    return {"Prefer": preference} | ({"Idempotency-Key": key} if key else {})


@pytest.mark.usefixtures("worker")
async def test_post_and_cancel_that_wait_answer_the_final_order(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    placed = await api.post("/orders", json=order_body(), headers=wait("wait=20", "key"))
    assert (placed.status_code, placed.headers[APPLIED], placed.json()["status"]) == (202, "wait=20", "completed")
    again = await api.post("/orders", json=order_body(), headers=wait("wait=20", "key"))
    assert (again.json(), again.headers["Idempotency-Replayed"]) == (placed.json(), "true")

    body = order_body(payment_method="pm_card_outage")
    order_id = (await api.post("/orders", json=body)).json()["order_id"]
    await shop.wait_for_status(order_id, CHARGING)
    cancelled = await api.post(f"/orders/{order_id}/cancel", headers=wait("wait=20"))
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert cancelled.json() == (await api.get(f"/orders/{order_id}")).json()


@pytest.mark.usefixtures("worker")
async def test_post_answers_the_latest_state_when_its_wait_ends(
    api: httpx.AsyncClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is longer than the deadline of any other request."""
    monkeypatch.setattr(route, "DEADLINE", 2.0)
    await shop.stock()
    answer = await api.post("/orders", json=order_body(payment_method="pm_card_outage"), headers=wait("wait=3"))
    assert (answer.status_code, answer.headers[APPLIED]) == (202, "wait=3")
    assert answer.json()["status"] == CHARGING


async def test_only_a_valid_preference_applies(
    api: httpx.AsyncClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.stock()
    order = await shop.place()
    monkeypatch.setattr(hub.Subscription, "messages", lambda *_: each([]))
    for preference, applied in {
        "respond-async, WAIT = 99": "wait=30",
        'wait="5"; foo': "wait=5",
        "wait=0": None,
        "wait=x": None,
        "wait=-1": None,
        "await=5": None,
    }.items():
        answer = await api.post(f"/orders/{order.order_id}/cancel", headers=wait(preference))
        assert (answer.status_code, answer.headers.get(APPLIED)) == (202, applied), preference


async def test_post_that_cannot_wait_answers_at_once(
    api: httpx.AsyncClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_STREAMS", 0)
    await shop.stock()
    answer = await api.post("/orders", json=order_body(), headers=wait("wait=30"))
    assert (answer.status_code, answer.json()["status"], APPLIED in answer.headers) == (202, "placed", False)


async def test_client_that_leaves_ends_its_wait(api: httpx.AsyncClient, shop: Shop) -> None:
    """It counts among the streams of its caller: those of a client that tries again must not add up."""
    await shop.stock()
    waiting = asyncio.create_task(api.post("/orders", json=order_body(), headers=wait("wait=30")))
    assert await eventually(lambda: change_streams(shop.mongo), lambda count: count == 1) == 1
    waiting.cancel()
    assert await eventually(lambda: change_streams(shop.mongo), lambda count: count == 0, within=10) == 0


async def test_accepted_cancel_says_so_at_once(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    order = await shop.place(status="charged")
    cancelled = (await api.post(f"/orders/{order.order_id}/cancel")).json()
    assert (cancelled["status"], cancelled["cancel_requested"], cancelled["cancellable"]) == ("charged", True, False)


async def test_posts_that_wait_leave_places_to_other_requests(
    settings: ApiSettings, temporal_server: Server, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker runs, so the order does not become final."""
    monkeypatch.setattr(admission, "MAX_IN_PROGRESS", 1)
    await shop.stock()
    async with serve(settings, temporal_server.address) as api:
        waiting = asyncio.create_task(api.post("/orders", json=order_body(), headers=wait("wait=20")))
        listed = await eventually(lambda: api.get("/orders"), lambda answer: bool(answer.json()["items"]))
        assert listed.status_code == 200
        assert not waiting.done()
        waiting.cancel()
