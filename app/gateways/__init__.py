"""The services outside, as the saga needs them: payment, carrier, mail; their errors, and one bundle of all three.

Implement these protocols for your own services. `Declined` and `Misconfigured` are final. After any other exception the
outcome is unknown, and the call is retried.
"""

from dataclasses import dataclass
from typing import Protocol

from app.domain import Address, Money, Order


class Declined(Exception):
    """The service's final no: nothing happened, and a retry will not change it. The message is for the customer."""

    code = "declined"


class PaymentDeclined(Declined):
    code = "payment_declined"


class AddressUnserviceable(Declined):
    code = "address_unserviceable"


class Unavailable(Exception):
    """The service cannot be reached, or answered with an error of its own: the outcome is unknown; retry later."""


class Misconfigured(Exception):
    """The service does not accept this shop's credentials or settings: nothing happened, and no retry will help."""


class PaymentGateway(Protocol):
    """Any payment service with idempotency keys and refunds fits."""

    async def charge(self, idempotency_key: str, amount: Money, payment_method: str) -> str:
        """Capture the amount, once per key however often it is called, and return the service's id of the charge.

        Raises:
            PaymentDeclined: nothing was captured, and nothing will be under this key.
        """

    async def refund(self, idempotency_key: str) -> bool:
        """Refund what was captured under the key, once, and refuse any capture under it from now on.

        A service that cannot refuse a later capture (with Stripe, cancelling a PaymentIntent does) is safe as well: a
        late attempt refunds what it captured. It leaks only if its worker dies before that refund.

        Returns:
            Whether anything had been captured.
        """


class Carrier(Protocol):
    async def ship(self, idempotency_key: str, address: Address) -> str:
        """Order the pick-up, once per key however often it is called, and return the tracking number.

        Raises:
            AddressUnserviceable: nothing was ordered, and nothing will be under this key.
        """

    async def cancel(self, idempotency_key: str) -> bool:
        """Cancel what was ordered under the key, once, and refuse any order under it from now on.

        Returns:
            Whether anything had been ordered.
        """


class Mailer(Protocol):
    async def send_confirmation(self, idempotency_key: str, order: Order) -> None:
        """Send the confirmation to the order's e-mail address, once per key however often it is called."""


@dataclass(frozen=True)
class Gateways:
    """All that a worker needs. Built by an async context manager, which closes the clients: see `sandbox`."""

    payments: PaymentGateway
    carrier: Carrier
    mailer: Mailer
