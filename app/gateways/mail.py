"""The mail service, as the saga needs it."""

from typing import Protocol

from app.models import Order


class Mailer(Protocol):
    async def send_confirmation(self, key: str, order: Order) -> None:
        """Send the confirmation to the order's e-mail address, once for a key however often it is called."""
        ...
