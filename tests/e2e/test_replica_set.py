"""A replica set of three members: one that is down, rolled-back writes, and failovers under load (G1, G2, G3)."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient
from temporalio.client import Client

from app.mongo import Mongo
from app.settings import ApiSettings
from dev.servers import ReplicaSet, Server, free_port
from tests.kit.http import serve
from tests.kit.orders import order_body
from tests.kit.relay import running_relay
from tests.kit.shop import Shop, build_shop_worker
from tests.kit.waiting import eventually

TERMINAL = {"completed", "failed", "cancelled"}
SKU = "MUG"


@pytest.fixture(scope="module")
async def replica_set(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ReplicaSet]:
    ports = [free_port() for _ in range(3)]
    replica_set = await ReplicaSet.start(tmp_path_factory.mktemp("mongodb"), ports)
    yield replica_set
    await replica_set.stop()


@asynccontextmanager
async def running(
    replica_set: ReplicaSet, client: Client, database: str, election_timeout: float
) -> AsyncIterator[httpx.AsyncClient]:
    """Run a worker, its relay and an API on a database of the replica set. Fails if one of these ends."""
    await set_election_timeout(replica_set, election_timeout)
    settings = ApiSettings(
        mongodb_uri=replica_set.uri, mongodb_database=database, task_queue=secrets.token_hex(6), api_open=True
    )
    mongo = Mongo(settings.mongodb_uri, settings.mongodb_database)
    try:
        await mongo.create_indexes()
        shop = Shop(mongo, settings, client)
        address = client.service_client.config.target_host
        async with build_shop_worker(shop), running_relay(shop), serve(settings, address, patient=False) as api:
            yield api
    finally:
        mongo.close()


async def set_election_timeout(replica_set: ReplicaSet, seconds: float) -> None:
    primary = await replica_set.primary()
    config = (await replica_set.command(primary, {"replSetGetConfig": 1}))["config"]
    config["version"] += 1
    config["settings"]["electionTimeoutMillis"] = round(seconds * 1000)
    await replica_set.command(primary, {"replSetReconfig": config})


async def stock(api: httpx.AsyncClient, available: int) -> None:
    product = {"name": "Mug", "unit_price": {"amount": 1_000, "currency": "EUR"}, "available": available}
    (await api.put(f"/inventory/{SKU}", json=product)).raise_for_status()


# --- a member is down


async def test_indexes_are_created_while_a_member_is_down(replica_set: ReplicaSet) -> None:
    """By default, MongoDB waits for every voting member if the collection has documents: no new worker would start."""
    primary = await replica_set.primary()
    secondary = next(member for member in replica_set.members if member is not primary)
    await secondary.kill()
    mongo = Mongo(replica_set.uri, "indexes")
    try:
        await mongo.orders.insert_one({"_id": "placed before the first worker started"})
        await mongo.create_indexes()
        assert len(await mongo.orders.index_information()) == 4
    finally:
        mongo.close()
        await replica_set.restart(secondary)
    await replica_set.wait_until_complete()


# --- rollback


class KeyedRequests:
    """An order of two mugs and a restock of five. Each call repeats the request with the same idempotency key."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._headers = {"Idempotency-Key": secrets.token_hex(8)}
        self.customer_id = f"cus_{secrets.token_hex(4)}"

    async def place(self) -> httpx.Response:
        body = order_body(customer_id=self.customer_id)
        return await self._api.post("/orders", json=body, headers=self._headers)

    async def restock(self) -> httpx.Response:
        return await self._api.post(f"/inventory/{SKU}/restock", json={"quantity": 5}, headers=self._headers)

    async def assert_unavailable(self) -> None:
        answers = await asyncio.gather(self.place(), self.restock())
        seen = [(answer.status_code, answer.headers.get("Retry-After")) for answer in answers]
        assert seen == [(503, "2"), (503, "2")], [answer.text for answer in answers]


async def test_request_repeated_on_a_primary_without_majority_is_not_acknowledged(
    client: Client, replica_set: ReplicaSet
) -> None:
    # The primary must not step down while both requests are sent twice, and each takes up to 3 s.
    async with running(replica_set, client, "rollback", election_timeout=12) as api:
        await stock(api, available=100)
        requests = KeyedRequests(api)
        old = await replica_set.primary()
        others = [member for member in replica_set.members if member is not old]
        await asyncio.gather(*(member.kill() for member in others))

        await requests.assert_unavailable()
        assert await stored_locally(old, requests.customer_id) == 1  # this write will be rolled back
        await requests.assert_unavailable()
        assert (await replica_set.command(old, {"hello": 1}))["isWritablePrimary"]

        await old.kill()
        others = [await replica_set.restart(member) for member in others]
        await replica_set.elect(others[0])
        placed = await eventually(requests.place, lambda answer: answer.status_code == 202)
        await eventually(requests.restock, lambda answer: answer.status_code == 200)
        order_id = placed.json()["order_id"]
        assert (await terminal_order(api, order_id))["status"] == "completed"

        old = await replica_set.restart(old)
        rolled_back = await eventually(lambda: rollback_of(old), within=30)
        assert {"rollback.orders", "rollback.restocks", "rollback.inventory"} <= rolled_back

        # The member with the rolled-back writes answers like the others.
        await replica_set.elect(old)
        assert (await terminal_order(api, order_id))["status"] == "completed"
        again = await eventually(requests.place, lambda answer: answer.status_code == 202)
        assert again.json()["order_id"] == order_id
        await eventually(requests.restock, lambda answer: answer.status_code == 200)
        assert (await api.get(f"/inventory/{SKU}")).json()["available"] == 100 - 2 + 5
        assert len((await api.get("/orders", params={"customer_id": requests.customer_id})).json()["items"]) == 1


async def stored_locally(member: Server, customer_id: str) -> int:
    """The number of this customer's orders on this member, including writes without a majority."""
    async with AsyncMongoClient[dict[str, Any]](member.address) as client:
        return await client["rollback"]["orders"].count_documents({"customer_id": customer_id})


async def rollback_of(member: Server) -> set[str]:
    """The collections with rolled-back writes on this member. Empty until the rollback is complete."""
    log = member.log_text()
    return set(re.findall(r'rollback file.*?"namespace":"(.*?)"', log)) if "Rollback successful" in log else set()


async def terminal_order(api: httpx.AsyncClient, order_id: str) -> dict[str, Any]:
    return await eventually(lambda: order_of(api, order_id), lambda order: order.get("status") in TERMINAL, within=45)


async def order_of(api: httpx.AsyncClient, order_id: str) -> dict[str, Any]:
    order: dict[str, Any] = (await api.get(f"/orders/{order_id}")).json()
    return order


# --- failovers under load


class Customers:
    """Place orders one after another, and repeat each request with its key until it is accepted."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._done = asyncio.Event()
        self.pause = 1.0  # seconds between the orders of a customer
        self.accepted: dict[str, str] = {}  # order id by key
        self.answers = Counter[int]()
        self.unexpected: list[str] = []

    @asynccontextmanager
    async def ordering(self, customers: int) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for _ in range(customers):
                group.create_task(self._order())
            try:
                yield
            finally:
                self._done.set()

    async def placed(self, count: int) -> None:
        """Wait until this many orders have been accepted."""
        async with asyncio.timeout(30):
            while len(self.accepted) < count:  # noqa: ASYNC110 - an event for each count is no simpler
                await asyncio.sleep(0.05)

    async def _order(self) -> None:
        while not self._done.is_set():
            key = secrets.token_hex(8)
            headers = {"Idempotency-Key": key}
            while True:
                answer = await self._api.post("/orders", json=order_body(), headers=headers)
                self.answers[answer.status_code] += 1
                if answer.status_code == 202:
                    self.accepted[key] = answer.json()["order_id"]
                    break
                if answer.status_code != 503:
                    self.unexpected.append(f"{answer.status_code}: {answer.text}")
                await asyncio.sleep(0.2)
            await asyncio.sleep(self.pause)


async def test_failovers_under_load_lose_and_duplicate_no_order(
    client: Client, replica_set: ReplicaSet, exhaustive: bool
) -> None:
    """A normal run has the hardest failover, with two primaries at once; `--exhaustive` has all."""
    async with running(replica_set, client, "failovers", election_timeout=1) as api:
        await stock(api, available=10_000)
        customers = Customers(api)
        async with customers.ordering(3):
            for fail_over in (pause_primary, *[roll_back, kill_primary, step_down] * exhaustive):
                # Orders for a rollback must arrive in the half second in which the primary still accepts them.
                customers.pause = 0.2 if fail_over is roll_back else 1.0
                await customers.placed(len(customers.accepted) + 3)
                before = len(customers.accepted)
                await fail_over(replica_set)
                await customers.placed(before + 4)
                await replica_set.wait_until_complete()

        assert customers.unexpected == []
        assert len(set(customers.accepted.values())) == len(customers.accepted)
        orders = [await terminal_order(api, order_id) for order_id in customers.accepted.values()]
        assert {order["status"] for order in orders} == {"completed"}
        assert await violations_of(replica_set, {order["order_id"]: order["total"]["amount"] for order in orders}) == []


async def kill_primary(replica_set: ReplicaSet) -> None:
    primary = await replica_set.primary()
    await primary.kill()
    await replica_set.primary()
    await replica_set.restart(primary)


async def roll_back(replica_set: ReplicaSet) -> None:
    primary = await replica_set.roll_back(downtime=2.5)  # longer than the API's driver waits for a primary
    await eventually(lambda: rollback_of(primary), lambda collections: "failovers.orders" in collections)


async def pause_primary(replica_set: ReplicaSet) -> None:
    primary = await replica_set.primary()
    primary.pause()
    try:
        await replica_set.primary()
    finally:
        primary.resume()


async def step_down(replica_set: ReplicaSet) -> None:
    await replica_set.step_down()
    await replica_set.primary()


async def violations_of(replica_set: ReplicaSet, totals: dict[str, int]) -> list[str]:
    """Compare stock and payments with the completed orders. Returns a line for each violation."""
    violations = []
    async with AsyncMongoClient[dict[str, Any]](replica_set.uri) as client:
        database = client["failovers"]
        if (stored := await database.orders.count_documents({})) != len(totals):
            violations.append(f"{stored} orders are stored")
        held = 0
        async for order in database.orders.find({"steps.reserve_inventory.status": "done"}):
            held += sum(line["quantity"] for line in order["steps"]["reserve_inventory"]["quantities"])
        product = await database.inventory.find_one({"_id": SKU}) or {}
        if held != 2 * len(totals) or product["available"] + held != 10_000:
            violations.append(f"{product['available']} mugs are available, {held} are held")
        payments = {entry["_id"]: entry async for entry in database.sandbox.find()}
    for order_id, total in totals.items():
        payment = payments.get(f"payment:{order_id}", {})
        if (paid := payment.get("captured", 0) - payment.get("refunded", 0)) != total:
            violations.append(f"{order_id}: paid {paid} of {total}")
    return violations
