"""The part of this program's HTTP API that a load needs, so that one client can be used for all: see dev/bench/shop.py.

POST /orders                     202; with `Prefer: wait`, answered when the order is final
GET  /orders/{order_id}          200, 404
POST /orders/{order_id}/cancel   202; 409 if it is too late
PUT  /inventory/{sku}            204
"""

import hashlib
import re
import uuid
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, Field

FINAL = ("completed", "failed", "cancelled")
CANCELLED = ("cancelled", "the order was cancelled")  # code and message


class Line(BaseModel):
    sku: str
    quantity: int = Field(ge=1, le=1_000)


class Address(BaseModel):
    name: str
    street: str
    city: str
    postal_code: str
    country: str


class NewOrder(BaseModel):
    customer_id: str
    email: str
    payment_method: str
    lines: list[Line] = Field(min_length=1, max_length=50)
    shipping_address: Address


class Money(BaseModel):
    amount: int  # minor units
    currency: str


class Product(BaseModel):
    name: str
    unit_price: Money
    available: int = Field(ge=0)


class OrderStopped(Exception):
    """A step failed for good, or the order was cancelled."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    @property
    def status(self) -> str:
        return "cancelled" if self.code == "cancelled" else "failed"


IdempotencyKey = Annotated[str | None, Header()]
Prefer = Annotated[str, Header()]


def new_order_id(idempotency_key: str | None) -> str:
    """The same key makes the same order."""
    return f"ord_{hashlib.sha256((idempotency_key or uuid.uuid4().hex).encode()).hexdigest()[:26]}"


def seconds_to_wait(prefer: str) -> float:
    return float(match[1]) if (match := re.search(r"wait=(\d+)", prefer)) else 0


def order_json(order_id: str, status: str, code: str | None = None, message: str | None = None) -> dict[str, Any]:
    return {"order_id": order_id, "status": status, "failure": {"code": code, "message": message} if code else None}
