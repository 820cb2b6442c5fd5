"""The payment service, as the saga needs it."""

from typing import Protocol

from app.gateways import Refused
from app.models import Money


class PaymentDeclined(Refused):
    code = "payment_declined"


class PaymentGateway(Protocol):
    """Put your payment service behind this; any service with idempotency keys and refunds will do.

    Any exception but `PaymentDeclined` means that it is not known what happened: the call is made again.
    """

    async def charge(self, key: str, amount: Money, payment_method: str) -> str:
        """Capture the amount, once for a key however often it is called, and return the service's own id of the charge.

        Raises:
            PaymentDeclined: nothing was captured, and nothing will be under this key.
        """
        ...

    async def refund(self, key: str) -> bool:
        """Give back whatever was captured under the key, once, and refuse any capture under it from now on.

        A service that cannot refuse a later capture (with Stripe, cancelling a PaymentIntent does) is safe all the
        same, as a late attempt refunds what it captured, save when its worker dies before that, or its refund fails.

        Returns:
            Whether anything had been captured.
        """
        ...
