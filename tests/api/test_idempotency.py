"""G2: a request repeated with the same Idempotency-Key takes effect once."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator

import httpx
import pytest

from app.domain import OrderStatus
from app.mongo import Mongo
from app.settings import ApiSettings
from dev.servers import Server
from tests.kit.faults import recorded_commands
from tests.kit.http import bearer, closed, key_of, kind_of, raw, serve
from tests.kit.orders import order_body
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

BAD_KEYS = ["", "k" * 256, "tab\tin it", "null\x00", "bell\x07", "ünïcode"]


@pytest.fixture
def key() -> dict[str, str]:
    """A unique key. The order id is derived from it, and all tests share one Temporal server."""
    return {"Idempotency-Key": f"the key: {secrets.token_hex(4)} / 2?"}


async def workflows(shop: Shop) -> int:
    count = await shop.client.count_workflows(f"TaskQueue = '{shop.settings.task_queue}'")
    return count.count


async def test_hundred_concurrent_posts_with_same_key_make_one_order(
    api: httpx.AsyncClient, shop: Shop, worker: None, key: dict[str, str]
) -> None:
    await shop.stock(available=10)

    async def place() -> httpx.Response:
        """Repeat the request on a 503, as a client does; a busy machine may cause one."""
        while (answer := await api.post("/orders", json=order_body(), headers=key)).status_code == 503:
            pass
        return answer

    answers = await asyncio.gather(*(place() for _ in range(100)))
    assert {answer.status_code for answer in answers} == {202}
    orders = [answer.json() for answer in answers]
    assert len({order["order_id"] for order in orders}) == 1
    order_id = orders[0]["order_id"]
    fixed = ("customer_id", "total", "lines", "payment_method", "shipping_address", "created_at")
    assert all([order[name] for name in fixed] == [orders[0][name] for name in fixed] for order in orders)
    assert {answer.headers["Location"] for answer in answers} == {f"/orders/{order_id}"}
    assert sum(answer.headers.get("Idempotency-Replayed") == "true" for answer in answers) >= 99

    await shop.wait_for_status(order_id, OrderStatus.COMPLETED)
    assert await shop.mongo.orders.count_documents({}) == 1
    assert await eventually(lambda: workflows(shop)) == 1
    assert await shop.available() == 8


async def test_repeated_post_returns_same_order_after_stock_and_order_changed(
    api: httpx.AsyncClient, shop: Shop, worker: None, key: dict[str, str]
) -> None:
    await shop.stock(price=1_000)
    first = (await api.post("/orders", json=order_body(), headers=key)).json()
    await shop.wait_for_status(first["order_id"], OrderStatus.COMPLETED)
    await shop.stock(price=2_000)
    replay = await api.post("/orders", json=order_body(), headers=key)
    assert (replay.status_code, replay.headers["Idempotency-Replayed"]) == (202, "true")
    assert replay.json()["order_id"] == first["order_id"]
    assert (replay.json()["total"], replay.json()["status"]) == (first["total"], "completed")

    await shop.mongo.inventory.delete_many({})  # the product is no longer sold
    assert (await api.post("/orders", json=order_body(), headers=key)).json() == replay.json()


async def test_same_key_with_another_body_is_refused(api: httpx.AsyncClient, shop: Shop, key: dict[str, str]) -> None:
    await shop.stock()
    first = await api.post("/orders", json=order_body(), headers=key)
    assert "Idempotency-Replayed" not in first.headers
    misuse = await api.post("/orders", json=order_body(customer_id="cus_2"), headers=key)
    assert (misuse.status_code, kind_of(misuse)) == (422, "idempotency-key-reused")
    assert misuse.json()["errors"][0]["field"] == "Idempotency-Key"
    assert await shop.mongo.orders.count_documents({}) == 1


async def test_post_sends_mongodb_one_read_and_one_write(
    api: httpx.AsyncClient, shop: Shop, key: dict[str, str]
) -> None:
    await shop.stock()
    for headers in (key, {}):
        async with recorded_commands(shop.mongo) as commands:
            assert (await api.post("/orders", json=order_body(), headers=headers)).status_code == 202
        assert [(entry["op"], entry["ns"].partition(".")[2]) for entry in commands] == [
            ("query", "inventory"),
            ("insert", "orders"),
        ]


async def test_posts_without_key_make_one_order_each(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    ids = {(await api.post("/orders", json=order_body())).json()["order_id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_malformed_key_is_refused(api: httpx.AsyncClient, shop: Shop, key: str) -> None:
    await shop.stock(available=1)
    for path, fields in (("/orders", order_body()), ("/inventory/MUG/restock", {"quantity": 1})):
        body = json.dumps(fields)
        status, answer = await raw(
            api,
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nIdempotency-Key: {key}\r\n\r\n{body}".encode("latin-1"),
        )
        if status == 400:  # the server's HTTP parser rejects some control characters
            assert answer == b"Invalid HTTP request received."
        else:
            assert (status, json.loads(answer)["errors"][0]["field"]) == (422, "Idempotency-Key")
    assert await shop.mongo.orders.count_documents({}) == 0
    assert await shop.available() == 1


async def test_longest_key_is_accepted(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    headers = {"Idempotency-Key": "~" * 255}
    assert (await api.post("/orders", json=order_body(), headers=headers)).status_code == 202


async def test_restock_repeated_hundred_times_counts_once(
    api: httpx.AsyncClient, shop: Shop, key: dict[str, str]
) -> None:
    await shop.stock(available=1)

    async def restock() -> httpx.Response:
        """Repeat the request on a 503, as a client does; a busy machine may cause one."""

        async def send() -> httpx.Response:
            return await api.post("/inventory/MUG/restock", json={"quantity": 5}, headers=key)

        return await eventually(send, lambda answer: answer.status_code != 503)

    answers = await asyncio.gather(*(restock() for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["available"] for answer in answers} == {6}
    assert sum(answer.headers.get("Idempotency-Replayed") == "true" for answer in answers) >= 99
    assert await shop.available() == 6


async def test_restock_with_key_of_another_restock_is_refused(
    api: httpx.AsyncClient, shop: Shop, key: dict[str, str]
) -> None:
    await shop.stock("MUG", available=0)
    await shop.stock("TEA", available=0)
    await api.post("/inventory/MUG/restock", json={"quantity": 5}, headers=key)
    for path, quantity in (("/inventory/MUG/restock", 6), ("/inventory/TEA/restock", 5)):
        misuse = await api.post(path, json={"quantity": quantity}, headers=key)
        assert (misuse.status_code, misuse.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    assert (await shop.available("MUG"), await shop.available("TEA")) == (5, 0)


async def test_failed_restock_leaves_its_key_unused(api: httpx.AsyncClient, shop: Shop, key: dict[str, str]) -> None:
    assert (await api.post("/inventory/MUG/restock", json={"quantity": 5}, headers=key)).status_code == 404
    await shop.stock(available=1)
    answer = await api.post("/inventory/MUG/restock", json={"quantity": 5}, headers=key)
    assert (answer.status_code, answer.json()["available"]) == (200, 6)
    assert "Idempotency-Replayed" not in answer.headers


# --- callers


@pytest.fixture
async def keyed_api(settings: ApiSettings, temporal_server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """The API with two callers."""
    async with serve(closed(settings, "shop", "app"), temporal_server.address) as http:
        yield http


async def test_same_key_of_two_callers_makes_two_orders(
    keyed_api: httpx.AsyncClient, shop: Shop, key: dict[str, str]
) -> None:
    await shop.stock()
    ids = [
        (await keyed_api.post("/orders", json=order_body(), headers={**key, **bearer(key_of(name))})).json()["order_id"]
        for name in ("shop", "app", "shop")
    ]
    assert ids[0] == ids[2] != ids[1]
    assert await shop.mongo.orders.count_documents({}) == 2


@pytest.mark.parametrize("authorization", [{}, bearer("wrong"), {"Authorization": "Basic c2hvcDpzaG9w"}])
async def test_request_without_known_api_key_is_refused_and_writes_nothing(
    keyed_api: httpx.AsyncClient, shop: Shop, mongo: Mongo, authorization: dict[str, str]
) -> None:
    await shop.stock()
    for method, path, body in (
        ("POST", "/orders", order_body()),
        ("GET", "/orders", None),
        ("GET", "/orders/ord_1", None),
        ("GET", "/orders/ord_1/status", None),
        ("POST", "/orders/ord_1/cancel", None),
        ("POST", "/orders/ord_1/approval", {"approved": True}),
        ("PUT", "/orders/ord_1/shipping-address", order_body()["shipping_address"]),
        ("GET", "/orders/events", None),
        ("GET", "/orders/ord_1/events", None),
        ("GET", "/inventory", None),
        ("GET", "/inventory/MUG", None),
        ("PUT", "/inventory/MUG", {"name": "Mug", "unit_price": {"amount": 1, "currency": "EUR"}, "available": 1}),
        ("POST", "/inventory/MUG/restock", {"quantity": 1}),
    ):
        answer = await keyed_api.request(method, path, json=body, headers=authorization)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert await mongo.orders.count_documents({}) == 0
    assert await shop.available() == 100
    assert (await keyed_api.get("/healthz")).status_code == (await keyed_api.get("/readyz")).status_code == 200
