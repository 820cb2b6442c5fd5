"""Faults where they happen: in the server (fail points) or in a gateway; and what a test sees of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from app.domain import Address, Money
from app.gateways import Carrier, PaymentGateway
from app.mongo import Document, Mongo

# How a command fails. `errorCode` and `closeConnection` come before any effect; an error of the write concern comes
# after it: the command was carried out, but the caller cannot know.
AFTER_THE_EFFECT = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}
BEFORE_THE_EFFECT = {"errorCode": 8000}  # one that the driver does not retry by itself
UNCOUNTED = ["sandbox", "system.profile", "$cmd"]


@asynccontextmanager
async def failing(mongo: Mongo, *commands: str, mode: Any = "alwaysOn", **how: Any) -> AsyncIterator[None]:
    """Let commands of this test's client fail, and of no other.

    `mode`: `{"times": 2}` the first two, `{"skip": 2}` all but the first two.

    Fails itself when no command came: a fault that never happened proves nothing.
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
async def recorded_commands(mongo: Mongo) -> AsyncIterator[list[Document]]:
    """What mongod's profiler saw of this test's database, without the sandbox's books."""
    await mongo.database.command("profile", 2)
    commands: list[Document] = []
    try:
        yield commands
    finally:
        await mongo.database.command("profile", 0)
    seen = mongo.database["system.profile"].find({"ns": {"$nin": [f"{mongo.database.name}.{n}" for n in UNCOUNTED]}})
    commands += [entry async for entry in seen.sort("ts", 1)]
    await mongo.database["system.profile"].drop()


class Gate:
    """Holds a caller until it is opened."""

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
    """Payment service and carrier in front of others; the next call can be held, lost or answered with an error."""

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
    """A payment service and carrier that acts once per key, but refuses nothing after its refund."""

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

    def _take(self, key: str) -> str:
        self.taken.add(key)
        return f"ref_{key}"

    def _give_back(self, key: str) -> bool:
        if key in self.taken:
            self.returned.add(key)
        return key in self.taken
