"""Faults, made where they happen: in the server (fail points), or in what lies outside (a gateway)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from app.gateways.carrier import Carrier
from app.gateways.payment import PaymentGateway
from app.models import Address, Money
from app.mongo import Mongo

# How a command fails. `errorCode` and `closeConnection` come before it had any effect; an error of the write concern
# comes after it: the command was carried out, but the caller cannot know.
AFTER_THE_EFFECT = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}
BEFORE_THE_EFFECT = {"errorCode": 8000}  # one that the driver does not retry by itself


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


class Gate:
    """Somebody comes to it and is held until it is opened."""

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


class Outside:
    """Payment service and carrier in front of others, at which the next call can be held, lost or refused."""

    def __init__(self, payments: PaymentGateway, carrier: Carrier) -> None:
        self._payments = payments
        self._carrier = carrier
        self.calls = 0
        self.before: list[Gate] = []
        self.after: list[Gate] = []
        self.instead: list[Exception] = []
        self.lost_replies = 0

    def hold_next(self, point: str) -> Gate:
        gate = Gate()
        (self.before if point == "before the gateway acts" else self.after).append(gate)
        return gate

    async def charge(self, key: str, amount: Money, payment_method: str) -> str:
        return await self._call(lambda: self._payments.charge(key, amount, payment_method))

    async def ship(self, key: str, address: Address) -> str:
        return await self._call(lambda: self._carrier.ship(key, address))

    async def refund(self, key: str) -> bool:
        return await self._payments.refund(key)

    async def cancel(self, key: str) -> bool:
        return await self._carrier.cancel(key)

    async def _call(self, call: Callable[[], Awaitable[str]]) -> str:
        self.calls += 1
        before = self.before.pop() if self.before else None
        after = self.after.pop() if self.after else None
        if before:
            await before.hold()
        if self.instead:
            raise self.instead.pop()
        result = await call()
        if after:
            await after.hold()
        if self.lost_replies:
            self.lost_replies -= 1
            raise ConnectionResetError("the reply was lost")
        return result


class PlainService:
    """A payment service and carrier that does a thing once for a key, but refuses nothing after its refund."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.returned: set[str] = set()

    async def charge(self, key: str, amount: Money, payment_method: str) -> str:
        return self._take(key)

    async def ship(self, key: str, address: Address) -> str:
        return self._take(key)

    async def refund(self, key: str) -> bool:
        return self._give_back(key)

    async def cancel(self, key: str) -> bool:
        return self._give_back(key)

    def _take(self, key: str) -> str:
        self.taken.add(key)
        return f"ref_{key}"

    def _give_back(self, key: str) -> bool:
        if key in self.taken:
            self.returned.add(key)
        return key in self.taken
