"""The page without a worker: it relies on `GET /saga` and the state in MongoDB."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Route, expect

from tests.browser.conftest import ApiServer, Desk
from tests.kit.shop import Shop


@pytest.mark.parametrize(
    ("status", "step", "actions"),
    [
        ("placed", "Reserve inventory", ["Change address", "Cancel order"]),
        ("awaiting_approval", "Approval", ["Approve", "Reject", "Change address", "Cancel order"]),
        ("reserved", "Charge payment", ["Change address", "Cancel order"]),
        ("charged", "Create shipment", ["Cancel order"]),
        ("shipped", "Send confirmation", []),
    ],
)
async def test_order_without_worker_shows_running_step_and_actions(
    desk: Desk, shop: Shop, status: str, step: str, actions: list[str]
) -> None:
    order = await shop.place(status=status)
    await desk.open(f"#/orders/{order.order_id}")
    await expect(desk.view.locator(".stop[data-state=running]:visible")).to_contain_text([step])
    await expect(desk.view.get_by_role("button")).to_have_text(actions)
    await expect(desk.view.get_by_text("Cancel accepted")).to_be_hidden()


async def test_cancel_without_worker_is_shown_as_accepted(desk: Desk, shop: Shop) -> None:
    order = await shop.place(status="awaiting_approval")
    await desk.open(f"#/orders/{order.order_id}")
    await desk.press("Cancel order")
    await desk.confirm("Cancel order")
    await expect(desk.dialog).to_be_hidden()
    await desk.shows("Awaiting approval")
    await expect(desk.view.get_by_text("Cancel accepted")).to_be_visible()
    await expect(desk.view.get_by_role("button")).to_have_count(0)


async def test_products_are_loaded_a_page_at_a_time(desk: Desk, shop: Shop) -> None:
    price = {"amount": 70_000, "currency": "EUR"}
    skus = [f"X-{number:02}" for number in range(60)]
    await shop.mongo.inventory.insert_many(
        [{"_id": sku, "name": sku, "unit_price": price, "available": 9} for sku in skus]
    )
    await desk.open()
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
    await desk.page.unroute("**/healthz", hang)
    await desk.press("Try now")
    await expect(desk.page.locator("#connection")).to_have_text("Live")

    await desk.page.context.set_offline(True)
    await expect(lost).to_be_visible()
    await desk.page.context.set_offline(False)
    await expect(desk.page.locator("#connection")).to_have_text("Live")
