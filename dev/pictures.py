"""Take the pictures of README.md from the running page (`make pictures`): a compensated order, light and dark."""

import base64
import re
import shutil
from pathlib import Path
from typing import Literal

import httpx
from playwright.async_api import Browser, ViewportSize, async_playwright, expect

from dev.sample_stock import authorization
from dev.stack import ROOT, run
from dev.terminal import running_or_new_stack

FOLDER = ROOT / "docs" / "pictures"
VIEWPORT = ViewportSize(width=760, height=900)
SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
# Show only the order and its saga, on a card with round corners.
CROP = """
#order :is(.back, .where, .particulars, .source) { display: none !important }
#order { height: auto; border: 0; border-radius: 12px }
:root, body { background: none }
"""

ORDER = {
    "customer_id": "cus_ada",
    "email": "ada@example.com",
    "payment_method": "pm_card_ok",
    "lines": [{"sku": "LAMP-OAK", "quantity": 1}],
    "shipping_address": {
        "name": "Ada Lovelace",
        "street": "Invalidenstrasse 116",
        "city": "Berlin",
        "postal_code": "00000",  # no carrier delivers there: the shipment fails, and the charge is refunded
        "country": "DE",
    },
}


async def place_failing_order(api_url: str) -> str:
    """Place the order and wait until it is compensated. Returns its id."""
    async with httpx.AsyncClient(base_url=api_url, headers=authorization(), timeout=30) as http:
        order = (await http.post("/orders", json=ORDER)).raise_for_status().json()
        await http.get(f"/orders/{order['order_id']}/events")  # the stream ends when the order reaches a final status
        return str(order["order_id"])


async def take_picture(browser: Browser, url: str, scheme: Literal["light", "dark"]) -> Path:
    """Take a picture of the order at `url`."""
    picture = FOLDER / f"compensated-{scheme}.webp"
    async with await browser.new_context(
        viewport=VIEWPORT,
        device_scale_factor=2,
        color_scheme=scheme,
        reduced_motion="reduce",
        bypass_csp=True,  # allows the injected CROP style
        locale="en-GB",
    ) as context:
        page = await context.new_page()
        await page.goto(url)
        order = page.locator("#order")
        await expect(order.locator(".badge")).to_have_text("Failed")
        await expect(order.get_by_text(re.compile("^compensated "))).to_have_count(2)
        await page.add_style_tag(content=CROP)
        box = await order.bounding_box()
        # Use CDP for WebP: Playwright can only write PNG, which is three times the size.
        chromium = await context.new_cdp_session(page)
        await chromium.send("Emulation.setDefaultBackgroundColorOverride", {"color": {"r": 0, "g": 0, "b": 0, "a": 0}})
        options = {"format": "webp", "quality": 90, "clip": {**(box or {}), "scale": 1}}
        picture.write_bytes(base64.b64decode((await chromium.send("Page.captureScreenshot", options))["data"]))
    return picture


async def pictures() -> int:
    chromium = next(
        filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"))),
        None,
    )
    if chromium is None:
        print("error: Chromium not found. `make test-tools` installs it")
        return 1
    FOLDER.mkdir(exist_ok=True)
    async with running_or_new_stack() as stack, async_playwright() as playwright:
        await place_failing_order(stack.api_url)  # warm-up: the first order on a new stack is slow
        url = f"{stack.api_url}/#/orders/{await place_failing_order(stack.api_url)}"
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in SCHEMES:
            picture = await take_picture(browser, url, scheme)
            print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size // 1000} kB")
        await browser.close()
    return 0


if __name__ == "__main__":
    run(pictures())
