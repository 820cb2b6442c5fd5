"""The conventions that every endpoint follows: unknown parameters, paging links, ETag, HEAD, request ids."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app import names
from app.logs import JsonFormatter
from app.mongo import Document, Mongo
from app.names import WORKFLOW_ID_PREFIX
from app.settings import ApiSettings
from dev.servers import Server
from tests.kit.faults import change_streams, failing
from tests.kit.http import bearer, closed, key_of, serve
from tests.kit.listening import Listener
from tests.kit.orders import order_body, order_document
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

PRICE = {"amount": 1, "currency": "EUR"}


def product(sku: str) -> Document:
    return {"_id": sku, "name": sku, "unit_price": PRICE, "available": 1}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the API logs, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.getLogger("app").addHandler(handler)
    yield stream
    logging.getLogger("app").removeHandler(handler)


# --- queries


async def test_unknown_query_parameter_is_refused_by_its_name(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    refused = [
        await api.get("/orders?stauts=failed&limit=2&Cursor=x"),
        await api.post("/orders?dry_run=true&prefer=1", json=order_body()),
        await api.get("/saga?customer_id=cus_1&since=5"),
        await api.get("/inventory?sku=MUG&status=failed"),
        await api.get("/metrics?a&b="),
    ]
    named = [[error["field"] for error in answer.json()["errors"]] for answer in refused]
    assert [answer.status_code for answer in refused] == [422] * 5
    assert named == [
        *(["Cursor", "stauts"], ["dry_run", "prefer"], ["customer_id", "since"], ["sku", "status"], ["a", "b"])
    ]
    assert await shop.mongo.orders.count_documents({}) == 0
    assert (await api.get("/healthz?probe=1")).status_code == 200


async def test_stranger_with_unknown_parameter_gets_401(settings: ApiSettings, temporal_server: Server) -> None:
    async with serve(closed(settings, "shop"), temporal_server.address) as api:
        assert (await api.get("/orders?a=b")).status_code == 401
        assert (await api.get("/orders?a=b", headers=bearer(key_of("shop")))).status_code == 422


async def test_list_accepts_several_statuses(api: httpx.AsyncClient, shop: Shop) -> None:
    statuses = ["failed", "cancelled", "completed"]
    await shop.mongo.orders.insert_many([order_document(_id=status, status=status) for status in statuses])
    both = await api.get("/orders", params={"status": ["failed", "cancelled"]})
    assert {order["order_id"] for order in both.json()["items"]} == {"failed", "cancelled"}
    wrong = await api.get("/orders", params={"status": ["failed", "lost"]})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "status")


async def test_links_lead_through_all_pages(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.mongo.orders.insert_many([order_document(status=status) for status in ("failed", "cancelled") * 3])
    await shop.mongo.inventory.insert_many([product(f"SKU-{number}") for number in range(4)])
    for first, sizes in {
        "/orders?status=failed&status=cancelled&limit=4": [4, 2],
        "/orders?status=failed&limit=1": [1, 1, 1],
        "/inventory?limit=3": [3, 1],
    }.items():
        found, url = [], first
        while url:
            page = await api.get(url)
            found.append(len(page.json()["items"]))
            assert ("next" in page.links) is bool(page.json()["next_cursor"])
            url = page.links.get("next", {}).get("url", "")
        assert found == sizes, first


# --- ETag, HEAD


async def test_known_state_answers_304_until_it_changes(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    order = await shop.place()
    for path in (f"/orders/{order.order_id}", "/orders", "/orders/counts", "/inventory", "/inventory/MUG"):
        first = await api.get(path)
        known = first.headers["ETag"]
        for condition in (known, f"W/{known}", f'"other", {known}'):
            again = await api.get(path, headers={"If-None-Match": condition})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", known), path
        assert (await api.get(path, headers={"If-None-Match": '"other"'})).content == first.content
        await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": {"customer_id": path, "status": "failed"}})
        await shop.mongo.inventory.update_one({}, {"$inc": {"available": -1}})
        changed = await api.get(path, headers={"If-None-Match": known})
        assert (changed.status_code, changed.headers["ETag"] == known) == (200, False), path
        await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": {"customer_id": "c", "status": "placed"}})


async def test_head_answers_as_get_without_a_body(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    order = (await shop.place()).order_id
    paths = (await api.get("/openapi.json")).json()["paths"]
    gets = [path.format(order_id=order, sku="MUG") for path, methods in paths.items() if "get" in methods]
    statuses = {path: (await api.head(path)).status_code for path in gets}
    assert statuses == {path: 503 if path.endswith("/status") else 200 for path in gets}  # 503: there is no worker
    for path in (f"/orders/{order}", "/static/main.js", "/orders/none", "/"):
        get, head = await api.get(path), await api.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        both = {"content-type", "content-length", "etag"} & {*get.headers}
        assert {name: head.headers[name] for name in both} == {name: get.headers[name] for name in both}
    assert (await api.head("/orders/events")).headers["Content-Type"].startswith("text/event-stream")
    assert await eventually(lambda: change_streams(shop.mongo), lambda count: count == 0) == 0
    assert (await api.head("/orders/none/cancel")).status_code == 405
    assert (await api.delete("/orders")).headers["Allow"] == "GET, HEAD, POST"


# --- request ids


async def test_request_id_is_in_response_problem_and_log(
    settings: ApiSettings, temporal_server: Server, log: io.StringIO
) -> None:
    async with serve(closed(settings, "shop"), temporal_server.address) as api:
        refused = await api.get("/orders", headers={"X-Request-ID": "checkout-7"})
        assert (refused.headers["X-Request-ID"], refused.json()["request_id"]) == ("checkout-7", "checkout-7")
        for unsafe in ("", "a b", "a" * 65, "a\tb", '"}{'):
            assert (await api.get("/orders", headers={"X-Request-ID": unsafe})).headers["X-Request-ID"] != unsafe
        made = [(await api.get("/healthz")).headers["X-Request-ID"] for _ in range(2)]
        assert len({*made}) == 2
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.getvalue().splitlines()]
    assert next(line["request_id"] for line in lines if "401" in line["message"]) == "checkout-7"
    assert len({line["request_id"] for line in lines}) == 6


async def test_503_is_logged_with_its_request_id(api: httpx.AsyncClient, shop: Shop, log: io.StringIO) -> None:
    order = await shop.start()  # without a worker
    refused = await api.get(
        f"/orders/{order.id.removeprefix(WORKFLOW_ID_PREFIX)}/status", headers={"X-Request-ID": "night-3"}
    )
    assert refused.status_code == 503
    (line,) = (json.loads(line) for line in log.getvalue().splitlines() if "503" in line)
    assert (line["message"], line["request_id"]) == ("503: no-worker", "night-3")


async def test_shared_change_stream_logs_no_request_id(api: httpx.AsyncClient, shop: Shop, log: io.StringIO) -> None:
    """It serves all requests, not only the one that opened it."""

    async def logged() -> str:
        return log.getvalue()

    listener = await Listener.connect(api, "/orders/events")
    async with failing(shop.mongo, "getMore", appName=names.NAME, errorCode=280):
        await eventually(logged)
    listener.disconnect()
    line = json.loads(log.getvalue().splitlines()[0])
    assert line["message"].startswith("live events interrupted")
    assert "request_id" not in line


async def test_change_stream_abandoned_while_it_opens_is_closed(mongo: Mongo) -> None:
    async def follow() -> None:
        async with mongo.watch(mongo.orders, []):
            raise AssertionError("not opened by then")

    gc.disable()  # the collector would close the stream, at any time
    try:
        async with failing(mongo, "aggregate", blockConnection=True, blockTimeMS=300):
            following = asyncio.create_task(follow())
            await eventually(lambda: is_opening(mongo))
            following.cancel()
            await asyncio.wait({following})
        assert following.cancelled()
        assert await eventually(lambda: change_streams(mongo), lambda count: count == 0) == 0
    finally:
        gc.enable()


async def is_opening(mongo: Mongo) -> bool:
    """True while mongod holds up an `aggregate` of this test's client."""
    found = await mongo.client.admin.command({"currentOp": 1, "appName": mongo.database.name, "op": "command"})
    return any(operation["command"].get("aggregate") == "orders" for operation in found["inprog"])
