"""The language of the domain: order, line, money, status, step.

Standard library and pydantic only, because workflows, activities, gateways and the API all speak it. What goes into a
workflow history (`OrderInput`, `OrderRef`, `OrderMark`, ...) carries ids and decisions, never personal data (G11).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

logger = logging.getLogger(__name__)

# What a caller may write: printable, bounded, trimmed. NUL and other control characters never reach the database.
Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$"),
]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Email = Annotated[
    str, StringConstraints(max_length=254, pattern=r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]+$")
]
CountryCode = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2}$", to_upper=True)]
CurrencyCode = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
MAX_QUANTITY = 1_000
MAX_STOCK = 1_000_000_000  # keeps every sum far inside MongoDB's 64-bit integers
MAX_PRICE = 1_000_000_000


class Model(BaseModel):
    """Unknown fields are refused: a misspelt field is an error of the caller, not something to drop in silence."""

    # Never the value in an error: it may be personal, and errors end in logs and in workflow histories.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class OrderStatus(StrEnum):
    PLACED = "placed"
    AWAITING_APPROVAL = "awaiting_approval"
    RESERVED = "reserved"
    CHARGED = "charged"
    SHIPPED = "shipped"
    COMPLETED = "completed"
    COMPENSATING = "compensating"
    NEEDS_ATTENTION = "needs_attention"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({OrderStatus.COMPLETED, OrderStatus.FAILED, OrderStatus.CANCELLED})
CANCELLABLE = frozenset({OrderStatus.PLACED, OrderStatus.AWAITING_APPROVAL, OrderStatus.RESERVED, OrderStatus.CHARGED})

_FORWARD = [
    OrderStatus.PLACED,
    OrderStatus.AWAITING_APPROVAL,
    OrderStatus.RESERVED,
    OrderStatus.CHARGED,
    OrderStatus.SHIPPED,
]
_UNDOING = [OrderStatus.COMPENSATING, OrderStatus.NEEDS_ATTENTION]

# From where each status may be reached. Every write of a status is conditional on it, so a late writer cannot move
# an order backwards. `shipped` may still turn to `compensating`: a cancel can be accepted while the shipment is made.
MAY_FOLLOW: Mapping[OrderStatus, list[OrderStatus]] = {
    OrderStatus.AWAITING_APPROVAL: _FORWARD[:1],
    OrderStatus.RESERVED: _FORWARD[:2],
    OrderStatus.CHARGED: _FORWARD[:3],
    OrderStatus.SHIPPED: _FORWARD[:4],
    OrderStatus.COMPLETED: _FORWARD,
    OrderStatus.COMPENSATING: _FORWARD,
    OrderStatus.NEEDS_ATTENTION: [*_FORWARD, OrderStatus.COMPENSATING],
    OrderStatus.FAILED: [*_FORWARD, *_UNDOING],
    OrderStatus.CANCELLED: [*_FORWARD, *_UNDOING],
}


class StepName(StrEnum):
    RESERVE_INVENTORY = "reserve_inventory"
    CHARGE_PAYMENT = "charge_payment"
    CREATE_SHIPMENT = "create_shipment"
    SEND_CONFIRMATION = "send_confirmation"


class StepStatus(StrEnum):
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"


class Money(Model):
    """An amount in minor units (cents) of an ISO 4217 currency."""

    amount: Annotated[int, Field(strict=True, ge=0, le=MAX_PRICE * MAX_QUANTITY * 50)]
    currency: CurrencyCode


class Address(Model):
    name: Text
    street: Text
    city: Text
    postal_code: Annotated[Text, StringConstraints(max_length=16)]
    country: CountryCode


class UnitPrice(Money):
    """The price of one piece; bounded, so that every total is within the bounds of `Money`."""

    amount: Annotated[int, Field(strict=True, ge=0, le=MAX_PRICE)]


class Line(Model):
    """One article of an order, with the price that held when the order was placed (per piece)."""

    sku: Identifier
    name: Text
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_QUANTITY)]
    unit_price: UnitPrice


class Failure(Model):
    """Why an order did not complete: a code for programs and a sentence for people."""

    code: str
    message: str


class StepRecord(Model):
    """What an order's timeline says of a step."""

    step: StepName
    status: StepStatus
    at: datetime
    detail: str


class Order(Model):
    """An order as MongoDB holds it and the API shows it, all but `email`, which only the mailer needs."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    order_id: Annotated[Identifier, Field(validation_alias=AliasChoices("_id", "order_id"))]
    customer_id: Identifier
    status: OrderStatus = OrderStatus.PLACED
    total: Money
    lines: Annotated[list[Line], Field(min_length=1, max_length=50)]
    payment_method: Identifier
    shipping_address: Address
    email: Annotated[Email, Field(exclude=True)]
    created_at: Annotated[datetime, Field(strict=True)]  # lists are sorted by it: a text would not do
    updated_at: Annotated[datetime, Field(strict=True)]
    steps: list[StepRecord] = []
    failure: Failure | None = None
    cancellable: bool = True

    @field_validator("steps", mode="before")
    @classmethod
    def _steps_in_order(cls, steps: Any) -> Any:
        """MongoDB holds the steps by name, so that a step can be written twice without appearing twice."""
        if isinstance(steps, dict) and all(isinstance(step, dict) for step in steps.values()):
            return [{"step": name, **steps[name]} for name in StepName if name in steps]
        return steps

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read an order document.

        Raises:
            ValueError (of which pydantic.ValidationError is one): the document is malformed (another program may have
                written it).
        """
        order = cls.model_validate(document)
        if len({line.sku for line in order.lines}) < len(order.lines):
            raise ValueError("lines: a sku is named twice")
        if {line.unit_price.currency for line in order.lines} != {order.total.currency}:
            raise ValueError("lines: not all prices are in the currency of the total")
        if order.total.amount != sum(line.quantity * line.unit_price.amount for line in order.lines):
            raise ValueError("total is not the sum of the lines")
        return order.model_copy(update={"cancellable": order.status in CANCELLABLE})

    @classmethod
    def from_any_document(cls, document: Mapping[str, Any]) -> Order:
        """Read an order document for display; a malformed one is shown as failed rather than hidden or an error."""
        try:
            return cls.from_document(document)
        except ValueError as error:
            return Order.model_construct(
                email="",
                order_id=str(document.get("_id")),
                customer_id=str(document.get("customer_id"))[:64],
                status=OrderStatus.FAILED,
                total=Money(amount=0, currency="XXX"),  # ISO 4217: no currency
                lines=[],
                payment_method=str(document.get("payment_method"))[:64],
                shipping_address=Address.model_construct(name="", street="", city="", postal_code="", country=""),
                created_at=_time_of(document.get("created_at")),
                updated_at=_time_of(document.get("updated_at")),
                steps=[],
                failure=Failure(code="malformed", message=why_malformed(error)),
                cancellable=False,
            )


def why_malformed(error: ValueError) -> str:
    """The first thing that is wrong with a document, by field; never its values, which may be personal."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}"
    return str(error)


def _time_of(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromtimestamp(0, UTC)


class Article(Model):
    """What can be ordered: an article of the stock with its price per piece and the pieces not held by any order."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sku: Annotated[Identifier, Field(validation_alias=AliasChoices("_id", "sku"))]
    name: Text
    unit_price: UnitPrice
    available: Annotated[int, Field(strict=True, ge=0)]  # no maximum: what orders held may come back to any stock


def article_of(document: Mapping[str, Any]) -> Article | None:
    """Read an article's document; a malformed one, which another program may have written, counts as none."""
    try:
        return Article.model_validate(document)
    except ValidationError as error:
        logger.error("article %s is malformed: %s", document.get("_id"), why_malformed(error))
        return None


# --- what travels through Temporal


class Message(BaseModel):
    """Unknown fields are ignored: while a new version is rolled out, an old worker meets what a new one has written."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class OrderInput(Message):
    """The workflow's input: the id, and the few values that it branches on."""

    order_id: str
    needs_approval: bool
    approval_timeout: timedelta
    under_way: bool = False
    """An earlier workflow of this order is lost (Temporal's data was): steps may have been done that this one has not
    begun."""


class OrderRef(Message):
    """The input of every step and every undo: the rest of the order is read from MongoDB."""

    order_id: str


class OrderMark(Message):
    """A status for the order document that no step writes by itself."""

    order_id: str
    status: OrderStatus
    failure: Failure | None = None


class CancelRequest(Message):
    reason: str | None = None


class ApprovalDecision(Message):
    approved: bool
    reason: str | None = None


class AddressChange(Message):
    """Names a new address that waits in MongoDB: the address itself is personal and stays out of the history."""

    order_id: str
    change_id: str


class OrderResult(Message):
    """How an order ended. Outcomes of business are results, not failures of the workflow."""

    order_id: str
    status: OrderStatus
    failure: Failure | None = None


class OrderProgress(Message):
    """What the workflow says of itself (query `status`)."""

    order_id: str
    status: OrderStatus
    step: StepName | None = None
    waiting_for: str | None = None
    undone: list[StepName] = []
    cancel_requested: bool = False
    approved: bool | None = None
