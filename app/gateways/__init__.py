"""The external services of the saga (payment, carrier, mail): a Protocol for each, their errors, and a bundle of all.

Implement the protocols for your own services. `Declined` and `Misconfigured` are final. After any other exception the
outcome is unknown, and the call is retried.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.domain import Address, Money, Order


class Declined(Exception):
    """The service declined for good: nothing happened, and a retry will not help. The message is for the customer."""

    code = "declined"


class PaymentDeclined(Declined):
    code = "payment_declined"


class AddressUnserviceable(Declined):
    code = "address_unserviceable"


class Unavailable(Exception):
    """The service cannot be reached, or failed: the outcome is unknown, and the call is retried."""


class Misconfigured(Exception):
    """The service rejects the shop's credentials or settings: nothing happened, and a retry will not help.

    The log has the name of the exception, not its text: derive classes, such as `InvalidApiKey`.
    """


@dataclass(frozen=True)
class Capture:
    """What was captured under an idempotency key. `net` is the amount that is left after all refunds."""

    idempotency_key: str
    net: Money


class PaymentGateway(Protocol):
    """Any payment service with idempotency keys and refunds fits."""

    async def charge(self, idempotency_key: str, amount: Money, payment_method: str) -> str:
        """Capture the amount, once per key even if called repeatedly, and return the service's id of the charge.

        Raises:
            PaymentDeclined: nothing was captured, and nothing will be under this key.
        """

    async def refund(self, idempotency_key: str) -> bool:
        """Refund what was captured under the key, once, and refuse any later capture under it.

        A service that cannot refuse a later capture is safe as well (Stripe can: cancel the PaymentIntent). A late
        attempt refunds what it captured; the money stays captured only if the worker dies before that refund.

        Returns:
            True if anything had been captured.
        """

    def captured_between(self, begin: datetime, end: datetime) -> AsyncIterator[list[Capture]]:
        """Yield in pages, in any sequence, what was captured from `begin` until before `end`, even if refunded later.

        The reconciliation compares it with the orders (`app/activities/reconciliation.py`). If other programs use the
        same account, leave out what they captured.
        """


class Carrier(Protocol):
    async def ship(self, idempotency_key: str, address: Address) -> str:
        """Create the shipment, once per key even if called repeatedly, and return the tracking number.

        Raises:
            AddressUnserviceable: no shipment was created, and none will be under this key.
        """

    async def cancel(self, idempotency_key: str) -> bool:
        """Cancel the shipment under the key, once, and refuse any later one under it.

        Returns:
            True if there was a shipment.
        """


class Mailer(Protocol):
    async def send_confirmation(self, idempotency_key: str, order: Order) -> None:
        """Send the confirmation to the order's e-mail address, once per key even if called repeatedly."""


@dataclass(frozen=True)
class Gateways:
    """All gateways of a worker. Built by an async context manager, which closes their clients: see `sandbox`."""

    payments: PaymentGateway
    carrier: Carrier
    mailer: Mailer
