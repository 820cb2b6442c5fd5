"""Sandboxes of the three gateways. They keep records in MongoDB and respond to test inputs:

    payment_method   pm_card_ok         captured (like any other name)
                     pm_card_declined   declined
                     pm_card_flaky      two transient errors, then captured
                     pm_card_slow       captured after about 5 s
                     pm_card_outage     unavailable, until the order is cancelled
    postal_code      00000              no carrier delivers there
                     99999              the carrier is down, until the order is cancelled

A record holds, per idempotency key: `captured` and `refunded` (minor units), `captured_at`, `shipped`, `called_off`,
`mails`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from app.domain import Address, Money, Order
from app.gateways import AddressUnserviceable, Capture, Gateways, PaymentDeclined, Unavailable
from app.mongo import Collection, Document, Mongo, upsert

SLOW = 5.0  # seconds
FLAKY_ERRORS = 2
PAGE = 500


@asynccontextmanager
async def sandbox(mongo: Mongo) -> AsyncIterator[Gateways]:
    """Build all three. With real clients, open them before the `yield` and close them after it."""
    yield Gateways(SandboxPayments(mongo), SandboxCarrier(mongo), SandboxMailer(mongo))


def records(mongo: Mongo) -> Collection:
    return mongo.database["sandbox"]


class Sandbox:
    def __init__(self, mongo: Mongo) -> None:
        self._records = records(mongo)


class SandboxPayments(Sandbox):
    async def charge(self, idempotency_key: str, amount: Money, payment_method: str) -> str:
        match payment_method:
            case "pm_card_declined":
                raise PaymentDeclined("the card was declined")
            case "pm_card_outage":
                raise Unavailable("the payment service is unavailable")
            case "pm_card_slow":
                await asyncio.sleep(SLOW)
            case "pm_card_flaky":
                entry = await upsert(self._records, f"payment:{idempotency_key}", {"$inc": {"calls": 1}})
                if entry["calls"] <= FLAKY_ERRORS:
                    raise Unavailable("the payment service returned an error")
        captured = {"$ifNull": ["$captured", {"$cond": ["$closed", 0, amount.amount]}]}
        at = {"$ifNull": ["$captured_at", "$$NOW"]}
        charge = {"captured": captured, "currency": {"$literal": amount.currency}, "captured_at": at}
        entry = await upsert(self._records, f"payment:{idempotency_key}", [{"$set": charge}])
        if entry.get("closed"):
            raise PaymentDeclined("the payment was cancelled")
        return f"ch_{idempotency_key}"

    async def refund(self, idempotency_key: str) -> bool:
        refund = {"closed": True, "refunded": {"$ifNull": ["$captured", 0]}}
        entry = await upsert(self._records, f"payment:{idempotency_key}", [{"$set": refund}])
        return bool(entry["refunded"])

    async def captured_between(self, begin: datetime, end: datetime) -> AsyncIterator[list[Capture]]:
        found = self._records.find({"captured_at": {"$gte": begin, "$lt": end}})
        while page := await found.to_list(PAGE):
            yield [Capture(entry["_id"].removeprefix("payment:"), _net(entry)) for entry in page]


def _net(entry: Document) -> Money:
    return Money(amount=entry["captured"] - entry.get("refunded", 0), currency=entry["currency"])


class SandboxCarrier(Sandbox):
    async def ship(self, idempotency_key: str, address: Address) -> str:
        if address.postal_code == "00000":
            raise AddressUnserviceable("no carrier delivers to this address")
        if address.postal_code == "99999":
            raise Unavailable("the carrier is unavailable")
        shipped = {"shipped": {"$ifNull": ["$shipped", {"$not": "$closed"}]}}
        entry = await upsert(self._records, f"shipment:{idempotency_key}", [{"$set": shipped}])
        if entry.get("closed"):
            raise AddressUnserviceable("the shipment was cancelled")
        return f"trk_{idempotency_key}"

    async def cancel(self, idempotency_key: str) -> bool:
        called_off = {"closed": True, "called_off": {"$ifNull": ["$shipped", False]}}
        entry = await upsert(self._records, f"shipment:{idempotency_key}", [{"$set": called_off}])
        return bool(entry["called_off"])


class SandboxMailer(Sandbox):
    async def send_confirmation(self, idempotency_key: str, order: Order) -> None:
        await upsert(self._records, f"mail:{idempotency_key}", {"$set": {"mails": 1, "to": order.email}})
