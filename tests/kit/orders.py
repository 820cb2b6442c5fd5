"""Valid orders, as request bodies and as MongoDB documents."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from app.domain import STATUS_BEFORE, Order, StepName
from app.mongo import Document

# Personal values that must not appear in a history or a log (G11).
EMAIL = "ada.lovelace@example.org"
NAME = "Ada Lovelace"
STREET = "12 St James's Square"
ADDRESS = {"name": NAME, "street": STREET, "city": "London", "postal_code": "SW1Y 4JH", "country": "GB"}
CHARGING = STATUS_BEFORE[StepName.CHARGE_PAYMENT]  # the status of an order while it is charged
BEFORE_CHARGE = list(StepName)[: list(StepName).index(StepName.CHARGE_PAYMENT)]
UNSERVICEABLE = {**ADDRESS, "postal_code": "00000"}  # an address that the sandbox carrier declines


def order_body(**changes: Any) -> dict[str, Any]:
    """A valid body for POST /orders."""
    return {
        "customer_id": "cus_1",
        "email": EMAIL,
        "payment_method": "pm_card_ok",
        "lines": [{"sku": "MUG", "quantity": 2}],
        "shipping_address": ADDRESS,
        **changes,
    }


def order_document(lines: dict[str, int] | None = None, *, price: int = 1_000, **changes: Any) -> Document:
    """A valid order document. `lines` maps SKUs to quantities; `price` is the unit price of each."""
    lines = lines or {"MUG": 2}
    now = datetime.now(UTC)
    money = {"amount": price, "currency": "EUR"}
    return {
        "_id": f"ord_{secrets.token_hex(8)}",
        "customer_id": "cus_1",
        "email": EMAIL,
        "payment_method": "pm_card_ok",
        "shipping_address": dict(ADDRESS),
        "lines": [
            {"sku": sku, "name": sku, "quantity": quantity, "unit_price": money} for sku, quantity in lines.items()
        ],
        "total": {"amount": price * sum(lines.values()), "currency": "EUR"},
        "status": "placed",
        "created_at": now,
        "updated_at": now,
        **changes,
    }


def steps_of(order: Order) -> dict[str, str]:
    """The status of each step of an order."""
    return {step.step.value: step.status.value for step in order.steps}
