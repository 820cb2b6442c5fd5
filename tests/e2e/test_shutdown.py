"""SIGTERM ends worker and API in time, also while MongoDB or Temporal is frozen and work is under way (G1)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx
from temporalio.api.enums.v1 import PendingActivityState

from app import temporal
from app.mongo import Mongo, next_change
from app.settings import Settings
from dev.servers import Server, free_port, start_mongod, start_temporal
from dev.stack import ROOT
from tests.kit.images import words_of
from tests.kit.listening import Listener
from tests.kit.orders import order_body
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

# Seconds.
WORKER_LIMIT = 15  # what docker-compose.yml grants it before SIGKILL
API_LIMIT = 9  # Docker grants 10

FROZEN: list[tuple[str, ...]] = [(), ("Temporal",), ("mongod",), ("Temporal", "mongod")]


async def test_sigterm_while_servers_are_frozen_stops_worker_and_api_in_time(tmp_path: Path) -> None:
    stops = await asyncio.gather(
        *(stop_while_frozen(tmp_path / str(number), frozen) for number, frozen in enumerate(FROZEN))
    )
    report = [
        f"SIGTERM with {' and '.join(frozen) or 'nothing'} frozen: worker {worker:.1f} s, API {api:.1f} s"
        for frozen, (worker, api) in zip(FROZEN, stops, strict=True)
    ]
    assert all(worker < WORKER_LIMIT and api < API_LIMIT for worker, api in stops), "\n".join(report)


async def stop_while_frozen(folder: Path, frozen: tuple[str, ...]) -> list[float]:
    """Seconds from SIGTERM to the end of worker and API."""
    async with AsyncExitStack() as stack:
        mongod = await start_mongod(folder / "mongod", free_port())
        stack.push_async_callback(mongod.kill)
        temporal_server = await start_temporal(free_port(), log_dir=folder)
        stack.push_async_callback(temporal_server.kill)
        environment = {
            "MONGODB_URI": mongod.address,
            "MONGODB_DATABASE": "orders",
            "TEMPORAL_ADDRESS": temporal_server.address,
        }
        port = free_port()
        here = {"python": sys.executable, "0.0.0.0": "127.0.0.1", "8000": str(port)}  # noqa: S104
        commands = {"worker": [sys.executable, "worker.py"], "api": [here.get(word, word) for word in words_of("CMD")]}
        processes = [
            await Server.start(name, command, address="", log=folder / f"{name}.log", cwd=ROOT, env=environment)
            for name, command in commands.items()
        ]
        for process in processes:
            stack.push_async_callback(process.kill)
        shop = await stack.enter_async_context(connected(mongod, temporal_server))
        await stack.enter_async_context(at_work(shop, f"http://127.0.0.1:{port}"))
        for server in (mongod, temporal_server):
            if server.name in frozen:
                server.pause()
                stack.callback(server.resume)  # before the clients of this test are closed
        stopped = await asyncio.gather(*map(seconds_to_stop, processes))
        assert "Exception in ASGI application" not in processes[1].log_text()
        return stopped


async def seconds_to_stop(process: Server) -> float:
    began = time.monotonic()
    await process.stop(timeout=30)
    return time.monotonic() - began


@asynccontextmanager
async def connected(mongod: Server, temporal_server: Server) -> AsyncIterator[Shop]:
    settings = Settings(mongodb_uri=mongod.address, mongodb_database="orders")
    mongo = Mongo(settings.mongodb_uri, settings.mongodb_database)
    yield Shop(mongo, settings, await temporal.connect(target_host=temporal_server.address))
    mongo.close()


@asynccontextmanager
async def at_work(shop: Shop, address: str) -> AsyncIterator[None]:
    """Requests, an event stream and activities under way."""
    await shop.stock(available=1_000_000)
    async with httpx.AsyncClient(base_url=address, timeout=20) as http, asyncio.TaskGroup() as group:

        async def place_orders() -> None:
            with suppress(httpx.TransportError):  # until the API is gone
                while True:
                    await http.post("/orders", json=order_body(payment_method="pm_card_slow"))
                    await asyncio.sleep(0.05)

        async def healthy() -> bool:
            with suppress(httpx.TransportError):
                return (await http.get("/readyz")).is_success
            return False

        await eventually(healthy)
        listener = await Listener.to(http, "/orders/events")
        clients = [group.create_task(place_orders()) for _ in range(4)]
        order = await shop.start(payment_method="pm_card_slow")

        async def charging() -> bool:
            pending = (await order.describe()).raw_description.pending_activities
            return any(
                activity.activity_type.name == "ChargePayment"
                and activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
                for activity in pending
            )

        await eventually(charging)
        yield
        listener.vanish()
        for client in clients:
            client.cancel()


async def test_change_stream_cancelled_while_mongodb_is_frozen_ends_cancelled(tmp_path: Path) -> None:
    """Closing the stream fails then; that error in place of the cancellation would keep a relay running for ever."""
    mongod = await start_mongod(tmp_path / "mongod", free_port())
    mongo = Mongo(mongod.address, "orders")
    opened = asyncio.Event()

    async def follow() -> None:
        async with mongo.watch(mongo.orders, []) as changes:
            while True:
                await next_change(changes)
                opened.set()

    following = asyncio.create_task(follow())
    try:
        await asyncio.wait_for(opened.wait(), 10)
        mongod.pause()
        following.cancel()
        await asyncio.wait({following}, timeout=5)
        assert following.cancelled()
    finally:
        await mongod.kill()
        await asyncio.wait({following})
        mongo.close()
