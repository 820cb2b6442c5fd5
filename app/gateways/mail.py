"""The mail service, as the saga needs it."""

from typing import Protocol

from app.domain import Order


class Mailer(Protocol):
    async def send_confirmation(self, idempotency_key: str, order: Order) -> None:
        """Send the confirmation to the order's e-mail address, once per key however often it is called."""
