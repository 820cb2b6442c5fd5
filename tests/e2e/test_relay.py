"""The relay: every open order gets a running workflow, even if another program inserted it (G1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from bson import Binary, Decimal128, Int64, ObjectId, encode
from pymongo.read_concern import ReadConcern
from temporalio.client import WorkflowExecutionAsyncIterator
from temporalio.service import RPCError

from app import order_workflows, temporal
from app.domain import Order, OrderStatus
from app.mongo import ChangeStream, Document
from app.order_workflows import OrderWorkflows
from app.orders import OrderRepository
from app.relay import SWEEP_INTERVAL, OutboxRelay
from tests.kit.faults import delayed_majority, failing
from tests.kit.orders import order_document
from tests.kit.pairs import case
from tests.kit.relay import running_relay
from tests.kit.shop import Shop
from tests.kit.waiting import eventually


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the grace period, because the API starts no workflow in these tests."""
    monkeypatch.setattr("app.relay.GRACE", 0.1)


@pytest.fixture
async def relay(shop: Shop, worker: None) -> AsyncIterator[None]:
    """Run a relay beside a worker, with enough stock."""
    await shop.mongo.create_indexes()
    await shop.stock(available=1_000)
    async with running_relay(shop):
        yield


async def raw_document(shop: Shop, order_id: Any) -> Document:
    document = await shop.mongo.orders.find_one({"_id": order_id})
    assert document is not None
    return document


# --- orders inserted by other programs


@pytest.mark.usefixtures("relay")
async def test_order_inserted_by_another_program_gets_a_workflow(shop: Shop) -> None:
    document = order_document()
    for optional_field in ("status", "created_at", "updated_at"):
        del document[optional_field]
    document["lines"][0]["quantity"] = Int64(2)
    document["total"]["amount"] = Int64(2_000)
    document["note"] = "from the shell"
    await shop.mongo.orders.insert_one(document)
    await eventually(lambda: raw_document(shop, document["_id"]), lambda found: found.get("status") == "completed")
    order = await shop.order(document["_id"])
    assert (datetime.now(UTC) - order.created_at).total_seconds() < 15
    assert (await raw_document(shop, order.order_id))["note"] == "from the shell"


MALFORMED: list[tuple[Document, str]] = [
    ({"_id": "empty"}, "customer_id: required"),
    ({"_id": ObjectId()}, "_id: must be text"),
    ({"_id": 5}, "_id: must be text"),
    ({"_id": {"a": 1}}, "_id: must be text"),
    (order_document(_id="with/slash"), "_id: must be 1 to 64 letters"),
    (order_document(_id="x" * 65), "_id: must be 1 to 64 letters"),
    (order_document(_id="customer", customer_id={"$gt": ""}), "customer_id: must be text"),
    (order_document(_id="lines_none") | {"lines": []}, "lines: choose at least one product"),
    (order_document(_id="lines_text") | {"lines": "MUG"}, "lines: must be a list"),
    (order_document({f"S{i}": 1 for i in range(51)}, _id="lines_51"), "lines: choose at most 50"),
    (order_document({"MUG": 0}, _id="quantity_0"), "lines.0.quantity: must be at least 1"),
    (order_document(_id="total", total={"amount": 1, "currency": "EUR"}), "total is not the sum of the lines"),
    (order_document(_id="float", total={"amount": 2_000.0, "currency": "EUR"}), "total.amount: "),
    (order_document(_id="decimal", total={"amount": Decimal128("2000"), "currency": "EUR"}), "total.amount: "),
    (order_document(_id="currency", total={"amount": 2_000, "currency": "USD"}), "must be priced in one currency"),
    (order_document(_id="twice") | {"lines": order_document()["lines"] * 2}, "lines: must list each product once"),
    (order_document(_id="status", status="lost"), "status: must be one of"),
    (order_document(_id="status_list", status=["placed"]), "status: must be one of"),
    (order_document(_id="steps", steps=5), "steps: must be a list"),
    (order_document(_id="steps_wrong", steps={"reserve_inventory": 5}), "steps: must be a list"),
    (order_document(_id="address", shipping_address="London"), "shipping_address: must be an object"),
    (order_document(_id="email", email=None), "email: must be text"),
    (order_document(_id="binary", payment_method=Binary(b"\x00\xff")), "payment_method: "),
    (order_document(_id="time_text", created_at="2026-01-01T00:00:00Z"), "created_at: "),
    (order_document(_id="time_far") | {"created_at": Int64(2**60)}, "created_at: "),
    (order_document(_id="huge", customer_id="x" * 15_000_000), "customer_id: must be 1 to 64 letters"),
]  # fmt: skip


@pytest.mark.usefixtures("relay")
async def test_malformed_documents_are_marked_and_block_no_other_order(shop: Shop, api: httpx.AsyncClient) -> None:
    for document, _ in MALFORMED:
        await shop.mongo.orders.insert_one(document)
    good = await shop.place()
    await shop.wait_for_status(good.order_id, OrderStatus.COMPLETED)

    for document, reason in MALFORMED:
        marked = await eventually(
            lambda order_id=document["_id"]: raw_document(shop, order_id),  # type: ignore[misc]
            lambda found: found.get("status") == "failed",
        )
        assert marked["failure"]["code"] == "malformed"
        assert marked["failure"]["message"].startswith(reason), marked["_id"]
        assert isinstance(marked["created_at"], datetime)

    # Lists show each of them once, and each can be read.
    listed: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await api.get("/orders", params={"limit": 5} | ({"cursor": cursor} if cursor else {}))).json()
        listed += [order["order_id"] for order in page["items"]]
        cursor = page["next_cursor"]
    assert sorted(listed) == sorted([good.order_id, *(str(document["_id"]) for document, _ in MALFORMED)])
    shown = (await api.get("/orders/total")).json()
    assert shown["failure"] == {"code": "malformed", "message": "total is not the sum of the lines"}
    count = await shop.client.count_workflows(f"TaskQueue = '{shop.settings.task_queue}'")
    assert count.count == 1


@pytest.mark.usefixtures("relay")
async def test_final_order_restored_from_backup_is_not_started(shop: Shop) -> None:
    await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)  # the stream is open
    restored = order_document(status="completed")
    await shop.mongo.orders.insert_one(restored)
    await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)
    with pytest.raises(RPCError, match="not found"):
        await shop.handle(restored["_id"]).describe()


# --- Temporal


async def test_several_relays_start_each_workflow_once(shop: Shop, worker: None) -> None:
    await shop.stock(available=1_000)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(running_relay(shop))
        orders = [await shop.place({"MUG": 1}) for _ in range(6)]
        for order in orders:
            await shop.wait_for_status(order.order_id, OrderStatus.COMPLETED)
    assert await shop.available() == 1_000 - 6
    count = await shop.client.count_workflows(f"TaskQueue = '{shop.settings.task_queue}'")
    assert count.count == 6


async def test_lost_order_is_started_although_the_list_of_running_ones_is_long_and_slow(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole list takes longer than the timeout of a page, and than the lease, which two relays take in turns."""
    for name, value in {"LIST_PAGE": 1, "LIST_TIMEOUT": 1.5}.items():
        monkeypatch.setattr(order_workflows, name, value)
    monkeypatch.setattr("app.relay.LEASE", 0.6)
    fetch = WorkflowExecutionAsyncIterator.fetch_next_page

    async def fetch_slowly(pages: WorkflowExecutionAsyncIterator, **options: Any) -> None:
        if "WorkflowId IN" not in (pages._input.query or ""):
            await asyncio.sleep(0.4)
        await fetch(pages, **options)

    running = [await shop.start() for _ in range(5)]
    await eventually(shop.workflows.running, lambda found: len(found) == 5)
    monkeypatch.setattr(WorkflowExecutionAsyncIterator, "fetch_next_page", fetch_slowly)
    async with running_relay(shop), running_relay(shop):
        lost = await shop.place()
        await eventually(lambda: shop.workflows.running([lost.order_id]))
    for handle in [*running, shop.handle(lost.order_id)]:
        await handle.terminate()


async def test_order_with_failing_start_blocks_no_other_order(
    shop: Shop, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.relay.FAILED_START_DELAY", 0.1)
    await shop.stock(available=10)

    class FailingForOneOrder(OrderWorkflows):
        """Starts the workflow of one order in a missing namespace, which fails."""

        async def start(self, order: Any, timeout: float = 1) -> None:
            await (lost if order.order_id == "unlucky" else shop.workflows).start(order, timeout)

    elsewhere = await temporal.connect(target_host=shop.client.service_client.config.target_host, namespace="nowhere")
    lost = OrderWorkflows(elsewhere, shop.settings)
    await shop.place(_id="unlucky")
    running = asyncio.create_task(
        OutboxRelay(shop.mongo, shop.orders, FailingForOneOrder(shop.client, shop.settings)).run()
    )
    try:
        for _ in range(3):
            order = await shop.place({"MUG": 1})
            await shop.wait_for_status(order.order_id, OrderStatus.COMPLETED)
        assert (await shop.order("unlucky")).status is OrderStatus.PLACED
        lost = shop.workflows  # end of the fault
        await shop.wait_for_status("unlucky", OrderStatus.COMPLETED)
    finally:
        running.cancel()
        await asyncio.wait([running])


class CountingWorkflows(OrderWorkflows):
    """Counts the starts."""

    starts = 0

    async def start(self, order: Order, timeout: float = 1) -> None:
        self.starts += 1
        await super().start(order, timeout)


@pytest.mark.parametrize("relays", [case(1, chosen=False), 4])
async def test_order_started_by_api_is_not_started_again_by_relays(
    shop: Shop, worker: None, relays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders may stay open for longer than the grace period. An order that the API missed is started once."""
    monkeypatch.setattr("app.relay.GRACE", 2.0)
    await shop.stock()
    counting = [CountingWorkflows(shop.client, shop.settings) for _ in range(relays)]
    running = [asyncio.create_task(OutboxRelay(shop.mongo, shop.orders, each).run()) for each in counting]
    try:
        await eventually(lambda: shop.mongo.relay.find_one({}))
        started = [await shop.start({"MUG": 1}) for _ in range(4)]
        waiting = await shop.start({"MUG": 1}, price=shop.settings.approval_threshold)
        missed = await shop.place({"MUG": 1})
        for handle in started:
            await shop.wait_for_status(handle, OrderStatus.COMPLETED)
        await shop.wait_for_status(missed.order_id, OrderStatus.COMPLETED)
        await shop.wait_for_status(waiting, OrderStatus.AWAITING_APPROVAL)
        assert sum(each.starts for each in counting) == 1
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def test_relay_reads_the_current_order(shop: Shop, worker: None) -> None:
    await shop.stock()
    async with running_relay(shop):
        await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)  # the stream is open
        order = await shop.place()
        await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": {"status": "cancelled"}})
        await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)
    with pytest.raises(RPCError, match="not found"):
        await shop.handle(order.order_id).describe()


async def test_order_that_cannot_be_marked_is_retried(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The document has the maximum size of 16 MB, so no field can be added."""
    monkeypatch.setattr("app.relay.FAILED_START_DELAY", 0.1)
    document = {"_id": "full", "note": ""}
    document["note"] = "x" * (16 * 1024 * 1024 - len(encode(document)))
    await shop.mongo.orders.insert_one(document)

    async def attempts() -> int:
        return caplog.text.count("cannot start order full yet")

    async with running_relay(shop):
        await eventually(attempts, lambda number: number >= 3)


# --- recovery


async def test_orders_inserted_without_a_relay_are_started_later(shop: Shop, worker: None) -> None:
    await shop.stock()
    async with running_relay(shop):
        await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)
    missed = await shop.place()
    malformed = order_document(status="lost")
    await shop.mongo.orders.insert_one(malformed)
    assert malformed["_id"] not in await listed(shop)
    async with running_relay(shop):
        await shop.wait_for_status(missed.order_id, OrderStatus.COMPLETED)
        await eventually(lambda: raw_document(shop, malformed["_id"]), lambda found: found["status"] == "failed")
    assert malformed["_id"] in await listed(shop)


async def listed(shop: Shop) -> list[str]:
    orders, _ = await shop.orders.page([], None, 50, None)
    return [order.order_id for order in orders]


async def test_orders_inserted_as_the_stream_opens_are_started_before_the_next_sweep(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream opens after the inserts, and the sweep reads before a majority has the orders."""
    monkeypatch.setattr("app.relay.LEASE", 60.0)  # to renew it, the relay would wait for a majority
    local = shop.mongo.orders.with_options(read_concern=ReadConcern("local"))
    order_ids = ["first", "second"]
    await shop.mongo.create_indexes()  # as the worker does: creating the collection would wait for a majority, too
    async with AsyncExitStack() as delay, asyncio.TaskGroup() as inserting:

        class InsertedAsItOpens(OrderRepository):
            @asynccontextmanager
            async def watch_inserts(self) -> AsyncIterator[ChangeStream]:
                await delay.enter_async_context(delayed_majority(shop.mongo))
                for order_id in order_ids:
                    inserting.create_task(shop.place(_id=order_id))
                await eventually(lambda: local.count_documents({}), lambda count: count == len(order_ids))
                async with super().watch_inserts() as changes:
                    yield changes

            async def open_ids(self, among: Sequence[Any] | None = None) -> list[Any]:
                found = await super().open_ids(among)
                await delay.aclose()
                return found

        shop.orders = InsertedAsItOpens(shop.mongo)
        async with running_relay(shop):
            running, before_next_sweep = shop.workflows.running, SWEEP_INTERVAL / 2
            await eventually(running, lambda found: found == set(order_ids), within=before_next_sweep)
    for order_id in order_ids:
        await shop.handle(order_id).terminate()


@pytest.mark.usefixtures("relay")
async def test_relay_continues_and_recreates_indexes_after_collection_drop(shop: Shop) -> None:
    await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)
    indexes = await shop.mongo.orders.index_information()
    await shop.mongo.orders.drop()
    await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)
    assert await shop.mongo.orders.index_information() == indexes


async def test_relay_starts_orders_while_indexes_cannot_be_created(shop: Shop, worker: None) -> None:
    """Building one may take long, or be impossible because of an index of the operator's or a right that is missing."""
    await shop.stock(available=10)
    unauthorized = 13
    async with failing(shop.mongo, "createIndexes", errorCode=unauthorized), running_relay(shop):
        await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)
        await shop.mongo.orders.drop()
        await shop.wait_for_status((await shop.place()).order_id, OrderStatus.COMPLETED)
