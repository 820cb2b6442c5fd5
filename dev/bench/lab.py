"""The running servers of the benchmark, one stack at a time, with their clients."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from app.mongo import Mongo
from dev.bench import floor
from dev.bench.comparison import in_turns
from dev.bench.floor import Floor
from dev.bench.load import Http
from dev.bench.shop import Shop
from dev.sample_stock import authorization
from dev.servers import Server
from dev.stack import Config, Stack

A = TypeVar("A")
B = TypeVar("B")

WARM_UP = 40  # orders and runs of the floor


@dataclass(frozen=True)
class Running:
    """A running stack with clients of all that is measured."""

    stack: Stack
    http: Http
    shop: Shop
    mongo: Mongo
    floor: Floor
    floor_worker: Server

    def pids(self) -> dict[str, int]:
        """The processes of the program and of the floor, without this one, which is the client."""
        return {name: server.pid for name, server in (self.stack.processes | {"floor": self.floor_worker}).items()}


class Lab:
    """Starts what a row measures. `quick` makes all rows small: it shows that they work, not how fast."""

    def __init__(self, *, quick: bool = False, say: Callable[[str], object] = lambda _: None) -> None:
        self.quick = quick
        self.rounds = 1 if quick else 3
        self.say = say
        self._resources = AsyncExitStack()
        self._main: Running | None = None

    async def __aenter__(self) -> "Lab":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    async def turns(
        self, first: Callable[[], Awaitable[A]], second: Callable[[], Awaitable[B]]
    ) -> tuple[list[A], list[B]]:
        return await in_turns(self.rounds, first, second)

    async def stop(self) -> None:
        """Stop the main stack, so that it does not disturb another one."""
        self._main = None
        await self._resources.aclose()

    async def main(self) -> Running:
        """The stack that most rows share: one worker, one API, and the floor's worker on the same Temporal server."""
        if self._main is None:
            self._main = await self._resources.enter_async_context(self.running())
        return self._main

    @asynccontextmanager
    async def running(self, *, workers: int = 1, temporal: str = "", **settings: str) -> AsyncIterator[Running]:
        """Start a stack of its own."""
        self.say("starting Temporal, MongoDB, worker and API")
        async with AsyncExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="order-saga-")))
            config = Config.on_free_ports(folder, settings, workers=workers)
            stack = await resources.enter_async_context(Stack(replace(config, temporal_address=temporal)))
            floor_worker = await floor.start_worker(stack.temporal_address, folder / "floor.log")
            resources.push_async_callback(floor_worker.kill)
            http = await resources.enter_async_context(Http(stack.api_url, authorization()))
            mongo = Mongo(stack.mongodb_uri, "orders")
            resources.callback(mongo.close)
            shop = Shop(http)
            await shop.stock()
            yield Running(stack, http, shop, mongo, await Floor.connect(stack.temporal_address), floor_worker)
