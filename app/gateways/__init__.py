"""The services outside: payment, carrier, mail. A Protocol for each, their errors, and one bundle of all three."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.gateways.carrier import Carrier
    from app.gateways.mail import Mailer
    from app.gateways.payment import PaymentGateway


class Declined(Exception):
    """The service's final no: nothing happened, and a retry will not change it. The message is for the customer."""

    code = "declined"


class Unavailable(Exception):
    """The service cannot be reached, or answered with an error of its own: the outcome is unknown; retry later."""


class Misconfigured(Exception):
    """The service does not accept this shop's credentials or settings: nothing happened, and no retry will help."""


@dataclass(frozen=True)
class Gateways:
    """All that a worker needs. Built by an async context manager, which closes the clients: see `sandbox`."""

    payments: PaymentGateway
    carrier: Carrier
    mailer: Mailer
