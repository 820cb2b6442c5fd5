"""The order desk is small, fast, secure and accessible."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, Request, Response, ViewportSize, expect

from app.domain import OrderStatus, StepName
from tests.browser.conftest import PHONE, WIDE, ApiServer, Desk, a_desk
from tests.browser.test_order_desk import fill_with_orders
from tests.kit.orders import BEFORE_CHARGE
from tests.kit.shop import Shop

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()

FIRST_VIEW = 80_000  # bytes, uncompressed
LAPTOP = ViewportSize(width=1280, height=720)
STRIP = 40  # pixels that `make dev` takes for its strip


async def test_first_view_is_small_and_loads_nothing_from_elsewhere(desk: Desk) -> None:
    responses: list[Response] = []

    def keep(response: Response) -> None:
        responses.append(response)

    desk.page.on("response", keep)
    await desk.open()
    static = [response for response in responses if "/orders" not in response.url]
    assert all(response.url.startswith(desk.url) for response in responses)
    size = sum([len(await response.body()) for response in static])
    assert size < FIRST_VIEW
    policy = static[0].headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy

    await desk.page.set_viewport_size(LAPTOP)
    for part in (desk.on_board("Placed"), desk.on_board("Completed"), desk.page.get_by_text("20 at once")):
        box = await part.bounding_box()
        assert box
        assert box["y"] + box["height"] < LAPTOP["height"] - STRIP, part


async def test_live_update_with_500_orders_touches_changed_rows_only(desk: Desk, shop: Shop) -> None:
    await fill_with_orders(shop, 500, status="reserved")
    await desk.open("#/orders")
    await desk.page.evaluate(
        """async () => {
          const pane = document.getElementById("orders");
          while (!document.getElementById("older").hidden) {
            pane.scrollTop = pane.scrollHeight;
            await new Promise(requestAnimationFrame);
          }
        }"""
    )
    await expect(desk.rows).to_have_count(500)
    await desk.page.evaluate(
        """() => {
          window.touched = new Set();
          new MutationObserver((records) => records.forEach(({ target }) => touched.add(
            (target.nodeType === Node.TEXT_NODE ? target.parentElement : target).closest("li"))))
            .observe(document.getElementById("order-list"),
              { subtree: true, childList: true, attributes: true, characterData: true });
        }"""
    )
    some = [order["_id"] async for order in shop.mongo.orders.find({}, ["_id"]).limit(25)]
    for order_id in some:
        change = {"status": "charged", "updated_at": datetime.now(UTC)}
        await shop.mongo.orders.update_one({"_id": order_id}, {"$set": change})
    await expect(desk.page.locator("#order-list .badge", has_text="Charged")).to_have_count(25)
    assert await desk.page.evaluate("touched.size") == 25  # unchanged rows are not touched


async def check_page(desk: Desk, rules: dict[str, Any] | None = None) -> None:
    """Check that axe finds no violation, and that nothing is wider than the screen."""
    await desk.page.evaluate("Promise.all(document.getAnimations().map((a) => a.finish?.() ?? a))")
    found = await desk.page.evaluate("(rules) => axe.run({ resultTypes: ['violations'], ...rules })", rules or {})
    assert [(finding["id"], node["html"]) for finding in found["violations"] for node in finding["nodes"]] == []
    parts = "[document.documentElement, ...document.querySelectorAll('.pane')]"
    assert await desk.page.evaluate(f"{parts}.every((part) => part.scrollWidth <= part.clientWidth)")


LOOKS: dict[str, tuple[ViewportSize, Literal["light", "dark"], dict[str, Any]]] = {
    "wide": (WIDE, "light", {}),
    "dark": (WIDE, "dark", {"runOnly": ["color-contrast"]}),
    "phone": (PHONE, "light", {"rules": {"color-contrast": {"enabled": False}}}),
}


@pytest.mark.usefixtures("worker")
async def test_axe_finds_no_violation(
    browser: Browser, api_server: ApiServer, shop: Shop, tmp_path: Path, exhaustive: bool
) -> None:
    """Run axe on every state of the page.

    A normal run has every state and every look. `--exhaustive` has every state in every look, and takes pictures.
    """

    async def check(state: str, *looks: str) -> None:
        for look in LOOKS if exhaustive else looks:
            viewport, colours, rules = LOOKS[look]
            await desk.page.set_viewport_size(viewport)
            await desk.page.emulate_media(color_scheme=colours)
            await check_page(desk, rules)
            if exhaustive:
                await desk.picture(tmp_path / f"{state}-{look}.png")
        await desk.page.set_viewport_size(WIDE)

    compensated = {"status": "compensated", "at": datetime.now(UTC), "compensated_at": datetime.now(UTC), "detail": "-"}
    interrupted = {"status": "failed", "at": datetime.now(UTC), "detail": "-"}
    steps = {**dict.fromkeys(BEFORE_CHARGE, compensated), StepName.CHARGE_PAYMENT: interrupted}
    cancelled = await shop.place(status="cancelled", steps=steps, customer_id="c" * 64)  # must wrap

    async with a_desk(browser, api_server.url) as desk:
        await desk.open(f"#/orders/{cancelled.order_id}")
        await expect(desk.stop("Charge payment")).to_contain_text("interrupted")
        await expect(desk.view.locator("mark")).to_have_count(2)
        await expect(desk.view).to_contain_text("card that works · cccc")
        await desk.page.evaluate(AXE)
        await check("interrupted", "phone")
        await desk.page.goto(f"{desk.url}/#/new")
        await desk.place(delivery="Carrier is down", MUG=1)  # the scenario cancels its order after 6 s
        await expect(desk.stop("Create shipment")).to_contain_text("failed: the carrier is unavailable; next in")
        await check("waiting", "wide", "dark")
        await desk.press("Cancel order")
        await check("dialog", "wide")
        await desk.page.keyboard.press("Escape")
        await desk.page.goto(f"{desk.url}/#/new")
        await desk.choose("Needs approval")
        await expect(desk.stop("Approval")).to_contain_text("until")
        if exhaustive:
            await desk.picture(tmp_path / "approval.png")
        await desk.page.goto(f"{desk.url}/#/new")
        await expect(desk.on_board("Approval")).to_contain_text("1 order")
        if exhaustive:
            await desk.picture(tmp_path / "board.png")
        await desk.unfold()
        await desk.form.get_by_label("E-mail").fill("ada@example.com,eve@example.com")
        await desk.form.get_by_label("Name").fill("Ada \u202eecalevoL")
        await desk.press("Place order")
        await expect(desk.form.locator(".error")).to_contain_text(["one e-mail address", "direction of text"])
        await check("errors", "wide", "phone")
        await desk.page.goto(f"{desk.url}/#/orders")
        await expect(desk.rows).to_have_count(3)
        await check("orders", "phone")  # on a wide screen, they are beside the board


async def test_docs_load_nothing_from_elsewhere_and_axe_finds_no_violation(
    browser: Browser, api_server: ApiServer, shop: Shop
) -> None:
    await shop.stock("MUG-BLUE")
    requests: list[Request] = []

    def keep(request: Request) -> None:
        requests.append(request)

    async with a_desk(browser, api_server.url) as desk:  # fails on any error in the console
        desk.page.on("request", keep)
        await desk.page.goto(f"{desk.url}/docs")
        await expect(desk.page.locator("article#ProblemDetails")).to_be_attached()  # the last one
        shown = await desk.page.locator("article h3").all_inner_texts()
        described = await desk.page.evaluate("fetch('/openapi.json').then((response) => response.json())")
        paths = described["paths"]
        assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} <= {*shown}
        assert {*described["components"]["schemas"]} <= {*shown}
        assert all(request.url.startswith(desk.url) for request in requests)
        place = desk.page.locator("article#placeOrder")
        command = await place.locator("pre").first.inner_text()
        await place.get_by_role("button", name="Execute").click()
        await expect(place.get_by_role("status")).to_contain_text('202 {\n  "order_id"')
        get = desk.page.locator("article#getOrder")
        # An error is shown as it was sent.
        await get.get_by_label("Path and query").fill("/orders/ord_1")
        await get.get_by_role("button", name="Execute").click()
        await expect(get.get_by_role("status")).to_contain_text('"title": "Not found"')
        await desk.page.get_by_role("link", name="NewOrder").first.click()
        await expect(desk.page.locator("article#NewOrder")).to_be_in_viewport()
        for viewport in (PHONE, WIDE):
            await desk.page.set_viewport_size(viewport)
            assert await desk.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # Axe takes seconds for the whole page, and all articles are alike.
        others = desk.page.locator(f"article:not(#NewOrder, #{OrderStatus.__name__}, h2 + article)")
        await others.evaluate_all("(articles) => articles.forEach((article) => article.remove())")
        await desk.page.evaluate(AXE)
        await check_page(desk)
        await desk.page.emulate_media(color_scheme="dark")
        await desk.page.set_viewport_size(PHONE)
        await check_page(desk, LOOKS["dark"][2])

    curl = await asyncio.create_subprocess_shell(f"{command} -si", stdout=asyncio.subprocess.PIPE)
    answer, _ = await curl.communicate()
    assert answer.startswith(b"HTTP/1.1 202")
