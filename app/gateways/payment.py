"""The payment service, as the saga needs it."""

from typing import Protocol

from app.domain import Money
from app.gateways import Declined


class PaymentDeclined(Declined):
    code = "payment_declined"


class PaymentGateway(Protocol):
    """The interface to implement for your payment service; any service with idempotency keys and refunds fits.

    `PaymentDeclined` and `Misconfigured` are final. After any other exception the outcome is unknown; the call is
    retried.
    """

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
