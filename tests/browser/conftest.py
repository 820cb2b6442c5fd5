"""Open the order desk in a real browser, served by the real API on the real servers."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.async_api import Browser, Locator, Page, ViewportSize, async_playwright, expect

from app.settings import ApiSettings
from dev.servers import Server, free_port
from tests.kit.http import InProcessServer, create_app_for, long_deadlines
from tests.kit.shop import Shop

# The headless shell is Chromium without browser windows. It needs a third less CPU time for the same page.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)
EVIL = "evil.test"  # resolves to this machine: the host name of another site, and of DNS rebinding
FLAGS = [
    f"--host-resolver-rules=MAP {EVIL} 127.0.0.1",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 20_000.0  # milliseconds, for actions and for what is expected: the machine may be busy
expect.set_options(timeout=WAIT)
WIDE = ViewportSize(width=1440, height=900)
PHONE = ViewportSize(width=320, height=640)


# Without a browser, these tests are skipped, and the summary says so. If CI is set, they fail instead.
SKIPPED = CHROMIUM is None and not os.environ.get("CI")
collect_ignore_glob = ["test_*.py"] if SKIPPED else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SKIPPED:
        terminalreporter.write_line("skipped: tests/browser, for want of Chromium; `make test-tools` installs it")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM, "Chromium not found: `make test-tools` installs it"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


class ApiServer:
    """The API over HTTP on a fixed port, so that it can stop and restart under the same address."""

    def __init__(self, settings: ApiSettings, temporal_address: str) -> None:
        self._settings = settings
        self._temporal_address = temporal_address
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        app = create_app_for(self._settings, self._temporal_address)
        config = uvicorn.Config(
            app, host="127.0.0.1", port=self._port, log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = InProcessServer(config)
        self._running = asyncio.create_task(self._server.serve())
        while not self._server.started:
            assert not self._running.done(), "the API did not start"
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._server.stop()
        await self._running


@asynccontextmanager
async def serving(settings: ApiSettings, temporal_address: str) -> AsyncIterator[ApiServer]:
    server = ApiServer(settings, temporal_address)
    await server.start()
    try:
        with long_deadlines():
            yield server
    finally:
        await server.stop()


@pytest.fixture
async def api_server(settings: ApiSettings, temporal_server: Server, shop: Shop) -> AsyncIterator[ApiServer]:
    """The API with two products in stock. Orders of the second, a bike, need approval."""
    await shop.stock("MUG", available=100, price=1_000)
    await shop.stock("BIKE", available=5, price=60_000)
    async with serving(settings, temporal_server.address) as server:
        yield server


def words(name: str) -> str:
    """The name of a step, an activity or a status as the page writes it, such as "Reserve inventory"."""
    return re.sub("_|(?<=[a-z])(?=[A-Z])", " ", name).capitalize()


class Desk:
    """Actions of a user on the page, and its parts."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.form = page.locator("#place")
        self.view = page.locator("#order")
        self.status = self.view.locator(".badge")
        self.rows = page.locator("#order-list li")
        self.board = page.locator("#board")
        self.filter = page.get_by_role("group", name="Status")
        self.dialog = page.get_by_role("dialog")
        self.news = page.locator("#news")

    async def open(self, route: str = "") -> None:
        await self.page.goto(f"{self.url}/{route}")
        await expect(self.page.locator("#connection")).to_have_text("Live")

    async def unfold(self) -> None:
        """Unfold the form for an order of one's own."""
        if not await self.form.is_visible():
            await self.page.get_by_text("Your own order").click()
        await expect(self.form.locator("#products li").first).to_be_attached()

    async def place(self, payment: str = "Works", delivery: str = "Works", **quantities: int) -> None:
        await self.unfold()
        for group, choice in (("Payment", payment), ("Delivery", delivery)):
            radios = self.form.get_by_role("group", name=group)
            await radios.get_by_role("radio", name=re.compile(f"^{choice}")).check()
        for sku, quantity in quantities.items():
            await self.form.get_by_label(f"Quantity of {sku}").fill(str(quantity))
        await self.press("Place order")
        await expect(self.page).to_have_url(re.compile("#/orders/ord_"))

    async def press(self, button: str) -> None:
        await self.page.get_by_role("button", name=button, exact=True).click()

    async def choose(self, scenario: str) -> None:
        """Press a scenario button and wait for its order."""
        before = self.page.url
        await self.page.get_by_role("button", name=scenario).click()
        await expect(self.page).not_to_have_url(before)

    async def filter_by(self, status: str) -> None:
        await self.filter.get_by_role("radio", name=re.compile(f"^{status}")).check(force=True)

    async def picture(self, path: Path) -> None:
        """Take a picture of the page, and check that it shows something."""
        png = await self.page.screenshot(path=path)
        assert png.startswith(b"\x89PNG")
        assert len(png) > 10_000  # bytes; an empty page has a few hundred

    async def confirm(self, button: str) -> None:
        await self.dialog.get_by_role("button", name=button, exact=True).click()

    async def shows(self, status: str) -> None:
        """Wait until the order on display has this status."""
        await expect(self.status).to_have_text(status)

    def stop(self, word: str) -> Locator:
        """A stop in the saga drawing: a step, a compensation, the start or an end."""
        return self.view.locator(".stop", has=self.page.get_by_text(word, exact=True))

    def on_board(self, word: str) -> Locator:
        """A stop on the board of all orders."""
        return self.board.locator(".stop", has=self.page.get_by_text(word, exact=True))

    @property
    def order_id(self) -> str:
        return self.page.url.rsplit("/", 1)[1]


@asynccontextmanager
async def a_desk(browser: Browser, url: str, **context: Any) -> AsyncIterator[Desk]:
    """Open the page in its own browser context. A script error or a CSP violation fails the test."""
    errors: list[str] = []
    options: dict[str, Any] = {"viewport": WIDE, "reduced_motion": "reduce", **context}  # animation frames cost time
    async with await browser.new_context(**options) as tab:
        page = await tab.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield Desk(page, url)
    # Chromium also reports error responses and an unreachable API, which some tests cause on purpose.
    assert [error for error in errors if not error.startswith("Failed to load resource")] == []


@pytest.fixture
async def desk(browser: Browser, api_server: ApiServer) -> AsyncIterator[Desk]:
    async with a_desk(browser, api_server.url) as desk:
        yield desk
