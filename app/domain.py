"""The domain model: order, product, money, status, step.

Imports only the standard library and pydantic, because workflows, activities, gateways and the API all use it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, computed_field, field_validator

from app.validation import COUNTRY_CODE, CURRENCY_CODE, EMAIL, IDENTIFIER, READABLE, explain

logger = logging.getLogger(__name__)

# Text from a caller: readable, bounded, trimmed.
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=READABLE)]
Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER)]
Email = Annotated[str, StringConstraints(max_length=254, pattern=EMAIL)]
MAX_QUANTITY = 1_000
MAX_STOCK = 1_000_000_000  # keeps every sum far within MongoDB's 64-bit integers
MAX_PRICE = 1_000_000_000


class Model(BaseModel):
    """Base of the domain's models. Rejects unknown fields: dropping a misspelt one would hide the caller's error."""

    # Errors do not contain the value: it may be personal, and errors end up in logs and workflow histories.
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_serialization_defaults_required=True
    )


class Stored(Model):
    """Base of what MongoDB stores. Another program may have added fields; they are ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


# Declared in the sequence in which the saga reaches them, from which the allowed transitions are derived.
class OrderStatus(StrEnum):
    """The status of an order.

    - `placed`: stored; the saga begins.
    - `awaiting_approval`: the total needs the approval of a person; no decision in time counts as a rejection.
    - `reserved`: the quantities are reserved.
    - `charged`: the payment is captured.
    - `shipped`: the shipment exists; the order can no longer be cancelled.
    - `completed`: final; the confirmation is sent, or its retries have ended.
    - `compensating`: a step failed or the order was cancelled; the steps that took effect are compensated.
    - `needs_attention`: a compensation keeps failing; it is retried, and the order recovers when the cause is gone.
    - `failed`: final; everything that took effect is compensated, and `failure` has the reason.
    - `cancelled`: final; cancelled, and everything that took effect is compensated.
    """

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


POINT_OF_NO_RETURN = OrderStatus.SHIPPED  # from this status on, the order completes
_ALL = list(OrderStatus)
_FORWARD = _ALL[: _ALL.index(OrderStatus.COMPENSATING)]
TERMINAL = frozenset({OrderStatus.COMPLETED, OrderStatus.FAILED, OrderStatus.CANCELLED})
CANCELLABLE = _FORWARD[: _FORWARD.index(POINT_OF_NO_RETURN)]
IRREVERSIBLE = _FORWARD[_FORWARD.index(POINT_OF_NO_RETURN) :]
# Shipping follows the charge at once, so the address is final when the charge is recorded.
ADDRESS_CHANGEABLE = CANCELLABLE[:-1]
# The order is or was compensated: no step may take effect any more.
STOPPED = frozenset(_ALL[_ALL.index(OrderStatus.COMPENSATING) :])
_COMPENSATING = [OrderStatus.COMPENSATING, OrderStatus.NEEDS_ATTENTION]

# The statuses from which each status may be reached. Every write of a status is conditional on them, so a late writer
# cannot move an order backwards, and MongoDB alone decides between shipping and compensating.
ALLOWED_FROM: Mapping[OrderStatus, list[OrderStatus]] = {
    **{status: _FORWARD[:position] for position, status in enumerate(_FORWARD) if position},
    OrderStatus.COMPENSATING: CANCELLABLE,
    OrderStatus.NEEDS_ATTENTION: [OrderStatus.COMPENSATING],
    OrderStatus.FAILED: _COMPENSATING,
    OrderStatus.CANCELLED: _COMPENSATING,
}


class StepName(StrEnum):
    """A step of the saga, declared in the sequence in which they run.

    - `reserve_inventory`: reserves the quantities of all lines, or of none.
    - `charge_payment`: captures the total.
    - `create_shipment`: creates the shipment, after which the order can no longer be cancelled.
    - `send_confirmation`: sends the confirmation; it has no compensation.
    """

    RESERVE_INVENTORY = "reserve_inventory"
    CHARGE_PAYMENT = "charge_payment"
    CREATE_SHIPMENT = "create_shipment"
    SEND_CONFIRMATION = "send_confirmation"


# The status of an order once the step is done.
STATUS_AFTER = dict(zip(StepName, _FORWARD[2:], strict=True))  # strict: each step has its own status
# The status of an order while the step runs; the first step may also begin in `awaiting_approval`.
STATUS_BEFORE = dict(zip(StepName, [OrderStatus.PLACED, *STATUS_AFTER.values()], strict=False))


class StepStatus(StrEnum):
    """The outcome of a step.

    - `done`: it took effect.
    - `failed`: declined or fenced, without a known effect.
    - `compensated`: it took effect, and that was reversed.
    """

    DONE = "done"
    FAILED = "failed"
    COMPENSATED = "compensated"


class StepEvent(StrEnum):
    """An event of a step. Events may come in any sequence and any number of times."""

    SUCCEEDED = "succeeded"  # the gateway performed the step
    DECLINED = "declined"  # the gateway rejected the step for good
    FENCED = "fenced"  # compensated before it took effect: it cannot take effect any more
    COMPENSATED = "compensated"  # the gateway reversed an effect


def next_status(status: StepStatus | None, event: StepEvent) -> StepStatus | None:
    """Return a step's status after an event. An event that comes too late changes nothing.

        absent -> done -> compensated
        absent -> failed (declined or fenced) -> compensated (the gateway had acted after all)

    The conditional writes of `app.orders` are derived from this function.
    """
    if event is StepEvent.COMPENSATED:
        return status and StepStatus.COMPENSATED
    return status or (StepStatus.DONE if event is StepEvent.SUCCEEDED else StepStatus.FAILED)


@dataclass(frozen=True)
class Attempt:
    """The number of an attempt, from 1, and the time of the first one (a retry knows only when that was scheduled)."""

    first_at: datetime
    number: int


@dataclass(frozen=True)
class StepChange:
    """An event of a step, with what to record. `quantities` are those that a reservation holds, by SKU."""

    step: StepName
    event: StepEvent
    detail: str
    failure: Failure | None
    attempt: Attempt
    quantities: Mapping[str, int] | None = None


class KeyReused(Exception):
    """The idempotency key belongs to an earlier request with a different body."""


class NotFound(LookupError):
    """The order or product that the message names does not exist. It may have been removed, or is being restored."""


class Money(Model):
    """An amount in minor units (cents) of an ISO 4217 currency."""

    amount: Annotated[int, Field(strict=True, ge=0, le=MAX_PRICE * MAX_QUANTITY * 50)]
    currency: Annotated[str, StringConstraints(pattern=CURRENCY_CODE)]


class Address(Model):
    name: Text
    street: Text
    city: Text
    postal_code: Annotated[Text, StringConstraints(max_length=16)]
    country: Annotated[str, StringConstraints(pattern=COUNTRY_CODE, to_upper=True)]


class UnitPrice(Money):
    """The price of a single unit; bounded, so that every total is within the bounds of `Money`."""

    amount: Annotated[int, Field(strict=True, ge=0, le=MAX_PRICE)]


class OrderedLine(Model):
    sku: Identifier
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_QUANTITY)]


class NewOrder(Model):
    """An order as the caller sends it, without prices: they come from the products."""

    customer_id: Identifier
    email: Email
    payment_method: Identifier
    lines: Annotated[list[OrderedLine], Field(min_length=1, max_length=50)]
    shipping_address: Address

    @field_validator("lines")
    @classmethod
    def _no_sku_twice(cls, lines: list[OrderedLine]) -> list[OrderedLine]:
        skus = [line.sku for line in lines]
        if repeated := {sku for sku in skus if skus.count(sku) > 1}:
            raise ValueError(f"must list each product once; repeated: {', '.join(sorted(repeated))}")
        return lines


class Line(OrderedLine):
    """A product of an order, with the unit price at the time the order was placed."""

    name: Text
    unit_price: UnitPrice


class Failure(Model):
    """The reason why an order did not complete: a code for programs and a message for people.

    Codes of the saga:

    - `cancelled`: the order was cancelled.
    - `not_approved`: a person rejected the order, or no decision came in time.
    - `out_of_stock`: the available quantity of a product is less than ordered.
    - `inventory_unavailable`, `payment_unavailable`, `shipping_unavailable`, `confirmation_not_sent`: the service did
      not answer until the retries ended.
    - `misconfigured`: a service refused the credentials or the request; see the log of the worker.
    - `fenced`: the step was compensated before it took effect.
    - `malformed`: another program wrote an order that is not valid.

    Codes of the sandbox services; services of your own may have others:

    - `payment_declined`: the card was declined.
    - `address_unserviceable`: the carrier does not deliver to this address.
    """

    code: str
    message: str


# Failure codes of the saga itself.
CANCELLED = "cancelled"
NOT_APPROVED = "not_approved"
MALFORMED = "malformed"


class Decision(BaseModel):
    """A decision on an order: an accepted cancel, or the first approval or rejection. `by` is the API's caller."""

    approved: bool = False
    reason: str | None = None
    by: str | None = None
    at: datetime


class StepRecord(Stored):
    """One step in an order's timeline: its first attempt, outcome (`at`), compensation and number of attempts.

    For a fenced step no attempt counts: `attempts` is 0.
    """

    step: StepName
    status: StepStatus
    first_attempt_at: datetime | None = None
    at: datetime
    attempts: int = 0
    compensated_at: datetime | None = None
    detail: str
    failure: Annotated[Failure | None, Field(exclude=True)] = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interrupted(self) -> bool:
        """True if a cancel or another step's failure stopped this step before it took effect; it was not declined."""
        return self.status is StepStatus.FAILED and self.failure is None


class Order(Stored):
    """An order as MongoDB stores it and the API returns it, except `email`, which only the mailer needs."""

    order_id: Annotated[Identifier, Field(validation_alias="_id")]
    customer_id: Identifier
    status: OrderStatus = OrderStatus.PLACED
    total: Money
    lines: Annotated[list[Line], Field(min_length=1, max_length=50)]
    payment_method: Identifier
    shipping_address: Address
    email: Annotated[Email, Field(exclude=True)]
    created_at: Annotated[datetime, Field(strict=True)]  # lists are sorted by it, so text is not accepted
    updated_at: Annotated[datetime, Field(strict=True)]
    steps: list[StepRecord] = []
    failure: Failure | None = None
    placed_by: Annotated[str | None, Field(exclude=True)] = None  # the API's caller; None: another program
    cancellation: Annotated[Decision | None, Field(exclude=True)] = None  # from then on no step may take effect
    approval: Annotated[Decision | None, Field(exclude=True)] = None
    traceparent: Annotated[Any, Field(exclude=True)] = None  # the trace of the request; see `app.tracing`

    @field_validator("steps", mode="before")
    @classmethod
    def _steps_in_order(cls, steps: Any) -> Any:
        """Convert from MongoDB, which holds the steps by name, so that a step cannot appear twice."""
        if isinstance(steps, dict) and all(isinstance(step, dict) for step in steps.values()):
            return [{"step": name, **steps[name]} for name in StepName if name in steps]
        return steps

    @field_validator("steps")
    @classmethod
    def _without_unreached(cls, steps: list[StepRecord]) -> list[StepRecord]:
        """Hide the fences of steps that the order never reached: a compensation fences every step."""
        took_effect = {record.step for record in steps if record.status is not StepStatus.FAILED}
        before = dict(zip(list(StepName)[1:], StepName, strict=False))
        return [record for record in steps if not record.interrupted or before.get(record.step) in took_effect]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cancellable(self) -> bool:
        return self.status in CANCELLABLE and not self.cancel_requested

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cancel_requested(self) -> bool:
        """True once a cancel is accepted; the status follows when the saga has turned back."""
        return self.cancellation is not None

    @property
    def stop_reason(self) -> Failure | None:
        """The reason why no step may take effect any more, if the order is cancelled or is or was compensated.

        It omits the reasons that people gave, because it becomes an activity's error and so part of the history (G11).
        """
        if self.failure is None and self.cancellation:
            return Failure(code=CANCELLED, message=CANCELLED)
        if self.cancellation or self.status in STOPPED:
            return Failure(code=self.failure.code if self.failure else FENCED.code, message=FENCED.message)
        return None

    def step(self, name: StepName) -> StepRecord | None:
        return next((record for record in self.steps if record.step is name), None)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read an order document.

        Raises:
            ValueError (pydantic.ValidationError is a subclass): the document is malformed (another program may have
                written it).
        """
        order = cls.model_validate(document)
        if len({line.sku for line in order.lines}) < len(order.lines):
            raise ValueError("lines: must list each product once")
        if {line.unit_price.currency for line in order.lines} != {order.total.currency}:
            raise ValueError("must be priced in one currency")
        if order.total.amount != sum(line.quantity * line.unit_price.amount for line in order.lines):
            raise ValueError("total is not the sum of the lines")
        return order

    @classmethod
    def from_any_document(cls, document: Mapping[str, Any]) -> Order:
        """Read an order document for display. A malformed one is shown as failed, neither hidden nor an error."""
        try:
            return cls.from_document(document)
        except ValueError as error:
            return Order.model_construct(
                email="",
                order_id=str(document.get("_id"))[:200],
                customer_id=str(document.get("customer_id"))[:64],
                status=OrderStatus.FAILED,
                total=Money(amount=0, currency="XXX"),  # ISO 4217: no currency
                lines=[],
                payment_method=str(document.get("payment_method"))[:64],
                shipping_address=Address.model_construct(name="", street="", city="", postal_code="", country=""),
                created_at=_time_of(document.get("created_at")),
                updated_at=_time_of(document.get("updated_at")),
                failure=Failure(code=MALFORMED, message=why_malformed(error)),
            )


FENCED = Failure(code="fenced", message="the step was compensated before it took effect")


def why_malformed(error: ValueError) -> str:
    """Describe the first error of a document, by field and without values, which may be personal."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {explain(first)[1]}"
    return str(error)


def _time_of(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromtimestamp(0, UTC)


class Product(Stored):
    """A product: unit price and available quantity (in stock and not held by any order)."""

    sku: Annotated[Identifier, Field(validation_alias="_id")]
    name: Text
    unit_price: UnitPrice
    available: Annotated[int, Field(strict=True, ge=0)]  # no maximum: a release must always fit

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self | None:
        """Read a product document; return None if it is malformed (another program may have written it)."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            logger.error("product %s is malformed: %s", document.get("_id"), why_malformed(error))
            return None
