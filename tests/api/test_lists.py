"""Lists are sorted newest first, paging is stable while orders come in, and every query uses an index."""

from __future__ import annotations

import asyncio
import base64
import re
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import httpx
import pytest
from bson import ObjectId

from app import orders as repository
from app.domain import OrderStatus
from app.mongo import Document, Mongo
from app.orders import EVERY_STATUS, OrderRepository
from app.settings import ApiSettings, Scope
from dev.servers import Server
from dev.stack import ROOT
from tests.kit.http import bearer, closed, key_of, limited_to, serve
from tests.kit.orders import order_document

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ORDERS = 2_000  # of 20 customers, in all statuses
LIMIT = 20


@pytest.fixture
async def many(mongo: Mongo) -> list[Document]:
    """Insert many orders, oldest first. Groups of four share a creation time, so that ids break ties."""
    await mongo.create_indexes()
    statuses = list(OrderStatus)
    documents = [
        order_document(
            _id=f"ord_{number:05}",
            customer_id=f"cus_{number % 20}",
            status=statuses[number % 7 % len(statuses)].value,
            created_at=BEGAN + timedelta(seconds=number // 4),
            updated_at=BEGAN + timedelta(seconds=number // 4),
        )
        for number in range(ORDERS)
    ]
    await mongo.orders.insert_many(documents)
    return documents


async def pages(api: httpx.AsyncClient, **query: Any) -> list[list[str]]:
    """The order ids of every page."""
    found: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        parameters = {**query, **({"cursor": cursor} if cursor else {})}
        answer = await api.get("/orders", params=parameters)
        assert answer.status_code == 200, answer.text
        found.append([order["order_id"] for order in answer.json()["items"]])
        cursor = answer.json()["next_cursor"]
    return found


async def test_list_with_each_filter_pages_newest_first(api: httpx.AsyncClient, many: list[Document]) -> None:
    for customer, status in product((None, "cus_3"), (None, "placed", "cancelled")):
        wanted = [
            order["_id"]
            for order in reversed(many)
            if customer in {None, order["customer_id"]} and status in {None, order["status"]}
        ]
        query = {"customer_id": customer, "status": status, "limit": 77}
        found = await pages(api, **{name: value for name, value in query.items() if value})
        assert [order_id for page in found for order_id in page] == wanted
        assert all(len(page) == 77 for page in found[:-1])


async def test_new_orders_do_not_shift_pages(api: httpx.AsyncClient, mongo: Mongo, many: list[Document]) -> None:
    seen: list[str] = []
    cursor = None
    for page in range(5):
        answer = (await api.get("/orders", params={"limit": 7} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [order["order_id"] for order in answer["items"]]
        cursor = answer["next_cursor"]
        newest = many[-1]["created_at"]
        await mongo.orders.insert_many(
            [order_document(_id=f"zzz_{page}_{number}", created_at=newest) for number in range(9)]
        )
    assert seen == [order["_id"] for order in reversed(many)][: 5 * 7]


async def test_last_page_has_no_cursor(api: httpx.AsyncClient, mongo: Mongo) -> None:
    assert (await api.get("/orders")).json() == {"items": [], "next_cursor": None}
    await mongo.orders.insert_many([order_document() for _ in range(4)])
    assert [len(page) for page in await pages(api, limit=2)] == [2, 2]
    assert [len(page) for page in await pages(api, limit=3)] == [3, 1]
    assert [len(page) for page in await pages(api, limit=200)] == [4]


@pytest.mark.parametrize(
    "position",
    [
        b"",
        b"[]",
        b"[1]",
        b"{}",
        b"[[[[[",
        b'["2026-01-01T00:00:00Z"]',
        b'["2026-01-01T00:00:00Z", {"$gt": ""}]',
        b'["2026-01-01T00:00:00Z", "\\ud800"]',
        b'["9999-12-31T23:59:59-14:00", "a"]',
        b'["2026-01-01T00:00:00", "a"]',
        b'[{"$gt": ""}, "a"]',
        b"\xff\xfe",
    ],
)
async def test_foreign_cursor_is_refused(position: bytes, api: httpx.AsyncClient) -> None:
    cursor = base64.urlsafe_b64encode(position).decode()
    assert (await api.get("/orders", params={"cursor": cursor})).status_code == 422


CRAFTED = [
    *("x", ".", "1", "1.", ".1", "1.-1", "1.0.0", "1.00000000", "1e3.0", "1.0\n", "\u0661.0", "\x00", "null"),
    *("1" * 20 + ".0", "1" * 1_000),
]


@pytest.mark.parametrize("cursor", CRAFTED)
async def test_crafted_cursor_is_refused(api: httpx.AsyncClient, cursor: str) -> None:
    answer = await api.get("/orders", params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "cursor"


async def test_malformed_document_does_not_hide_other_orders(api: httpx.AsyncClient, mongo: Mongo) -> None:
    await mongo.orders.insert_many(
        [
            order_document(_id="ord_good"),
            {"_id": ObjectId()},
            {"_id": 5, "status": ["x"], "steps": {"reserve_inventory": 5}},
            {"_id": "strange", "status": {"a": 1}, "created_at": "yesterday", "customer_id": {"$gt": ""}},
            order_document(_id="total", total={"amount": 1, "currency": "EUR"}),
            order_document(_id="currency", total={"amount": 2_000, "currency": "USD"}),
            order_document(_id="steps", steps={"reserve_inventory": 5}),
            order_document(_id="steps_too", steps=[5]),
        ]
    )
    answer = (await api.get("/orders")).json()
    shown = {order["order_id"]: order for order in answer["items"]}
    assert len(shown) == 5  # the other three are listed once the relay has set their creation time
    assert {order_id for order_id, order in shown.items() if order["failure"] is None} == {"ord_good"}
    for order_id in ("total", "currency", "steps", "steps_too"):
        order = (await api.get(f"/orders/{order_id}")).json()
        assert (order["status"], order["failure"]["code"]) == ("failed", "malformed")
        assert order == shown[order_id]
        assert (await api.post(f"/orders/{order_id}/cancel")).status_code == 409


# --- counts


async def test_counts_have_every_status_the_callers_own_orders_and_a_maximum(
    settings: ApiSettings, temporal_server: Server, many: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = {"ann": limited_to("ann", Scope.ORDERS_READ, customer="cus_3")}
    async with serve(closed(settings, "desk", **limited), temporal_server.address) as api:
        for caller in ("desk", "ann"):
            own = [order["status"] for order in many if caller == "desk" or order["customer_id"] == "cus_3"]
            counts = (await api.get("/orders/counts", headers=bearer(key_of(caller)))).json()
            assert counts == {"by_status": {status: own.count(status) for status in OrderStatus}, "maximum": 10_000}
        monkeypatch.setattr(repository, "MAX_COUNT", 100)
        counts = (await api.get("/orders/counts", headers=bearer(key_of("desk")))).json()
        assert sorted(set(counts["by_status"].values())) == [0, 100]


# --- products


async def test_inventory_pages_by_sku_while_the_api_stays_ready(api: httpx.AsyncClient, mongo: Mongo) -> None:
    price = {"amount": 1, "currency": "EUR"}
    skus = [f"{prefix}{number:04}" for prefix in ("A-", "a.", "b_") for number in range(1_000)]
    malformed: list[Document] = [{"_id": f"A-0{number:03}x", "name": ""} for number in range(200)]
    malformed += [{"_id": "a b"}, {"_id": 5}]
    products = [{"_id": sku, "name": "n" * 200, "unit_price": price, "available": 1} for sku in reversed(skus)]
    await mongo.inventory.insert_many([*products, *malformed])
    first = await api.get("/inventory")
    assert [product["sku"] for product in first.json()["items"]] == skus[:25]  # the other 25 are malformed

    found, ready, cursor = [], [], ""
    while cursor is not None:
        query = {"limit": "200"} | ({"cursor": cursor} if cursor else {})
        page, readiness = await asyncio.gather(api.get("/inventory", params=query), api.get("/readyz"))
        assert len(page.content) < 200 * 400
        found += [product["sku"] for product in page.json()["items"]]
        ready.append(readiness.status_code)
        cursor = page.json()["next_cursor"]
    assert found == skus
    assert ready == [200] * 16

    recorder = Recorder(mongo, "inventory")
    async with recorder:
        await api.get("/inventory", params={"cursor": "a.0500"})
    (find,) = await recorder.finds()
    assert find["docsExamined"] <= 51
    assert not stages(find["execStats"]) & {"COLLSCAN", "SORT"}

    for query in ({"limit": "0"}, {"limit": "201"}, {"cursor": "a b"}, {"cursor": "$gt"}, {"cursor": ""}):
        assert (await api.get("/inventory", params=query)).status_code == 422, query


# --- query plans


def stages(plan: Any) -> set[str]:
    if isinstance(plan, dict):
        named = {plan["stage"]} if isinstance(plan.get("stage"), str) else set()
        return named.union(*(stages(value) for value in plan.values()))
    return set().union(*(stages(value) for value in plan)) if isinstance(plan, list) else set()


class Recorder:
    """Records the queries of a collection with MongoDB's profiler."""

    def __init__(self, mongo: Mongo, collection: str) -> None:
        self._mongo = mongo
        self._collection = collection

    async def __aenter__(self) -> None:
        namespace = f"{self._mongo.database.name}.{self._collection}"
        await self._mongo.database.command("profile", 2, filter={"ns": namespace})

    async def __aexit__(self, *_: object) -> None:
        await self._mongo.database.command("profile", 0)

    async def finds(self) -> list[Document]:
        return await self.recorded("find")

    async def recorded(self, command: str) -> list[Document]:
        profile = self._mongo.database["system.profile"]
        return await profile.find({f"command.{command}": self._collection}).to_list(None)


@pytest.mark.usefixtures("many")
async def test_every_query_uses_an_index(mongo: Mongo) -> None:
    orders = OrderRepository(mongo)
    recorder = Recorder(mongo, "orders")
    async with recorder:
        choices: list[list[OrderStatus]] = [[], [OrderStatus.PLACED], [OrderStatus.PLACED, OrderStatus.CHARGED]]
        for statuses, customer in product(choices, (None, "cus_3")):
            _, cursor = await orders.page(statuses, customer, LIMIT, None)
            await orders.page(statuses, customer, LIMIT, cursor)
        own = orders.of("cus_3")
        _, cursor = await own.page([], None, LIMIT, None)
        await own.page([], "cus_3", LIMIT, cursor)
        async for _ in orders.changed_since(BEGAN + timedelta(seconds=ORDERS // 4 - 5)):
            pass
        sweep = mongo.orders.find({"status": {"$in": ["placed", None]}})  # the query of the relay
        placed = len(await sweep.to_list(None))
        counted = [await orders.of(customer).counts() for customer in (None, "cus_3")]

    finds = await recorder.finds()
    assert len(finds) == 2 * 7 + 2
    for entry in finds:
        plan = entry["execStats"]
        assert "IXSCAN" in stages(plan), entry["command"]
        assert not stages(plan) & {"COLLSCAN", "SORT"}, entry["command"]
        wanted = placed if [*entry["command"]["filter"]] == ["status"] else LIMIT + 1
        assert entry["docsExamined"] <= wanted + 4, entry["command"]
        assert entry["keysExamined"] <= wanted + 4 + len(EVERY_STATUS), entry["command"]  # one more of each status
    counts = await recorder.recorded("aggregate")
    assert len(counts) == 2 * len(OrderStatus)
    assert not any("COLLSCAN" in entry["planSummary"] for entry in counts)
    most = max(count for numbers in counted for count in numbers.values())
    assert max(max(entry["keysExamined"], entry["docsExamined"]) for entry in counts) <= most + 1


async def test_customer_lists_its_orders_of_unusual_status(mongo: Mongo) -> None:
    """Another program may omit the status, or write one that makes the index a multikey index."""
    await mongo.create_indexes()
    orders = OrderRepository(mongo).of("cus_1")
    without = order_document()
    del without["status"]
    later = order_document(created_at=without["created_at"] + timedelta(seconds=1))
    arrays = [order_document(status=["placed", "charged"]), order_document(customer_id=["cus_1", "x"])]
    await mongo.orders.insert_many([*arrays, later, without])
    recorder = Recorder(mongo, "orders")
    async with recorder:
        page, _ = await orders.page([], None, LIMIT, None)
    assert {later["_id"], without["_id"]} <= {order.order_id for order in page}
    (plan,) = [entry["execStats"] for entry in await recorder.finds()]
    assert not stages(plan) & {"COLLSCAN", "SORT"}


async def test_index_that_conflicts_with_one_of_the_operator_is_left_out(
    mongo: Mongo, caplog: pytest.LogCaptureFixture
) -> None:
    await mongo.orders.create_index("updated_at", name="of_the_operator")
    await mongo.create_indexes()
    assert "left out: Index already exists with a different name: of_the_operator" in caplog.text
    names = {*await mongo.orders.index_information()}
    assert len(names) == 4
    assert "updated_at_1" not in names


async def test_indexes_to_drop_are_not_created_again(mongo: Mongo) -> None:
    await mongo.create_indexes()
    dropped = re.findall(r'dropIndex\("(.*?)"\)', (ROOT / "docs" / "operations.md").read_text())
    assert dropped
    assert not {*await mongo.orders.index_information()} & {*dropped}
