"""Pages of other sites attack the open API in a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page

from app.domain import Order
from tests.browser.conftest import EVIL, ApiServer
from tests.kit.shop import Shop

FRAMED = ["/", "/docs", "/static/index.html", "/static/docs.html", "/orders", "/nowhere"]


@pytest.fixture
async def order(shop: Shop) -> Order:
    return await shop.place(status="awaiting_approval")


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with await browser.new_context() as tab:
        yield await tab.new_page()


@asynccontextmanager
async def site(content: str) -> AsyncIterator[int]:
    """Serve one page. Yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n{content}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize("host", [EVIL, "127.0.0.1"])  # the second is the same site: sites do not differ by port
async def test_page_of_other_origin_changes_and_reads_nothing(
    page: Page, api_server: ApiServer, shop: Shop, order: Order, host: str
) -> None:
    cancel = f"{api_server.url}/orders/{order.order_id}/cancel"
    form = f'<form method="post" action="{cancel}"><button>Win a prize</button></form>'
    async with site(f"<!doctype html>{form}") as port:
        await page.goto(f"http://{host}:{port}/")
        for method, path, mode in (
            ("POST", cancel, "no-cors"),
            ("POST", cancel, "cors"),
            ("PUT", f"{api_server.url}/inventory/MUG", "cors"),
            ("GET", f"{api_server.url}/orders", "cors"),
        ):
            sent = (
                "([method, path, mode]) => fetch(path, { method, mode }).then(({ type }) => type, ({ name }) => name)"
            )
            assert await page.evaluate(sent, [method, path, mode]) in {"opaque", "TypeError"}
        async with page.expect_navigation() as navigation:
            await page.get_by_role("button").click()
        answer = await (await navigation.value).json()
    assert (answer["status"], answer["title"]) == (403, "Foreign origin")
    assert (await shop.order(order.order_id)).cancellation is None
    assert await shop.available("MUG") == 100


async def test_rebound_host_name_is_refused(page: Page, api_server: ApiServer, shop: Shop, order: Order) -> None:
    rebound = api_server.url.replace("127.0.0.1", EVIL)
    for path in ("/orders", "/", "/static/index.html", "/healthz"):
        answer = await page.goto(rebound + path)
        assert answer
        assert answer.status == 421
    price = {"amount": 0, "currency": "EUR"}
    sent = """(product) => fetch("/inventory/MUG", {
      method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(product)
    }).then(({ status }) => status)"""
    assert await page.evaluate(sent, {"name": "Mug", "unit_price": price, "available": 1}) == 421
    assert await shop.available("MUG") == 100


async def test_no_page_or_answer_can_be_framed(page: Page, api_server: ApiServer) -> None:
    frames = "".join(f'<iframe src="{api_server.url}{path}"></iframe>' for path in FRAMED)
    async with site(f"<!doctype html>{frames}") as port:
        await page.goto(f"http://{EVIL}:{port}/")  # waits until all frames are loaded
        assert [frame.url for frame in page.frames[1:]] == ["chrome-error://chromewebdata/"] * len(FRAMED)
