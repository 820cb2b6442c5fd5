"""What the page shows while no worker runs: it has MongoDB and `GET /saga` alone to go by."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Desk
from tests.support import Shop


@pytest.mark.parametrize(
    ("status", "step"),
    [
        ("placed", "Reserve inventory"),
        ("reserved", "Charge payment"),
        ("charged", "Create shipment"),
        ("shipped", "Send confirmation"),
    ],
)
async def test_step_that_starts_from_status_is_drawn_as_running(desk: Desk, shop: Shop, status: str, step: str) -> None:
    order = await shop.place(status=status)
    await desk.open(f"#/orders/{order.order_id}")
    await expect(desk.view.locator(".stop[data-state=running]")).to_contain_text([step])


async def test_cancel_without_worker_is_shown_as_accepted(desk: Desk) -> None:
    await desk.open()
    await desk.place()
    await expect(desk.view.get_by_role("button", name="Change address")).to_be_visible()
    await desk.press("Cancel order")
    await desk.confirm("Cancel order")
    await expect(desk.dialog).to_be_hidden()
    await desk.shows("Placed")
    await expect(desk.view).to_contain_text("Cancel accepted")
    await expect(desk.view.get_by_role("button", name="Cancel order")).to_be_hidden()
    await expect(desk.view.get_by_role("button", name="Change address")).to_be_hidden()
