"""Sandboxes of the three gateways. They keep books in MongoDB, as the real services keep theirs, and know test inputs:

    payment_method   pm_card_ok         captured (as is any other name)
                     pm_card_declined   declined
                     pm_card_flaky      two transient errors, then captured
                     pm_card_slow       captured after about 5 s
                     pm_card_outage     unavailable, until the order is cancelled
    postal_code      00000              nobody delivers there
                     99999              the carrier is down, until the order is cancelled

`books` holds one document for each key, `captured` and `refunded` in minor units, `shipped`, `called_off`, `mails`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pymongo import ReturnDocument

from app.gateways.carrier import AddressUnserviceable
from app.gateways.payment import PaymentDeclined
from app.models import Address, Money, Order

if TYPE_CHECKING:
    from app.mongo import Collection, Document

SLOW = 5.0  # seconds
FLAKY_ERRORS = 2


class GatewayUnavailable(Exception):
    """The service cannot be reached, or answered with an error of its own: call again later."""


class SandboxPayments:
    def __init__(self, books: Collection) -> None:
        self._books = books

    async def charge(self, key: str, amount: Money, payment_method: str) -> str:
        match payment_method:
            case "pm_card_declined":
                raise PaymentDeclined("the card was declined")
            case "pm_card_outage":
                raise GatewayUnavailable("the payment service is unavailable")
            case "pm_card_slow":
                await asyncio.sleep(SLOW)
            case "pm_card_flaky":
                entry = await _record(self._books, f"payment:{key}", {"$inc": {"calls": 1}})
                if entry["calls"] <= FLAKY_ERRORS:
                    raise GatewayUnavailable("the payment service answered with an error")
        captured = {
            "captured": {"$ifNull": ["$captured", {"$cond": ["$closed", 0, amount.amount]}]},
            "currency": {"$literal": amount.currency},
        }
        entry = await _record(self._books, f"payment:{key}", [{"$set": captured}])
        if entry.get("closed"):
            raise PaymentDeclined("the payment was called off")
        return f"ch_{key}"

    async def refund(self, key: str) -> bool:
        refund = {"closed": True, "refunded": {"$ifNull": ["$captured", 0]}}
        entry = await _record(self._books, f"payment:{key}", [{"$set": refund}])
        return bool(entry["refunded"])


class SandboxCarrier:
    def __init__(self, books: Collection) -> None:
        self._books = books

    async def ship(self, key: str, address: Address) -> str:
        if address.postal_code == "00000":
            raise AddressUnserviceable("no carrier delivers to this address")
        if address.postal_code == "99999":
            raise GatewayUnavailable("the carrier is unavailable")
        shipped = {"shipped": {"$ifNull": ["$shipped", {"$not": "$closed"}]}}
        entry = await _record(self._books, f"shipment:{key}", [{"$set": shipped}])
        if entry.get("closed"):
            raise AddressUnserviceable("the shipment was called off")
        return f"trk_{key}"

    async def cancel(self, key: str) -> bool:
        called_off = {"closed": True, "called_off": {"$ifNull": ["$shipped", False]}}
        entry = await _record(self._books, f"shipment:{key}", [{"$set": called_off}])
        return bool(entry["called_off"])


class SandboxMailer:
    def __init__(self, books: Collection) -> None:
        self._books = books

    async def send_confirmation(self, key: str, order: Order) -> None:
        await _record(self._books, f"mail:{key}", {"$set": {"mails": 1, "to": order.email}})


async def _record(books: Collection, key: str, update: Document | list[Document]) -> Document:
    entry = await books.find_one_and_update({"_id": key}, update, upsert=True, return_document=ReturnDocument.AFTER)
    assert entry is not None  # upsert: there is one
    return entry
