"""Callers: what each scope allows, and whose orders a caller reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from app.domain import OrderStatus
from app.mongo import Mongo
from app.settings import ApiSettings, Scope
from dev.servers import Server
from tests.kit.http import bearer, closed, key_of, kind_of, limited_to, raw, serve
from tests.kit.orders import ADDRESS, order_body, order_document
from tests.kit.shop import Shop

ENDPOINTS: list[tuple[str, str, Any, Scope]] = [
    ("POST", "/orders", order_body(), Scope.ORDERS_WRITE),
    ("GET", "/orders", None, Scope.ORDERS_READ),
    ("GET", "/orders/counts", None, Scope.ORDERS_READ),
    ("GET", "/orders/ord_1", None, Scope.ORDERS_READ),
    ("GET", "/orders/ord_1/status", None, Scope.ORDERS_READ),
    ("GET", "/orders/ord_1/events", None, Scope.ORDERS_READ),
    ("POST", "/orders/ord_1/cancel", None, Scope.ORDERS_WRITE),
    ("POST", "/orders/ord_1/approval", {"approved": True}, Scope.ORDERS_APPROVE),
    ("PUT", "/orders/ord_1/shipping-address", ADDRESS, Scope.ORDERS_WRITE),
    ("GET", "/saga", None, Scope.ORDERS_READ),
    ("GET", "/inventory", None, Scope.INVENTORY_READ),
    ("GET", "/inventory/MUG", None, Scope.INVENTORY_READ),
    (
        "PUT",
        "/inventory/MUG",
        {"name": "Mug", "unit_price": {"amount": 0, "currency": "EUR"}, "available": 9},
        Scope.INVENTORY_WRITE,
    ),
    ("POST", "/inventory/MUG/restock", {"quantity": 1}, Scope.INVENTORY_WRITE),
]
ORDER_ENDPOINTS = [endpoint for endpoint in ENDPOINTS if "ord_1" in endpoint[1]]


@pytest.fixture
async def api(settings: ApiSettings, temporal_server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """The API with a caller for each scope, one without it, and two callers with a customer of their own."""
    limited = {f"only-{s.name}": limited_to(f"only-{s.name}", s, Scope.ORDERS_ANY) for s in Scope}
    limited |= {f"no-{s.name}": limited_to(f"no-{s.name}", *(set(Scope) - {s}), Scope.ORDERS_ANY) for s in Scope}
    for name in ("ann", "bob"):
        scopes = set(Scope) - {Scope.ORDERS_ANY}
        limited[name] = limited_to(name, *scopes, customer=f"cus_{name}")
    async with serve(closed(settings, "shop", "desk", **limited), temporal_server.address) as http:
        yield http


def caller(name: str) -> dict[str, str]:
    return bearer(key_of(name))


def failures(reason: str) -> float:
    return REGISTRY.get_sample_value("http_unauthenticated_total", {"reason": reason}) or 0


# --- scopes


async def test_every_endpoint_needs_its_scope(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    for method, path, body, scope in ENDPOINTS:
        refused = await api.request(method, path, json=body, headers=caller(f"no-{scope.name}"))
        assert (refused.status_code, refused.json()["title"]) == (403, "Not allowed"), path
        assert scope in refused.json()["detail"]
    assert await shop.mongo.orders.count_documents({}) == 0
    assert await shop.available() == 100
    for method, path, body, scope in ENDPOINTS:
        allowed = await api.request(method, path, json=body, headers=caller(f"only-{scope.name}"))
        assert allowed.status_code in (200, 202, 404), (path, allowed.text)


async def test_openapi_description_names_the_scope_of_each_operation(api: httpx.AsyncClient) -> None:
    description = (await api.get("/openapi.json", headers=caller("shop"))).json()
    for method, path, _, scope in ENDPOINTS:
        template = path.replace("ord_1", "{order_id}").replace("MUG", "{sku}")
        operation = description["paths"][template][method.lower()]
        assert [list(each.values()) for each in operation["security"]] == [[[scope]]], template


async def test_of_health_and_description_only_health_is_public(api: httpx.AsyncClient) -> None:
    for path in ("/openapi.json", "/metrics"):
        assert (await api.get(path)).status_code == 401, path
        assert (await api.get(path, headers=caller("only-INVENTORY_READ"))).status_code == 200, path
    for path in ("/healthz", "/readyz"):
        assert (await api.get(path)).status_code == 200, path


# --- before the body is read


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer("a.b.c"), {"Authorization": "Basic c2hvcA=="}])
async def test_stranger_with_any_body_gets_401(api: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for content in (b"{", b"\xef\xbb\xbf{}", b"[" * 10_000, b"x" * 70_000):
        for media_type in ("application/json", "text/plain"):
            answer = await api.post("/orders", content=content, headers={**headers, "Content-Type": media_type})
            assert answer.status_code == 401, content[:9]


async def test_stranger_gets_401_before_the_body_arrives(api: httpx.AsyncClient) -> None:
    head = b"POST /orders HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    status, _ = await raw(api, head)
    assert status == 401


async def test_refused_credentials_are_counted_and_logged_without_what_was_sent(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    before = failures("unknown API key"), failures("no credentials")
    await api.get("/orders", headers=bearer("a-guess-of-a-stranger"))
    await api.get("/orders?customer_id=a-guess-of-a-stranger")
    assert (failures("unknown API key"), failures("no credentials")) == (before[0] + 1, before[1] + 1)
    assert [record.message for record in caplog.records if record.name == "app.api.problems"] == [
        "401: unknown API key",
        "401: no credentials",
    ]
    assert "a-guess" not in caplog.text


# --- ownership


async def test_foreign_order_is_404_for_every_verb(api: httpx.AsyncClient, shop: Shop, mongo: Mongo) -> None:
    await shop.stock()
    await mongo.orders.insert_one(order_document(_id="ord_1", customer_id="cus_ann", status="awaiting_approval"))
    before = await mongo.orders.find_one({"_id": "ord_1"})
    for method, path, body, _ in ORDER_ENDPOINTS:
        headers = {**caller("bob"), "X-Request-ID": "same"}
        foreign = await api.request(method, path, json=body, headers=headers)
        missing = await api.request(method, path.replace("ord_1", "ord_2"), json=body, headers=headers)
        assert foreign.status_code == missing.status_code == 404, path
        assert foreign.json() == {**missing.json(), "detail": missing.json()["detail"].replace("ord_2", "ord_1")}
    assert await mongo.orders.find_one({"_id": "ord_1"}) == before
    assert (await api.get("/orders/ord_1", headers=caller("ann"))).status_code == 200


async def test_list_has_only_the_callers_own_orders(api: httpx.AsyncClient, mongo: Mongo) -> None:
    for name in ("ann", "bob", "ann"):
        await mongo.orders.insert_one(order_document(customer_id=f"cus_{name}"))

    async def customers(name: str, query: str = "") -> list[str]:
        items = (await api.get(f"/orders{query}", headers=caller(name))).json()["items"]
        return [order["customer_id"] for order in items]

    assert await customers("ann") == ["cus_ann"] * 2
    assert await customers("ann", "?customer_id=cus_bob") == []
    assert len(await customers("shop")) == 3
    assert await customers("shop", "?customer_id=cus_bob") == ["cus_bob"]


async def test_order_for_another_customer_is_refused(api: httpx.AsyncClient, shop: Shop, mongo: Mongo) -> None:
    await shop.stock()
    answer = await api.post("/orders", json=order_body(customer_id="cus_bob"), headers=caller("ann"))
    assert (answer.status_code, answer.json()["errors"]) == (
        422,
        [
            {
                "field": "customer_id",
                "code": "foreign_customer",
                "message": "must be your own customer id",
                "pointer": "/customer_id",
            }
        ],
    )
    assert await mongo.orders.count_documents({}) == 0
    own = await api.post("/orders", json=order_body(customer_id="cus_ann"), headers=caller("ann"))
    assert own.status_code == 202
    for_anyone = await api.post("/orders", json=order_body(customer_id="cus_bob"), headers=caller("shop"))
    assert for_anyone.status_code == 202


async def test_order_of_several_customers_belongs_to_none(api: httpx.AsyncClient, mongo: Mongo) -> None:
    """Another program wrote it; MongoDB itself would find it for each of them."""
    await mongo.orders.insert_one({**order_document(_id="ord_1"), "customer_id": ["cus_ann", "cus_bob"]})
    assert (await api.get("/orders/ord_1", headers=caller("ann"))).status_code == 404
    assert (await api.get("/orders", headers=caller("ann"))).json()["items"] == []
    assert (await api.get("/orders/ord_1", headers=caller("shop"))).json()["failure"]["code"] == "malformed"


# --- the record of who decided


async def test_order_keeps_who_placed_and_cancelled_it(api: httpx.AsyncClient, shop: Shop, mongo: Mongo) -> None:
    await shop.stock()
    placed = await api.post("/orders", json=order_body(customer_id="cus_ann"), headers=caller("ann"))
    order_id = placed.json()["order_id"]
    for name in ("shop", "ann"):  # the first cancel counts
        answer = await api.post(f"/orders/{order_id}/cancel", json={"reason": "too late"}, headers=caller(name))
        assert answer.status_code == 202
    order = await mongo.orders.find_one({"_id": order_id})
    assert order is not None
    assert (order["placed_by"], order["cancellation"]["by"]) == ("ann", "shop")
    assert "placed_by" not in answer.json()


async def test_caller_does_not_approve_its_own_order(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock(price=50_000)
    order_id = (await api.post("/orders", json=order_body(), headers=caller("shop"))).json()["order_id"]
    await shop.wait_for_status(order_id, OrderStatus.AWAITING_APPROVAL)
    for approved in (True, False):
        own = await api.post(f"/orders/{order_id}/approval", json={"approved": approved}, headers=caller("shop"))
        assert (own.status_code, kind_of(own)) == (403, "own-order")
    assert (await shop.order(order_id)).approval is None
    # The database keeps the rule, also for a document that the API cannot read.
    await shop.mongo.orders.update_one({"_id": order_id}, {"$set": {"email": ["?"]}})
    unread = await api.post(f"/orders/{order_id}/approval", json={"approved": True}, headers=caller("shop"))
    assert unread.status_code == 409
    await shop.mongo.orders.update_one({"_id": order_id}, {"$set": {"email": "ada@example.org"}})
    assert (await shop.order(order_id)).approval is None
    other = await api.post(f"/orders/{order_id}/approval", json={"approved": True}, headers=caller("desk"))
    assert other.status_code == 202
    order = await shop.wait_for_status(order_id, OrderStatus.COMPLETED)
    assert order.approval is not None
    assert (order.placed_by, order.approval.by) == ("shop", "desk")
