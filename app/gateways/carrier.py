"""The carrier, as the saga needs it."""

from typing import Protocol

from app.domain import Address
from app.gateways import Declined


class AddressUnserviceable(Declined):
    code = "address_unserviceable"


class Carrier(Protocol):
    """The interface to implement for your carrier.

    `AddressUnserviceable` and `Misconfigured` are final. After any other exception the outcome is unknown; the call is
    retried.
    """

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
