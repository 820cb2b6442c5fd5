"""Use the order desk as a person does, including a restart of the API."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.async_api import Browser, Route, expect

from app.domain import OrderStatus, StepName
from app.settings import ApiSettings, Scope
from app.workflows.order import OrderWorkflow
from dev.servers import Server
from tests.browser.conftest import ApiServer, Desk, a_desk, serving, words
from tests.kit.http import closed, key_of, limited_to
from tests.kit.orders import CHARGING, order_document
from tests.kit.shop import Shop
from tests.kit.workflows import COMPENSATIONS, REFUND

pytestmark = pytest.mark.usefixtures("worker")

STEPS = [words(name) for name in StepName]
IS_GREY = """(stop) => {
  const style = getComputedStyle(stop);
  return style.getPropertyValue("--tone") === style.getPropertyValue("--soft");
}"""
FOCUSED = """() => {
  const focused = document.querySelector(":focus");
  return focused ? focused.ariaLabel || focused.innerText : "";
}"""
FIND_ALL = """async () => {
  const { CALLS, find } = await import("/static/source-code.js");
  const text = await (await fetch("/source/order.py")).text();
  return Object.fromEntries(Object.keys(CALLS).map((what) => {
    const { saga, call, runs } = find(text, what);
    return [what, [saga.first, saga.lines[call].trim(), saga.lines[call - 1].trim(), runs.first, runs.lines.length]];
  }));
}"""


def lines(method: Any) -> tuple[int, int]:
    """The number of a method's first line, and of its lines."""
    source, first = inspect.getsourcelines(method)
    return first, len(source)


async def test_fast_order_is_played_step_by_step_and_replayed(desk: Desk) -> None:
    await desk.page.emulate_media(reduced_motion="no-preference")
    await desk.page.clock.install()
    await desk.open()
    await desk.page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=1))
    done = desk.view.locator(".down [data-state=done]:visible")

    async def plays(pace: int) -> None:
        for count in range(1, len(STEPS) + 1):
            await expect(done).to_have_count(count)
            await expect(desk.view.locator(".failure")).to_be_hidden()
            await expect(desk.stop(STEPS[count - 1])).to_have_attribute("data-state", re.compile("next|running"))
            await desk.page.clock.run_for(pace)
        await desk.shows("Completed")
        await expect(done).to_have_count(len(STEPS) + 2)

    await desk.choose("Works")
    await expect(desk.rows.first).to_contain_text("Completed")  # the list does not wait
    await plays(250)
    await desk.page.clock.run_for(1_000)
    await expect(desk.on_board("Completed")).to_contain_text("1 order")
    await expect(desk.board.locator("li", has_text="MUG")).to_contain_text("99")  # left in stock
    await desk.press("Replay")
    await plays(700)
    for stop in ("Refund payment", "All compensated"):
        await expect(desk.stop(stop)).to_contain_text("not needed")
    bar = desk.stop("Charge payment").get_by_role("img")
    await expect(bar).to_have_accessible_name(re.compile(r"^waited .*, 1 attempt in "))
    await expect(desk.view.get_by_role("button", name="Cancel order")).to_be_hidden()

    await desk.page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    await desk.choose("Works")
    await desk.shows("Completed")  # at once, if the tab is hidden
    await desk.page.clock.fast_forward(60_000)
    await desk.page.reload()  # the address bar names the order, which is no longer new: it is shown as it is
    await desk.shows("Completed")
    await expect(desk.stop("Send confirmation")).to_contain_text("done")

    # The lines that run are found in the real workflow.
    saga, run = lines(OrderWorkflow._saga)[0], lines(OrderWorkflow._run)
    approval, compensation = lines(OrderWorkflow._wait_for_approval), lines(OrderWorkflow._compensate)
    assert {what: tuple(found) for what, found in (await desk.page.evaluate(FIND_ALL)).items()} == {
        "approval": (saga, "await self._wait_for_approval()", "if self._order.needs_approval:", *approval),
        "step": (saga, "await self._run(step)", "for step in REVERSIBLE_STEPS:", *run),
        "finalStep": (saga, "await self._run(step)", "for step in FINAL_STEPS:", *run),
        "compensation": (
            saga,
            "return await self._compensate(state)",
            "if state.status not in domain.IRREVERSIBLE:",
            *compensation,
        ),
    }


async def test_failed_orders_show_failed_step_compensations_and_times(desk: Desk, shop: Shop) -> None:
    await desk.open()
    await desk.choose("Declined")
    await desk.shows("Failed")
    await expect(desk.view).to_contain_text("Payment declined")
    await expect(desk.stop("Charge payment")).to_contain_text("failed")
    await expect(desk.stop("Release inventory")).to_contain_text("compensated")
    await expect(desk.stop("Refund payment")).to_contain_text("nothing to compensate")
    await expect(desk.stop("Create shipment")).to_contain_text("not reached")
    await expect(desk.view.locator("mark")).to_contain_text(["self._compensate(", "def _compensate("])

    await desk.place(delivery="Not served")
    await desk.shows("Failed")
    await expect(desk.stop("Create shipment")).to_contain_text("failed")
    await expect(desk.stop("Refund payment")).to_contain_text("compensated")
    await expect(desk.stop("Release inventory")).to_contain_text("compensated")

    placed = datetime.now(UTC) - timedelta(minutes=1)
    reserved = {
        "status": "compensated",
        "first_attempt_at": placed + timedelta(milliseconds=20),
        "at": placed + timedelta(milliseconds=120),
        "compensated_at": placed + timedelta(seconds=3),
        "attempts": 3,
        "detail": "reserved",
    }
    order = await shop.place(status="cancelled", created_at=placed, steps={"reserve_inventory": reserved})
    await desk.page.goto(f"{desk.url}/#/orders/{order.order_id}")
    await expect(desk.stop("Reserve inventory")).to_contain_text(re.compile(r"done .*\+120.ms, 3 attempts"))
    await expect(desk.stop("Release inventory")).to_contain_text(re.compile(r"compensated .*\+3\.0.s"))
    bars = desk.view.get_by_role("img")
    await expect(bars.first).to_have_accessible_name(re.compile("waited 20.ms, 3 attempts in 100.ms"))
    await expect(bars.last).to_have_accessible_name(re.compile(r"in effect for 2\.9.s"))


async def test_outage_shows_attempts_and_countdown_until_the_cancel(desk: Desk) -> None:
    await desk.page.clock.install()
    await desk.open()
    await desk.choose("Carrier down")
    ship = desk.stop("Create shipment")
    waiting = r"attempt [2-9] failed: the carrier is unavailable; next in 0:0[1-9]"
    await expect(ship).to_contain_text(re.compile(waiting))
    await expect(ship).to_have_attribute("data-state", "waiting")
    await expect(desk.view.locator("mark")).to_contain_text(["await self._run(step)", "async def _run("])
    await desk.page.clock.fast_forward(6_000)
    await desk.shows("Cancelled")
    await expect(desk.view).to_contain_text("the carrier is down")
    await expect(ship).to_have_attribute("data-state", "interrupted")
    assert await ship.evaluate(IS_GREY)
    await expect(desk.stop("Refund payment")).to_contain_text("compensated")
    await expect(desk.stop("Cancel shipment")).to_contain_text("nothing to compensate")


async def test_steps_added_to_saga_are_drawn(desk: Desk) -> None:
    """Steps that the page does not know: one with a compensation and one without, after `charge_payment`."""
    added = [added_step("insure_parcel", "CancelInsurance"), added_step("print_label", None)]
    place = list(StepName).index(StepName.CHARGE_PAYMENT) + 1

    async def answer_with_added_steps(route: Route) -> None:
        response = await route.fetch()
        steps = (await response.json())["steps"]
        await route.fulfill(response=response, json={"steps": [*steps[:place], *added, *steps[place:]]})

    await desk.page.route("**/saga", answer_with_added_steps)
    await desk.open()
    steps, compensations = (desk.board.get_by_role("list", name=name) for name in ("Steps", "Compensations"))
    drawn = [*STEPS[:place], "Insure parcel", "Print label", *STEPS[place:]]
    await expect(steps.locator("b")).to_have_text(["Placed", "Approval", *drawn, "Completed"])
    # A screen reader comes to the compensations in the sequence in which they run.
    reverse = [words(each) for each in COMPENSATIONS]
    reverse.insert(COMPENSATIONS.index(REFUND), "Cancel insurance")
    await expect(compensations.locator("b")).to_have_text([*reverse, "All compensated"])
    await expect(compensations).to_contain_text("No compensation from here on")
    await desk.place()
    await desk.shows("Completed")
    await expect(desk.stop("Charge payment")).to_have_attribute("data-state", "done")
    await expect(desk.stop("Insure parcel")).to_have_attribute("data-state", "idle")


def added_step(name: str, compensation: str | None) -> dict[str, Any]:
    return {
        "step": name,
        "activity": "Anything",
        "compensation": compensation,
        "starts_from": "charged",
        "status": f"{name}_passed",
    }


async def test_large_orders_wait_for_a_decision(desk: Desk, shop: Shop) -> None:
    await desk.open()
    await desk.choose("Needs approval")
    await desk.shows("Awaiting approval")
    await expect(desk.stop("Approval")).to_contain_text(re.compile("waits for a person until .*:"))
    await expect(desk.view.locator("mark")).to_contain_text(["_wait_for_approval", "def _wait_for_approval"])
    await desk.press("Change address")
    city = desk.dialog.get_by_label("City")
    await city.fill("Wien\u202e")
    await desk.confirm("Change address")
    await expect(city).to_have_attribute("aria-invalid", "true")  # the API's error is shown beside the field
    await city.fill("Wien")
    await desk.confirm("Change address")
    await expect(desk.dialog).to_be_hidden()
    await expect(desk.view.locator("address")).to_contain_text("Wien")
    await desk.press("Approve")
    await desk.shows("Completed")
    await expect(desk.stop("Approval")).to_contain_text("approved")
    await expect(desk.view.get_by_role("button", name="Change address")).to_be_hidden()

    await desk.choose("Needs approval")
    await desk.press("Reject")
    await desk.dialog.get_by_label("Reason").fill("over budget")
    await desk.confirm("Reject")
    await desk.shows("Failed")
    await expect(desk.view).to_contain_text("over budget")
    await expect(desk.stop("Approval")).to_contain_text("not approved")
    await expect(desk.stop("Reserve inventory")).to_contain_text("not reached")

    await desk.choose("Needs approval")
    await desk.press("Cancel order")
    await desk.confirm("Cancel order")
    await desk.shows("Cancelled")
    await expect(desk.view.locator(".failure")).to_have_text("Cancelled")  # without a reason, once is enough

    await desk.choose("Needs approval")
    await desk.shows("Awaiting approval")
    await desk.press("Cancel order")
    # The order changes while the dialog is open.
    approval = await desk.page.request.post(f"{desk.url}/orders/{desk.order_id}/approval", data={"approved": True})
    assert approval.ok
    await shop.wait_for_status(desk.order_id, OrderStatus.COMPLETED)
    await desk.confirm("Cancel order")
    await expect(desk.dialog.get_by_role("alert")).to_contain_text("completed")


async def test_form_shows_errors_and_live_stock_and_places_one_order_per_double_click(desk: Desk, shop: Shop) -> None:
    await desk.open()
    await desk.unfold()
    await desk.form.get_by_label("City").fill("Berlin\u202e")
    await desk.form.get_by_label("Quantity of MUG").fill("-1")
    await desk.press("Place order")
    city, quantity = desk.form.get_by_label("City"), desk.form.get_by_label("Quantity of MUG")
    await expect(city).to_have_accessible_description(re.compile("must not contain control characters"))
    await expect(quantity).to_have_accessible_description(re.compile("at least 1"))
    await expect(quantity).to_be_focused()
    await quantity.fill("0")
    await desk.press("Place order")
    await expect(desk.form.get_by_role("group", name="Products")).to_contain_text("choose at least one product")

    mug = desk.form.locator("#products li", has_text="MUG")
    await expect(mug).to_contain_text("100 in stock")
    await shop.stock("MUG", available=2)
    await expect(mug).to_contain_text("2 in stock")
    await quantity.fill("3")
    await expect(mug).to_contain_text("Only 2 left: the order will fail.")
    await mug.get_by_role("button", name="restock").click()
    await expect(mug).to_contain_text("12 in stock")
    await expect(mug.get_by_text("Only")).to_be_hidden()

    await city.fill("Berlin")
    await desk.page.get_by_role("button", name="Place order").dblclick()
    await desk.shows("Completed")
    assert await shop.mongo.orders.count_documents({}) == 1


async def test_board_counts_twenty_orders_at_once(desk: Desk) -> None:
    await desk.page.add_init_script("Math.random = () => 0")  # all orders are the same, and all await approval
    await desk.open()
    await desk.press("20 at once At random")
    await expect(desk.on_board("Approval")).to_contain_text("20 orders", timeout=30_000)  # on a busy machine
    await expect(desk.rows).to_have_count(20)
    await expect(desk.news).to_have_text("20 orders placed.")
    await expect(desk.filter.get_by_role("radio", name="Awaiting approval 20")).to_be_visible()
    await expect(desk.on_board("Placed")).to_contain_text("20 orders")


async def test_filter_and_scroll_load_matching_and_older_orders(desk: Desk, shop: Shop) -> None:
    await fill_with_orders(shop, 69, status="completed")
    await shop.place(status="charged", created_at=datetime.now(UTC) - timedelta(days=1))
    await desk.open("#/orders")
    await expect(desk.on_board("Create shipment")).to_contain_text("1 order")  # in progress, however old
    await expect(desk.rows).to_have_count(30)
    await desk.page.locator("#orders").hover()
    while await desk.rows.count() < 70:
        await desk.page.mouse.wheel(0, 3_000)
        await desk.page.wait_for_timeout(20)

    await desk.place(payment="Outage")
    await desk.filter_by(words(CHARGING))
    await expect(desk.rows).to_have_count(1)
    await desk.place(payment="Outage", MUG=2)  # an order starts to match the filter, then stops to
    await expect(desk.rows).to_have_count(2)
    await desk.press("Cancel order")
    await desk.confirm("Cancel order")
    await expect(desk.rows).to_have_count(1)


async def test_reconnect_after_api_restart_shows_missed_changes(desk: Desk, api_server: ApiServer, shop: Shop) -> None:
    await desk.open()
    await desk.place(payment="Outage")
    await desk.shows(words(CHARGING))
    await api_server.stop()
    await expect(desk.page.get_by_role("alert").filter(has_text="Connection lost")).to_be_visible()
    await desk.press("Place order")
    await expect(desk.form.get_by_role("alert")).to_contain_text("The API does not answer")
    # The page misses these changes, and shows them after the reconnect.
    await shop.workflows.start(await shop.orders.request_cancellation(desk.order_id, "while the API is down"))
    await shop.wait_for_status(desk.order_id, OrderStatus.CANCELLED)
    await shop.place(customer_id="cus_meanwhile")

    await api_server.start()
    await desk.shows("Cancelled")
    await expect(desk.page.get_by_text("Connection lost")).to_be_hidden()
    await expect(desk.rows).to_have_count(2)
    await expect(desk.news).to_have_text("Reconnected. 2 orders changed in the meantime.")


async def test_markup_in_customer_input_stays_text(desk: Desk, shop: Shop) -> None:
    markup = '<img src=x onerror="document.body.remove()">'
    await shop.mongo.inventory.update_one({"_id": "MUG"}, {"$set": {"name": markup}})
    await desk.open()
    await desk.unfold()
    for label, value in {"Name": markup, "Street": markup, "City": markup, "Postal code": "<b>1</b>"}.items():
        await desk.form.get_by_role("textbox", name=label, exact=True).fill(value)
    await desk.press("Place order")
    await desk.shows("Completed")
    await expect(desk.view.get_by_role("heading", name=markup)).to_be_visible()
    await expect(desk.view.locator("address")).to_contain_text(markup)
    await expect(desk.rows.first).to_contain_text(markup)
    await expect(desk.rows.first).to_contain_text(re.compile(f"1 . {re.escape(markup)}"))
    await expect(desk.page.locator("main img, main address b")).to_have_count(0)


async def test_keyboard_alone_places_filters_opens_and_cancels_orders(desk: Desk, shop: Shop) -> None:
    async def tab_to(name: str) -> None:
        for _ in range(60):
            await desk.page.keyboard.press("Tab")
            if name in await desk.page.evaluate(FOCUSED):
                return
        raise AssertionError(f"the tab key does not come to {name}")

    await fill_with_orders(shop, 3)
    await desk.open()
    await tab_to("Works")
    await desk.page.keyboard.press("Enter")
    await desk.shows("Completed")
    await tab_to("Your own order")
    await desk.page.keyboard.press("Enter")
    await tab_to("Quantity of MUG")
    await desk.page.keyboard.press("ArrowUp")
    await desk.page.keyboard.press("Tab")
    for _ in ("Declined", "Flaky", "Slow", "Outage"):
        await desk.page.keyboard.press("ArrowDown")
    await tab_to("Place order")
    await desk.page.keyboard.press("Enter")
    await desk.shows(words(CHARGING))
    await expect(desk.rows.first).to_contain_text(re.compile("2 . MUG"))

    await expect(desk.filter.get_by_role("radio", name="Placed")).to_be_visible()
    await tab_to("Place order")
    await desk.page.keyboard.press("Tab")  # to the filter, which the arrow keys change
    await desk.page.keyboard.press("ArrowDown")
    await expect(desk.filter.get_by_role("radio", name="Placed")).to_be_checked()
    await expect(desk.rows).to_have_count(3)
    await desk.page.keyboard.press("ArrowUp")
    await expect(desk.rows).to_have_count(5)
    await desk.page.keyboard.press("Tab")  # into the list, where the arrow keys move
    await expect(desk.rows.first.get_by_role("link")).to_be_focused()
    await desk.page.keyboard.press("ArrowDown")
    await expect(desk.rows.nth(1).get_by_role("link")).to_be_focused()
    await desk.page.keyboard.press("End")
    await expect(desk.rows.last.get_by_role("link")).to_be_focused()
    await desk.page.keyboard.press("Home")
    await desk.page.keyboard.press("ArrowDown")
    await desk.page.keyboard.press("Enter")
    await expect(desk.view.get_by_role("heading", level=2)).to_be_focused()
    await desk.page.go_back()
    await desk.shows(words(CHARGING))

    cancel = desk.view.get_by_role("button", name="Cancel order")
    await cancel.focus()
    await desk.page.keyboard.press("Enter")
    await desk.page.keyboard.press("Escape")
    await expect(cancel).to_be_focused()
    await desk.page.keyboard.press("Enter")
    await desk.page.keyboard.type("no longer needed")
    await desk.page.keyboard.press("Enter")
    await desk.shows("Cancelled")
    await expect(desk.view.get_by_role("heading", level=2)).to_be_focused()  # the button no longer exists


async def test_api_key_is_asked_for_and_sent(
    browser: Browser, settings: ApiSettings, temporal_server: Server, shop: Shop
) -> None:
    await shop.stock()
    limited = {
        "store": limited_to("store", Scope.INVENTORY_READ),
        "auditor": limited_to("auditor", Scope.ORDERS_READ, Scope.ORDERS_ANY),
        "customer": limited_to(
            "customer", Scope.ORDERS_READ, Scope.ORDERS_WRITE, Scope.INVENTORY_READ, customer="cus_9"
        ),
    }
    locked = closed(settings, **limited)

    async def use(key: str) -> None:
        await desk.dialog.get_by_label("Key").fill(key)
        await desk.confirm("Use key")

    async with serving(locked, temporal_server.address) as server, a_desk(browser, server.url) as desk:
        await desk.page.goto(server.url)
        await use("not \u00e4scii")
        await expect(desk.dialog.locator(".error")).to_contain_text("ASCII")
        await use("wrong")
        await expect(desk.dialog).to_contain_text("This key was not accepted.")
        await use("Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl")  # a token
        await expect(desk.dialog).to_contain_text("This key was not accepted.")
        await use(key_of("store"))
        lost = desk.page.get_by_role("alert").filter(has_text="Not connected")
        await expect(lost).to_contain_text("lacks the scope orders:read")
        await desk.press("Use another key")
        await use(key_of("auditor"))
        await expect(desk.page.locator("#connection")).to_have_text("Live")
        await expect(desk.page.get_by_role("heading", name="Stock")).to_be_hidden()
        await desk.press("Works Completes at once")
        await expect(desk.news).to_contain_text("inventory:read")
        await desk.page.get_by_text("Your own order").click()
        await expect(desk.form.get_by_text("The products cannot be shown")).to_contain_text("inventory:read")
        await desk.press("Place order")
        await expect(desk.form.get_by_role("alert")).to_contain_text("lacks the scope orders:write")

        async def expire(route: Route) -> None:
            """Answer as the API does to a token that has expired."""
            problem = {
                "detail": "cannot authenticate: token refused: ExpiredSignatureError; send an API key or a token"
            }
            await route.fulfill(status=401, json=problem)

        await desk.page.route("**/orders", expire, times=1)
        await desk.press("Place order")
        await expect(desk.dialog).to_contain_text("The token has expired.")
        await use(key_of("customer"))
        await desk.page.reload()
        await desk.press("Works Completes at once")
        customer = desk.form.get_by_label("Customer", exact=True)
        await expect(customer).to_have_accessible_description(re.compile("your own customer"))
        await customer.fill("cus_9")
        await desk.choose("Works Completes at once")
        await desk.shows("Completed")
        await desk.page.get_by_role("link", name="API").click()  # a request of a browser's own has no key: 401 at /docs
        await expect(desk.page.locator("article").first).to_contain_text("with the scope orders:read")


async def fill_with_orders(shop: Shop, count: int, **changes: Any) -> None:
    """Insert recent orders. They keep their status, because no relay watches this database."""
    now = datetime.now(UTC)
    await shop.mongo.orders.insert_many(
        [
            order_document(
                created_at=now - timedelta(seconds=age + 1), updated_at=now - timedelta(seconds=age), **changes
            )
            for age in range(count)
        ]
    )
