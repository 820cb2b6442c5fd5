"""The commands of README.md against a running API: place an order, watch it, cancel it."""

from __future__ import annotations

import json
import re
import shlex

import httpx
import pytest

from app.domain import OrderStatus
from dev.sample_stock import SAMPLE_STOCK
from dev.stack import ROOT
from tests.kit.orders import CHARGING
from tests.kit.shop import Shop

PAGE = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (curl .*?)\n(?:\n|\Z)", PAGE, re.MULTILINE | re.DOTALL)


def request_of(command: str, api: httpx.AsyncClient) -> httpx.Request:
    """The request that a curl command sends."""
    url, *arguments = [argument for argument in shlex.split(command.replace("\\\n", ""))[1:] if argument != "-N"]
    flags = list(zip(arguments[::2], arguments[1::2], strict=True))
    assert {flag for flag, _ in flags} <= {"-H", "-d"}
    headers = dict(value.split(": ") for flag, value in flags if flag == "-H")
    body = next((value for flag, value in flags if flag == "-d"), None)
    path = url.removeprefix("localhost:8000")
    return api.build_request("GET" if body is None else "POST", path, headers=headers, content=body)


@pytest.mark.usefixtures("worker")
async def test_commands_place_watch_and_cancel_an_order(api: httpx.AsyncClient, shop: Shop) -> None:
    for sku, (_, price, available) in SAMPLE_STOCK.items():
        await shop.stock(sku, available, price)
    place, watch, cancel = (request_of(command, api) for command in COMMANDS)
    placed = await api.send(place)
    assert placed.status_code == 202
    order_id = placed.json()["order_id"]
    assert order_id in watch.url.path
    await shop.wait_for_status(order_id, CHARGING)

    events = await api.send(watch, stream=True)
    cancelled = await api.send(cancel)
    assert cancelled.status_code == 202
    states = [
        json.loads(line.removeprefix("data: ")) async for line in events.aiter_lines() if line.startswith("data: ")
    ]
    await events.aclose()
    assert states[0]["status"] == CHARGING
    assert states[-1]["status"] == OrderStatus.CANCELLED
    assert states[-1]["failure"] == {"code": "cancelled", "message": "changed my mind"}
    assert await shop.available("MUG-BLUE") == SAMPLE_STOCK["MUG-BLUE"][2]
