"""The page without a worker, or with one whose compensations fail: it says so, and relies on the state in MongoDB."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.async_api import Route, expect

from app.names import WORKFLOW_ID_PREFIX
from tests.browser.conftest import ApiServer, Desk
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.orders import CHARGING
from tests.kit.shop import Shop
from tests.kit.workflows import REFUND

ACTIONS = {  # the buttons of an order, by status
    "placed": ("Reserve inventory", ["Change address", "Cancel order"]),
    "awaiting_approval": ("Approval", ["Approve", "Reject", "Change address", "Cancel order"]),
    CHARGING: ("Charge payment", ["Change address", "Cancel order"]),
    "charged": ("Create shipment", ["Cancel order"]),
    "shipped": ("Send confirmation", []),
}
NO_WORKER = re.compile("no worker answers", re.IGNORECASE)
UNAVAILABLE = {
    "urn:problem:database-unavailable": "MongoDB",
    "urn:problem:temporal-unavailable": "Temporal",
    "urn:problem:deadline-exceeded": "MongoDB",
}
REVERSED = {"status": "done", "at": datetime.now(UTC), "detail": "-"}


async def test_page_without_worker_says_so_and_offers_the_actions(desk: Desk, shop: Shop, tmp_path: Path) -> None:
    ids = {status: (await shop.start(status=status)).id.removeprefix(WORKFLOW_ID_PREFIX) for status in ACTIONS}
    await shop.place(status="compensating", steps={"reserve_inventory": REVERSED, "charge_payment": REVERSED})
    await shop.place(status="needs_attention", steps={"reserve_inventory": REVERSED})
    await desk.page.clock.install()
    await desk.open()
    for stop, _ in ACTIONS.values():
        await expect(desk.on_board(stop)).to_contain_text("1 order")
    await expect(desk.on_board("Refund payment")).to_contain_text("1 order")
    await expect(desk.on_board("Release inventory")).to_contain_text("1 order, 1 needs attention")
    await desk.page.clock.fast_forward(6_000)
    await expect(desk.board.get_by_role("status")).to_contain_text(NO_WORKER)
    await expect(desk.page.locator("#connection")).to_contain_text(NO_WORKER)
    await desk.picture(tmp_path / "board.png")

    problem = {"type": ""}

    async def answer(route: Route) -> None:
        await route.fulfill(status=503, json=problem)

    await desk.page.route("**/status", answer)
    for problem["type"], server in UNAVAILABLE.items():
        await desk.page.clock.fast_forward(3_000)
        await expect(desk.board.get_by_role("status")).to_contain_text(f"{server} does not answer.")
    await desk.page.unroute("**/status", answer)
    await desk.page.route("**/orders", answer)
    await desk.press("Works Completes at once")
    await expect(desk.news).to_have_text(re.compile("The order may not have been placed: MongoDB does not answer."))
    await desk.page.unroute("**/orders", answer)

    for status, (stop, actions) in ACTIONS.items():
        await desk.page.goto(f"{desk.url}/#/orders/{ids[status]}")
        await expect(desk.view.locator(".stop:is([data-state=next], [data-state=waiting]):visible")).to_contain_text(
            [stop]
        )
        await expect(desk.view.get_by_role("button")).to_have_text(actions)
        await expect(desk.view.get_by_text("Cancel accepted")).to_be_hidden()
    await expect(desk.stop("Send confirmation")).to_contain_text(NO_WORKER)
    await expect(desk.view.locator(".notice").get_by_text(NO_WORKER)).to_be_visible()

    await desk.page.goto(f"{desk.url}/#/orders/{ids['awaiting_approval']}")
    await desk.press("Cancel order")
    await desk.confirm("Cancel order")
    await expect(desk.dialog).to_be_hidden()
    await desk.shows("Awaiting approval")
    await expect(desk.view.get_by_text("Cancel accepted")).to_be_visible()
    await expect(desk.view.get_by_role("button")).to_have_count(0)


async def test_compensation_that_keeps_failing_is_named(desk: Desk, shop: Shop) -> None:
    steps = {"reserve_inventory": REVERSED, "charge_payment": REVERSED}
    refund = Fails()
    async with FaultyGateways(shop, **{REFUND: refund}).worker():
        handle = await shop.start(status="needs_attention", steps=steps, cancellation={"at": datetime.now(UTC)})
        await desk.open(f"#/orders/{handle.id.removeprefix(WORKFLOW_ID_PREFIX)}")
        reason = "the payment service is unavailable"
        await expect(desk.view.get_by_text(f"Refund payment keeps failing: {reason}.")).to_be_visible()
        await expect(desk.stop("Refund payment")).to_contain_text(re.compile(f"attempt [1-9] failed: {reason}; next"))
        refund.times = 0
        await desk.shows("Failed")
    await expect(desk.view.locator(".notice")).to_be_hidden()


async def test_products_are_loaded_a_page_at_a_time(desk: Desk, shop: Shop) -> None:
    price = {"amount": 70_000, "currency": "EUR"}
    skus = [f"X-{number:02}" for number in range(60)]
    await shop.mongo.inventory.insert_many(
        [{"_id": sku, "name": sku, "unit_price": price, "available": 9} for sku in skus]
    )
    await desk.open()
    await desk.unfold()
    rows = desk.page.locator("#products li")
    await expect(rows).to_have_count(50)
    await shop.stock("X-59", available=8)  # not on this page
    await shop.stock("X-00", available=7)
    await expect(rows.filter(has_text="X-00")).to_contain_text("7 in stock")
    await expect(rows).to_have_count(50)
    await desk.press("More products")
    await expect(rows).to_have_count(62)
    await expect(rows.last).to_contain_text("8 in stock")
    await expect(desk.page.get_by_role("button", name="More products")).to_be_hidden()


async def test_page_that_was_away_for_too_long_begins_anew(desk: Desk, api_server: ApiServer, shop: Shop) -> None:
    """A backup was restored in the meantime: without the reset, the older state would count as outdated."""
    order = await shop.place(status="awaiting_approval")
    await desk.open(f"#/orders/{order.order_id}")
    await desk.shows("Awaiting approval")
    await expect(desk.rows.first).to_contain_text("Awaiting approval")
    await api_server.stop()
    await expect(desk.page.get_by_text("Connection lost")).to_be_visible()
    restored = {"status": "placed", "updated_at": datetime.now(UTC) - timedelta(hours=2)}
    await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": restored})

    async def resume_long_ago(route: Route) -> None:
        await route.continue_(headers={**route.request.headers, "last-event-id": "1.1"})

    await desk.page.route("**/orders/events", resume_long_ago)
    await api_server.start()
    await desk.shows("Placed")
    await expect(desk.rows.first).to_contain_text("Placed")
    await expect(desk.rows).to_have_count(1)


async def test_lost_connection_is_noticed_when_the_api_hangs_and_when_the_browser_is_offline(desk: Desk) -> None:
    lost = desk.page.get_by_text("Connection lost")
    await desk.page.clock.install()
    await desk.open()
    async with desk.page.expect_response("**/healthz"):
        await desk.page.clock.fast_forward(5_000)
    await desk.page.clock.fast_forward(4_900)
    await expect(desk.page.locator("#connection")).to_have_text("Live")  # silent, because nothing happens

    async def hang(_: Route) -> None:
        pass

    await desk.page.route("**/healthz", hang)
    async with desk.page.expect_request("**/healthz"):
        await desk.page.clock.fast_forward(5_000)
    await desk.page.clock.fast_forward(4_000)
    await expect(lost).to_be_visible()
    await desk.press("Try now")
    await expect(desk.page.locator("#connection")).to_have_text("Live")

    await desk.page.context.set_offline(True)
    await expect(lost).to_be_visible(timeout=8_000)  # the API would have 9 s to answer
    await desk.page.context.set_offline(False)
    await expect(desk.page.locator("#connection")).to_have_text("Live")
