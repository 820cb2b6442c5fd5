"""The carrier, as the saga needs it."""

from typing import Protocol

from app.gateways import Refused
from app.models import Address


class AddressUnserviceable(Refused):
    code = "address_unserviceable"


class Carrier(Protocol):
    """Put your carrier behind this.

    Any exception but `AddressUnserviceable` means that it is not known what happened: the call is made again.
    """

    async def ship(self, key: str, address: Address) -> str:
        """Order the pick-up, once for a key however often it is called, and return the tracking number.

        Raises:
            AddressUnserviceable: nothing was ordered, and nothing will be under this key.
        """
        ...

    async def cancel(self, key: str) -> bool:
        """Call off whatever was ordered under the key, once, and refuse any order under it from now on.

        Returns:
            Whether anything had been ordered.
        """
        ...
