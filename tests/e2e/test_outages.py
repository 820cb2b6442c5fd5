"""Outages of MongoDB and Temporal, stopped or paused, alone and together (G1, G2, G8).

The API answers in time. A request repeated with its key returns the same order. Every accepted order reaches a final
status by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.resolver
import httpx
import pytest

from app import temporal
from app.api import orders
from app.api.dependencies import STARTS_AFTER_ANSWER
from app.domain import OrderStatus
from app.mongo import Mongo
from app.settings import ApiSettings
from dev.servers import Server, free_port, start_mongod, start_temporal
from tests.kit.http import kind_of, serve
from tests.kit.listening import Listener
from tests.kit.orders import ADDRESS, order_body
from tests.kit.pairs import case
from tests.kit.relay import running_relay
from tests.kit.shop import Shop, build_shop_worker
from tests.kit.waiting import eventually


class OutageStack:
    """MongoDB, Temporal, and an API that was started before both. A test runs worker and relay on demand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mongodb_port = free_port()
        self._temporal_port = free_port()
        self.settings = ApiSettings(
            api_open=True,
            mongodb_uri=f"mongodb://127.0.0.1:{self._mongodb_port}/?replicaSet=rs0",
            mongodb_database="orders",
        )
        self.temporal_address = f"127.0.0.1:{self._temporal_port}"
        self.mongod: Server
        self.temporal: Server
        self.api: httpx.AsyncClient
        self.shop: Shop

    async def start_mongod(self) -> None:
        self.mongod = await start_mongod(self._folder / "mongod", self._mongodb_port, test_commands=True)

    async def start_temporal(self) -> None:
        db_file = self._folder / "temporal" / "temporal.db"
        self.temporal = await start_temporal(self._temporal_port, db_file=db_file)

    async def place(self, key: str | None = None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return await self.api.post("/orders", json=order_body(), headers=headers)

    async def checks(self) -> dict[str, str]:
        return dict((await self.api.get("/readyz")).json()["checks"])

    async def place_until_accepted(self, key: str) -> str:
        """Repeat the request with its key until it is accepted, as a client does."""
        answer = await eventually(lambda: self.place(key), lambda answer: answer.status_code == 202)
        return str(answer.json()["order_id"])


async def assert_unavailable(request: Awaitable[httpx.Response], *kinds: str) -> None:
    answer = await request
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert kind_of(answer) in {*kinds, "deadline-exceeded"}


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OutageStack]:
    stack = OutageStack(tmp_path_factory.mktemp("outages"))
    async with serve(stack.settings, stack.temporal_address, patient=False) as stack.api:
        # The API runs and reports both outages.
        assert (await stack.api.get("/healthz")).json() == {"status": "ok"}
        readiness = await stack.api.get("/readyz")
        assert readiness.status_code == 503
        nothing = "unavailable: connection refused"
        assert readiness.json() == {"status": "not_ready", "checks": {"mongodb": nothing, "temporal": nothing}}
        await assert_unavailable(stack.api.get("/orders"), "database-unavailable")
        await stack.start_mongod()
        answer = await eventually(lambda: stack.api.get("/orders"), lambda answer: answer.status_code == 200)
        assert answer.json() == {"items": [], "next_cursor": None}
        mongo = Mongo(stack.settings.mongodb_uri, stack.settings.mongodb_database)
        await mongo.create_indexes()
        client = await temporal.connect(lazy=True, target_host=stack.temporal_address)
        stack.shop = Shop(mongo, stack.settings, client)
        await stack.shop.stock(available=1_000)
        # The API accepts an order before Temporal has started.
        accepted = await stack.place()
        assert accepted.status_code == 202
        await stack.start_temporal()
        stack.shop.client = await temporal.connect(target_host=stack.temporal_address)
        async with running(stack.shop):
            await stack.shop.wait_for_status(accepted.json()["order_id"], OrderStatus.COMPLETED)
        yield stack
        mongo.close()
    for server in (stack.temporal, stack.mongod):
        await server.stop()


@asynccontextmanager
async def running(shop: Shop) -> AsyncIterator[None]:
    """Run a worker and its relay, as worker.py does."""
    async with build_shop_worker(shop), running_relay(shop):
        yield


@pytest.mark.parametrize("how", [case("stopped", chosen=False), "paused"])
async def test_temporal_outage_delays_accepted_orders(stack: OutageStack, how: str) -> None:
    async with running(stack.shop):
        before = await stack.place()
        order_id = before.json()["order_id"]
        await stack.shop.wait_for_status(order_id, OrderStatus.COMPLETED)
        await (stack.temporal.stop() if how == "stopped" else _pause(stack.temporal))

        answers = [await stack.place()]
        answers += await asyncio.gather(*(stack.place() for _ in range(4)))
        assert {answer.status_code for answer in answers} == {202}
        accepted = [answer.json()["order_id"] for answer in answers]

        assert (await stack.api.get(f"/orders/{order_id}")).json()["status"] == "completed"
        assert len((await stack.api.get("/orders")).json()["items"]) > 5
        checks = await stack.checks()
        assert checks["mongodb"] == "ok"
        assert checks["temporal"].startswith("unavailable: ")
        await asyncio.gather(
            assert_unavailable(stack.api.get(f"/orders/{accepted[0]}/status"), "temporal-unavailable"),
            assert_unavailable(stack.api.post(f"/orders/{accepted[1]}/cancel"), "temporal-unavailable"),
            assert_unavailable(
                stack.api.put(f"/orders/{accepted[2]}/shipping-address", json=ADDRESS), "temporal-unavailable"
            ),
        )

        await (stack.start_temporal() if how == "stopped" else _resume(stack.temporal))
        # A cancel that was answered with 503 may have been recorded, so both statuses are correct.
        for order_id in accepted:
            await stack.shop.wait_for_status(order_id, OrderStatus.COMPLETED, OrderStatus.CANCELLED)
        await eventually(stack.checks, lambda checks: checks["temporal"] == "ok")


async def test_post_is_answered_before_its_workflow_starts_unless_many_starts_wait(
    stack: OutageStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "START_TIMEOUT", 60)  # longer than the deadline
    async with running(stack.shop):
        stack.temporal.pause()
        answers = [await stack.place() for _ in range(STARTS_AFTER_ANSWER)]
        assert [answer.status_code for answer in answers] == [202] * STARTS_AFTER_ANSWER
        await assert_unavailable(stack.place())
        stack.temporal.resume()
        for answer in answers:
            await stack.shop.wait_for_status(answer.json()["order_id"], OrderStatus.COMPLETED)


@pytest.mark.parametrize("how", ["stopped", case("paused", chosen=False)])
async def test_mongodb_outage_answers_503_and_recovers(stack: OutageStack, how: str) -> None:
    key = secrets.token_hex(8)
    async with running(stack.shop):
        before = await stack.shop.mongo.orders.count_documents({})
        listener = await Listener.connect(stack.api, "/orders/events")
        await (stack.mongod.stop() if how == "stopped" else _pause(stack.mongod))
        await asyncio.gather(
            assert_unavailable(
                stack.api.post("/orders", json=order_body(), headers={"Idempotency-Key": key}), "database-unavailable"
            ),
            assert_unavailable(stack.api.get("/orders"), "database-unavailable"),
            assert_unavailable(stack.api.get("/orders/ord_1"), "database-unavailable"),
            assert_unavailable(stack.api.get("/orders/events"), "database-unavailable"),
            assert_unavailable(stack.api.get("/orders/ord_1/events"), "database-unavailable"),
            assert_unavailable(stack.api.get("/inventory"), "database-unavailable"),
            assert_unavailable(
                stack.api.post("/inventory/MUG/restock", json={"quantity": 1}, headers={"Idempotency-Key": key}),
                "database-unavailable",
            ),
        )
        readiness = await stack.api.get("/readyz")
        assert readiness.status_code == 503
        assert readiness.json()["checks"]["mongodb"].startswith("unavailable: ")
        assert readiness.json()["checks"]["temporal"] == "ok"
        assert (await stack.api.get("/healthz")).status_code == 200

        await (_resume(stack.mongod) if how == "paused" else stack.start_mongod())
        order_id = await stack.place_until_accepted(key)
        assert await stack.place_until_accepted(key) == order_id
        await stack.shop.wait_for_status(order_id, OrderStatus.COMPLETED)
        assert await stack.shop.mongo.orders.count_documents({}) == before + 1
        # Relay and listener have lost their change stream, and must recover.
        order = await stack.shop.place()
        await stack.shop.wait_for_status(order.order_id, OrderStatus.COMPLETED)
        await listener.wait_for(order_id, "completed")
        await listener.wait_for(order.order_id, "completed")
        listener.disconnect()


async def test_outage_of_temporal_and_mongodb_answers_503_and_recovers(stack: OutageStack) -> None:
    keys = [secrets.token_hex(8) for _ in range(5)]
    async with running(stack.shop):
        await asyncio.gather(stack.mongod.kill(), stack.temporal.kill())
        for answer in await asyncio.gather(*(stack.place(key) for key in keys)):
            assert answer.status_code == 503
        retries = [asyncio.create_task(stack.place_until_accepted(key)) for key in keys]
        await stack.start_mongod()
        order_ids = await asyncio.gather(*retries)
        await stack.start_temporal()
        for order_id in order_ids:
            await stack.shop.wait_for_status(order_id, OrderStatus.COMPLETED)
        assert len(set(order_ids)) == len(keys)


async def test_dns_outage_answers_503_as_the_address_of_mongodb_cannot_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver looks up a `mongodb+srv` address at the first call, and at each further one until it succeeds."""

    def resolve(*_: object, **__: object) -> None:
        lookups.append(1)
        raise dns.resolver.NoNameservers

    lookups: list[int] = []
    monkeypatch.setattr(dns.resolver, "resolve", resolve)
    settings = ApiSettings(api_open=True, mongodb_uri="mongodb+srv://db.example.invalid/?authSource=admin")
    async with serve(settings, f"127.0.0.1:{free_port()}", patient=False) as api:
        await assert_unavailable(api.post("/orders", json=order_body()), "database-unavailable")
        await assert_unavailable(api.get("/orders"), "database-unavailable")
        await assert_unavailable(api.get("/orders/events"), "database-unavailable")
        assert len(lookups) >= 3


async def test_primary_step_down_during_posts_loses_no_order(stack: OutageStack) -> None:
    before = await stack.shop.mongo.orders.count_documents({})
    keys = [secrets.token_hex(8) for _ in range(10)]

    async def place_with_retries(key: str) -> str:
        while True:
            answer = await stack.place(key)
            if answer.status_code == 202:
                return str(answer.json()["order_id"])
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
            await asyncio.sleep(0.1)

    async with running(stack.shop):
        posts = [asyncio.create_task(place_with_retries(key)) for key in keys[:5]]
        await eventually(lambda: stack.shop.mongo.orders.count_documents({}), lambda count: count > before)
        step_down = {"replSetStepDown": 2, "secondaryCatchUpPeriodSecs": 0, "force": True}
        await stack.shop.mongo.client.admin.command(step_down)
        posts += [asyncio.create_task(place_with_retries(key)) for key in keys[5:]]
        order_ids = await asyncio.gather(*posts)
        assert len(set(order_ids)) == len(keys)
        assert await stack.shop.mongo.orders.count_documents({}) == before + len(keys)
        for order_id in order_ids:
            await stack.shop.wait_for_status(order_id, OrderStatus.COMPLETED)


async def _pause(server: Server) -> None:
    server.pause()


async def _resume(server: Server) -> None:
    server.resume()
