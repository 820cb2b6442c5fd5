"""Injected faults: in MongoDB (fail points), in gateways, and in the report of an activity to Temporal.

A fault in a gateway call strikes before or after the call takes effect in the sandbox's records. The reply is then
lost, late, or an error. For an activity without a gateway, the fault strikes when it reports to Temporal. Workflow and
activities run unchanged.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from app.domain import Address, Money
from app.gateways import Capture, Carrier, Gateways, PaymentGateway, Unavailable
from app.mongo import Document, Mongo
from app.workflows.steps import STEPS, activity_name
from tests.kit.shop import Shop, build_shop_worker, sandbox_gateways

# How a command fails. `errorCode` and `closeConnection` strike before any effect. A write concern error strikes after
# the effect, and the caller cannot tell.
AFTER_THE_EFFECT = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}
BEFORE_THE_EFFECT = {"errorCode": 8000}  # the driver does not retry this code
STEP_ACTIVITIES = {activity_name(each) for step in STEPS for each in (step.activity, step.compensation) if each}
UNCOUNTED = ["sandbox", "system.profile", "$cmd"]


@asynccontextmanager
async def failing(mongo: Mongo, *commands: str, mode: Any = "alwaysOn", **how: Any) -> AsyncIterator[None]:
    """Make commands of this test's client fail, and of no other client.

    `mode` is `{"times": 2}` for the first two commands, or `{"skip": 2}` for all but the first two.

    Raises AssertionError if no command was called, because the test then proves nothing.
    """
    point = {"configureFailPoint": "failCommand"}
    data = {"failCommands": list(commands), "appName": mongo.database.name, **how}
    await mongo.client.admin.command({**point, "mode": mode, "data": data})
    try:
        yield
    finally:
        before = await mongo.client.admin.command({**point, "mode": "off"})
    assert before["count"] > 0, f"none of {commands} was called"


@asynccontextmanager
async def delayed_majority(mongo: Mongo) -> AsyncIterator[None]:
    """Hold the snapshot of what a majority has: each write waits, and reads do not see it yet."""
    point = {"configureFailPoint": "disableSnapshotting"}
    await mongo.client.admin.command({**point, "mode": "alwaysOn"})
    try:
        yield
    finally:
        await mongo.client.admin.command({**point, "mode": "off"})
        await mongo.client.admin.command({"appendOplogNote": 1, "data": {}})  # only a write makes the next snapshot


@asynccontextmanager
async def recorded_commands(mongo: Mongo) -> AsyncIterator[list[Document]]:
    """The commands that mongod's profiler recorded for this test's database, without those of the sandbox."""
    await mongo.database.command("profile", 2)
    commands: list[Document] = []
    try:
        yield commands
    finally:
        await mongo.database.command("profile", 0)
    seen = mongo.database["system.profile"].find({"ns": {"$nin": [f"{mongo.database.name}.{n}" for n in UNCOUNTED]}})
    commands += [entry async for entry in seen.sort("ts", 1)]
    await mongo.database["system.profile"].drop()


async def current_operations(mongo: Mongo, pipeline: list[Document]) -> list[Document]:
    """What the server does at the moment. The pipeline begins with `$currentOp`."""
    answer = await mongo.client.admin.command({"aggregate": 1, "pipeline": pipeline, "cursor": {"batchSize": 10_000}})
    operations: list[Document] = answer["cursor"]["firstBatch"]
    return operations


class Gate:
    """Blocks its caller until it is opened."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def hold(self) -> None:
        self._reached.set()
        await self._opened.wait()

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), 10)

    def open(self) -> None:
        self._opened.set()


class FaultyServices:
    """Wraps a payment service and a carrier. A test can block calls, lose replies, or raise errors."""

    def __init__(self, payments: PaymentGateway, carrier: Carrier) -> None:
        self._payments = payments
        self._carrier = carrier
        self.calls = 0
        self.before: list[Gate] = []
        self.after: list[Gate] = []
        self.errors: list[Exception] = []
        self.before_compensation: list[Gate] = []
        self.compensation_errors: list[Exception] = []
        self.lost_replies = 0

    def hold_next(self, point: str) -> Gate:
        gate = Gate()
        (self.before if point == "before the gateway acts" else self.after).append(gate)
        return gate

    async def charge(self, idempotency_key: str, amount: Money, payment_method: str) -> str:
        return await self._call(lambda: self._payments.charge(idempotency_key, amount, payment_method))

    async def ship(self, idempotency_key: str, address: Address) -> str:
        return await self._call(lambda: self._carrier.ship(idempotency_key, address))

    def hold_next_compensation(self) -> Gate:
        self.before_compensation.append(Gate())
        return self.before_compensation[-1]

    async def refund(self, idempotency_key: str) -> bool:
        await self._before_compensation()
        return await self._payments.refund(idempotency_key)

    def captured_between(self, begin: datetime, end: datetime) -> AsyncIterator[list[Capture]]:
        return self._payments.captured_between(begin, end)

    async def cancel(self, idempotency_key: str) -> bool:
        await self._before_compensation()
        return await self._carrier.cancel(idempotency_key)

    async def _before_compensation(self) -> None:
        if self.before_compensation:
            await self.before_compensation.pop().hold()
        self._raise_next(self.compensation_errors)

    async def _call(self, call: Callable[[], Awaitable[str]]) -> str:
        self.calls += 1
        before = self.before.pop() if self.before else None
        after = self.after.pop() if self.after else None
        if before:
            await before.hold()
        self._raise_next(self.errors)
        result = await call()
        if after:
            await after.hold()
        if self.lost_replies:
            self.lost_replies -= 1
            raise ConnectionResetError("the reply was lost")
        return result

    @staticmethod
    def _raise_next(errors: list[Exception]) -> None:
        if errors:
            raise errors.pop(0)


class PlainService:
    """A payment service and carrier with idempotency keys, but without fencing: accepts a charge after its refund."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.returned: set[str] = set()

    async def charge(self, idempotency_key: str, amount: Money, payment_method: str) -> str:
        return self._take(idempotency_key)

    async def ship(self, idempotency_key: str, address: Address) -> str:
        return self._take(idempotency_key)

    async def refund(self, idempotency_key: str) -> bool:
        return self._give_back(idempotency_key)

    async def cancel(self, idempotency_key: str) -> bool:
        return self._give_back(idempotency_key)

    async def captured_between(self, begin: datetime, end: datetime) -> AsyncIterator[list[Capture]]:
        yield []  # not reconciled

    def _take(self, key: str) -> str:
        self.taken.add(key)
        return f"ref_{key}"

    def _give_back(self, key: str) -> bool:
        if key in self.taken:
            self.returned.add(key)
        return key in self.taken


T = TypeVar("T")
Call = Callable[[], Awaitable[T]]


class Fault(Protocol):
    """Wraps a call of an activity, and can delay it or make it fail."""

    async def __call__(self, call: Call[T]) -> T: ...


class Fails:
    """Makes the first `times` calls fail without effect, by default all."""

    def __init__(self, times: float = float("inf")) -> None:
        self.times = times
        self.calls = 0

    async def __call__(self, call: Call[T]) -> T:
        self.calls += 1
        if self.calls <= self.times:
            raise Unavailable
        return await call()


class Pause:
    """Blocks the first call until `resume` is set: before its effect, or after it with `done=True`."""

    def __init__(self, *, done: bool = False) -> None:
        self._done = done
        self._calls = 0
        self.reached = asyncio.Event()
        self.resume = asyncio.Event()

    async def __call__(self, call: Call[T]) -> T:
        self._calls += 1
        if self._calls > 1:
            return await call()
        if self._done:
            try:
                return await call()
            finally:
                await self._wait()
        await self._wait()
        return await call()

    async def _wait(self) -> None:
        self.reached.set()
        await self.resume.wait()


class FaultyGateways(Interceptor):
    """The sandbox gateways with faults, by the name of the activity that calls them."""

    def __init__(self, shop: Shop, **faults: Fault) -> None:
        self.shop = shop
        self.faults = faults
        bundle = sandbox_gateways(shop.mongo)
        faulty: dict[str, Any] = {each.name: _Faulty(getattr(bundle, each.name), faults) for each in fields(bundle)}
        self.gateways = Gateways(**faulty)

    def worker(self, **changes: Any) -> Worker:
        """The worker of `worker.py` with these gateways. `changes` are options of `temporalio.worker.Worker`."""
        options = {"interceptors": [self], "graceful_shutdown_timeout": timedelta(), **changes}
        return build_shop_worker(self.shop, self.gateways, **options)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _FaultAtReport(next, self.faults)


class _Faulty:
    """A gateway that applies the fault of the calling activity to each method."""

    def __init__(self, gateway: object, faults: dict[str, Fault]) -> None:
        self._gateway = gateway
        self._faults = faults

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._gateway, name)
        if inspect.isasyncgenfunction(method):
            return method

        async def call(*arguments: Any) -> Any:
            fault = self._faults.get(activity.info().activity_type)
            return await (fault(lambda: method(*arguments)) if fault else method(*arguments))

        return call


class _FaultAtReport(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, faults: dict[str, Fault]) -> None:  # noqa: A002
        super().__init__(next)
        self._faults = faults

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        name = activity.info().activity_type
        fault = None if _calls_gateway(name, input.fn) else self._faults.get(name)
        run = super().execute_activity
        return await (fault(lambda: run(input)) if fault else run(input))


def _calls_gateway(name: str, method: Callable[..., Any]) -> bool:
    """Return True for an activity of a step whose class has a gateway: its fault strikes at the gateway."""
    return name in STEP_ACTIVITIES and any(isinstance(each, _Faulty) for each in vars(method.__self__).values())  # type: ignore[attr-defined]


async def change_streams(mongo: Mongo) -> int:
    """The number of change streams open on this test's database, according to MongoDB."""
    pipeline: list[Document] = [
        {"$currentOp": {"idleCursors": True}},
        {"$match": {"cursor.originatingCommand.$db": mongo.database.name}},
        {"$match": {"cursor.originatingCommand.pipeline.0.$changeStream": {"$exists": True}}},
    ]
    return len(await current_operations(mongo, pipeline))
