"""The page without a worker: it relies on `GET /saga` and the state in MongoDB."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Desk
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
