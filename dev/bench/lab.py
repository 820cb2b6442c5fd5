"""The running servers of the benchmark, one stack at a time, with their clients."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from app.mongo import Mongo
from app.names import NAME
from dev.bench import floor
from dev.bench.comparison import in_turns
from dev.bench.floor import Floor
from dev.bench.load import Http, callers
from dev.bench.shop import Shop
from dev.sample_stock import authorization
from dev.servers import Server
from dev.stack import Config, Stack

A = TypeVar("A")
B = TypeVar("B")

CLIENT = "bench"  # the name by which MongoDB knows this process
FINAL = ["completed", "failed", "cancelled"]
WARM_UP = 500  # orders; memory is measured after them
IN_FLIGHT = 50
KEEP_ALIVE = 6.0  # seconds, longer than the API keeps a connection without a request


@dataclass(frozen=True)
class Running:
    """A running stack with its clients."""

    stack: Stack
    http: Http
    shop: Shop
    mongo: Mongo

    async def unfinished_orders(self) -> int:
        return await self.mongo.orders.count_documents({"status": {"$nin": FINAL}})


@dataclass(frozen=True)
class Main(Running):
    """The stack that most rows share, with the floor on the same Temporal server."""

    floor: Floor
    floor_worker: Server

    def pids(self) -> dict[str, int]:
        """The processes of the program and of the floor, without this one, which is the client."""
        return {name: server.pid for name, server in (self.stack.processes | {"floor": self.floor_worker}).items()}


@dataclass(frozen=True)
class Memory:
    """Of a process: resident megabytes, and open file descriptors."""

    megabytes: float
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Linux only."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len([*Path(f"/proc/{pid}/fd").iterdir()]))


async def memory_of(running: Running, times: int) -> list[dict[str, Memory]]:
    """The memory of worker and API, once a second, when connections without requests are closed."""
    await asyncio.sleep(KEEP_ALIVE)
    found = []
    for _ in range(times):
        await asyncio.sleep(1)
        found.append({name: Memory.of(running.stack.processes[name].pid) for name in ("worker", "api")})
    return found


class Lab:
    """Starts what a row measures. `quick` makes all rows small: it shows that they work, not how fast."""

    def __init__(self, *, quick: bool = False, say: Callable[[str], object] = lambda _: None) -> None:
        self.quick = quick
        self.rounds = 1 if quick else 3
        self.say = say
        self._resources = AsyncExitStack()
        self._main: Main | None = None
        self.memory_after_warm_up: list[dict[str, Memory]] = []

    async def __aenter__(self) -> Self:
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

    async def main(self) -> Main:
        """The shared stack, started and warmed up when a row needs it first."""
        if self._main is None:
            running = await self._resources.enter_async_context(self.running())
            address = running.stack.temporal_address
            floor_worker = await floor.start_worker(address, running.stack.logs / "floor.log")
            self._resources.push_async_callback(floor_worker.kill)
            main = Main(**vars(running), floor=await Floor.connect(address), floor_worker=floor_worker)
            count = self.size(WARM_UP, 20)
            self.say(f"warming up: {count} orders")
            await callers(main.shop.complete, in_flight=IN_FLIGHT, count=count)
            await callers(main.floor.run, in_flight=IN_FLIGHT, count=count // 5)
            self.memory_after_warm_up = await memory_of(main, self.rounds)
            self._main = main
        return self._main

    @asynccontextmanager
    async def running(self, *, temporal: str = "", mongodb_uri: str = "", **settings: str) -> AsyncIterator[Running]:
        """Start a stack of its own, on servers that run already if there are addresses."""
        self.say("starting Temporal, MongoDB, worker and API")
        async with AsyncExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix=f"{NAME}-")))
            config = Config.on_free_ports(folder, settings, mongodb_uri=mongodb_uri)
            stack = await resources.enter_async_context(Stack(replace(config, temporal_address=temporal)))
            http = await resources.enter_async_context(Http(stack.api_url, authorization()))
            mongo = Mongo(stack.mongodb_uri, settings.get("MONGODB_DATABASE", NAME), app_name=CLIENT)
            resources.callback(mongo.close)
            shop = Shop(http)
            await shop.stock()
            yield Running(stack, http, shop, mongo)
