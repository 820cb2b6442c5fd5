"""G1, G2, G8 through outages of servers of its own: stopped, paused, back, in every combination.

An answer comes within 3 s and is right; whoever repeats a request with its key gets the one order; what was accepted
reaches its end by itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app import temporal
from app.domain import OrderStatus
from app.mongo import Mongo
from app.settings import Settings
from dev.servers import Server, free_port, start_mongod, start_temporal
from tests.kit.http import serve
from tests.kit.listening import Listener
from tests.kit.orders import ADDRESS, order_body
from tests.kit.shop import Shop, build_shop_worker, relaying
from tests.kit.waiting import eventually


class Plant:
    """MongoDB, Temporal and an API that was started before both of them; a worker with its relay on demand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mongodb_port = free_port()
        self._temporal_port = free_port()
        self.settings = Settings(
            mongodb_uri=f"mongodb://127.0.0.1:{self._mongodb_port}/?replicaSet=rs0", mongodb_database="orders"
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

    async def place(self, key: str | None = None) -> tuple[httpx.Response, float]:
        """POST an order; the answer and the seconds it took."""
        headers = {"Idempotency-Key": key} if key else {}
        return await timed(self.api.post("/orders", json=order_body(), headers=headers))

    async def checks(self) -> dict[str, str]:
        return dict((await self.api.get("/readyz")).json()["checks"])

    async def place_until_accepted(self, key: str) -> str:
        """What a client does that wants its order: it tries again, with its key."""
        answer = await eventually(lambda: self.place(key), lambda answer: answer[0].status_code == 202)
        return str(answer[0].json()["order_id"])


async def timed(request: Awaitable[httpx.Response]) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = await request
    return answer, time.monotonic() - began


async def is_away(request: Awaitable[httpx.Response]) -> None:
    answer, took = await timed(request)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert took < 3


@pytest.fixture(scope="module")
async def plant(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path_factory.mktemp("plant"))
    async with serve(plant.settings, plant.temporal_address) as plant.api:
        # The API runs while both are away, and says so.
        assert (await plant.api.get("/healthz")).json() == {"status": "ok"}
        readiness, took = await timed(plant.api.get("/readyz"))
        assert (readiness.status_code, took < 3) == (503, True)
        nothing = "unavailable: nothing answers at its address"
        assert readiness.json() == {"status": "not_ready", "checks": {"mongodb": nothing, "temporal": nothing}}
        await is_away(plant.api.get("/orders"))
        await plant.start_mongod()
        answer = await eventually(lambda: plant.api.get("/orders"), lambda answer: answer.status_code == 200)
        assert answer.json() == {"items": [], "next_cursor": None}
        mongo = Mongo(plant.settings.mongodb_uri, plant.settings.mongodb_database)
        await mongo.create_indexes()
        client = await temporal.connect(lazy=True, target_host=plant.temporal_address)
        plant.shop = Shop(mongo, plant.settings, client)
        await plant.shop.stock(available=1_000)
        # An order is taken before Temporal was ever there.
        accepted, took = await plant.place()
        assert (accepted.status_code, took < 1) == (202, True)
        await plant.start_temporal()
        plant.shop.client = await temporal.connect(target_host=plant.temporal_address)
        async with running(plant.shop):
            await plant.shop.reaches(accepted.json()["order_id"], OrderStatus.COMPLETED)
        yield plant
        mongo.close()
    for server in (plant.temporal, plant.mongod):
        await server.stop()


@asynccontextmanager
async def running(shop: Shop) -> AsyncIterator[None]:
    """A worker and its relay, as in worker.py."""
    async with build_shop_worker(shop), relaying(shop):
        yield


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_temporal_away(plant: Plant, how: str) -> None:
    async with running(plant.shop):
        (before, _) = await plant.place()
        order_id = before.json()["order_id"]
        await plant.shop.reaches(order_id, OrderStatus.COMPLETED)
        await (plant.temporal.stop() if how == "stopped" else _pause(plant.temporal))

        answers = [await plant.place()]
        answers += await asyncio.gather(*(plant.place() for _ in range(10)))
        assert {answer.status_code for answer, _ in answers} == {202}
        assert max(took for _, took in answers) < 1
        accepted = [answer.json()["order_id"] for answer, _ in answers]

        assert (await plant.api.get(f"/orders/{order_id}")).json()["status"] == "completed"
        assert len((await plant.api.get("/orders")).json()["items"]) > 11
        checks = await plant.checks()
        assert checks["mongodb"] == "ok"
        assert checks["temporal"].startswith("unavailable: ")
        await asyncio.gather(
            is_away(plant.api.get(f"/orders/{accepted[0]}/status")),
            is_away(plant.api.post(f"/orders/{accepted[1]}/cancel")),
            is_away(plant.api.put(f"/orders/{accepted[2]}/shipping-address", json=ADDRESS)),
        )

        await (plant.start_temporal() if how == "stopped" else _resume(plant.temporal))
        # A cancel that got no answer may have been heard: an order ends one way or the other.
        for order_id in accepted:
            await plant.shop.reaches(order_id, OrderStatus.COMPLETED, OrderStatus.CANCELLED)
        await eventually(plant.checks, lambda checks: checks["temporal"] == "ok")


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_mongodb_away(plant: Plant, how: str) -> None:
    key = secrets.token_hex(8)
    async with running(plant.shop):
        before = await plant.shop.mongo.orders.count_documents({})
        listener = await Listener.to(plant.api, "/orders/events")
        await (plant.mongod.stop() if how == "stopped" else _pause(plant.mongod))
        await asyncio.gather(
            is_away(plant.api.post("/orders", json=order_body(), headers={"Idempotency-Key": key})),
            is_away(plant.api.get("/orders")),
            is_away(plant.api.get("/orders/ord_1")),
            is_away(plant.api.get("/orders/events")),
            is_away(plant.api.get("/orders/ord_1/events")),
            is_away(plant.api.get("/inventory")),
            is_away(plant.api.post("/inventory/MUG/restock", json={"quantity": 1}, headers={"Idempotency-Key": key})),
        )  # fmt: skip
        readiness, took = await timed(plant.api.get("/readyz"))
        assert (readiness.status_code, took < 3) == (503, True)
        assert readiness.json()["checks"]["mongodb"].startswith("unavailable: ")
        assert readiness.json()["checks"]["temporal"] == "ok"
        assert (await plant.api.get("/healthz")).status_code == 200

        await (_resume(plant.mongod) if how == "paused" else plant.start_mongod())
        order_id = await plant.place_until_accepted(key)
        assert await plant.place_until_accepted(key) == order_id
        await plant.shop.reaches(order_id, OrderStatus.COMPLETED)
        assert await plant.shop.mongo.orders.count_documents({}) == before + 1
        # Relay and listener, who lost their stream, hear again of what happens.
        order = await plant.shop.place()
        await plant.shop.reaches(order.order_id, OrderStatus.COMPLETED)
        await listener.until(order_id, "completed")
        await listener.until(order.order_id, "completed")
        listener.vanish()


async def test_both_away(plant: Plant) -> None:
    keys = [secrets.token_hex(8) for _ in range(5)]
    async with running(plant.shop):
        await asyncio.gather(plant.mongod.kill(), plant.temporal.kill())
        for answer, took in await asyncio.gather(*(plant.place(key) for key in keys)):
            assert (answer.status_code, took < 3) == (503, True)
        retries = [asyncio.create_task(plant.place_until_accepted(key)) for key in keys]
        await plant.start_mongod()
        order_ids = await asyncio.gather(*retries)
        await plant.start_temporal()
        for order_id in order_ids:
            await plant.shop.reaches(order_id, OrderStatus.COMPLETED)
        assert len(set(order_ids)) == len(keys)


async def test_the_primary_steps_down_in_the_middle_of_posts(plant: Plant) -> None:
    before = await plant.shop.mongo.orders.count_documents({})
    keys = [secrets.token_hex(8) for _ in range(40)]
    unavailable: list[float] = []

    async def insist(key: str) -> str:
        while True:
            answer, took = await plant.place(key)
            assert took < 3
            if answer.status_code == 202:
                return str(answer.json()["order_id"])
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
            unavailable.append(took)
            await asyncio.sleep(0.1)

    async with running(plant.shop):
        posts = [asyncio.create_task(insist(key)) for key in keys[:20]]
        await eventually(lambda: plant.shop.mongo.orders.count_documents({}), lambda count: count > before)
        step_down = {"replSetStepDown": 2, "secondaryCatchUpPeriodSecs": 0, "force": True}
        await plant.shop.mongo.client.admin.command(step_down)
        posts += [asyncio.create_task(insist(key)) for key in keys[20:]]
        order_ids = await asyncio.gather(*posts)
        assert len(set(order_ids)) == len(keys)
        assert await plant.shop.mongo.orders.count_documents({}) == before + len(keys)
        for order_id in order_ids:
            await plant.shop.reaches(order_id, OrderStatus.COMPLETED)


async def _pause(server: Server) -> None:
    server.pause()


async def _resume(server: Server) -> None:
    server.resume()
