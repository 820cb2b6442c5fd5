"""A mailer for a mail server, over SMTP: docs/make-it-yours.md connects it.

The problem: SMTP has no idempotency keys. If the reply to a mail is lost, the server may have it or not.

The traps: a mail that is given up too early is lost (a server that greylists accepts a stranger's mail only after some
minutes), one that is retried without end annoys the server, and a lost reply to QUIT repeats a mail that was accepted.

The solution: a refusal for now is retried by Temporal, for a week. A mailbox that does not exist is final: the order
stays completed, because it was shipped, and its workflow fails, for a person to look. A mail that is sent twice has the
same Message-ID, by which many mail servers and clients show it once.
"""

import asyncio
from contextlib import suppress
from email.message import EmailMessage
from email.utils import localtime
from typing import Annotated, Any

import aiosmtplib
from pydantic import Field, SecretStr

from app.domain import Order
from app.gateways import Declined
from app.settings import LOOPBACK, Settings

# In seconds, for a whole mail: shorter than `start_to_close` of SEND_CONFIRMATION. RFC 5321 grants a server ten minutes
# to accept a mail: if yours is slow, raise both, or it may get mails twice.
TIMEOUT = 20.0
TLS_PORT = 465


class RecipientRejected(Declined):
    code = "recipient_rejected"


class MailSettings(Settings):
    smtp_host: Annotated[str, Field(min_length=1)]
    smtp_port: int = 587
    smtp_username: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_sender: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]


class SmtpMailer:
    """Sends confirmations, each over a connection of its own: mail servers close idle ones.

    Args:
        timeout: in seconds, for a whole mail.
    """

    def __init__(self, settings: MailSettings, timeout: float = TIMEOUT) -> None:
        self._sender = settings.smtp_sender
        self._domain = settings.smtp_sender.rpartition("@")[2]
        self._timeout = timeout
        self._server: dict[str, Any] = {
            "hostname": settings.smtp_host,
            "port": settings.smtp_port,
            "username": settings.smtp_username or None,
            "password": settings.smtp_password.get_secret_value() or None,
            "use_tls": settings.smtp_port == TLS_PORT,
            # TLS is required, except on this machine.
            "start_tls": settings.smtp_port != TLS_PORT and settings.smtp_host not in LOOPBACK,
            "local_hostname": self._domain,  # by default, a query of the DNS
            "timeout": timeout,
        }

    async def send_confirmation(self, idempotency_key: str, order: Order) -> None:
        """Send the confirmation; after a lost reply, send it again with the same Message-ID.

        Raises:
            RecipientRejected: the order's e-mail address does not exist.
        """
        message = EmailMessage()
        message["From"], message["To"] = self._sender, order.email
        message["Subject"] = f"Your order {order.order_id} was shipped"
        message["Message-ID"] = f"<{idempotency_key}@{self._domain}>"
        message["Date"] = localtime()
        message.set_content(
            "\n".join(["On its way to you:", *(f"{line.quantity} x {line.name}" for line in order.lines)])
        )
        try:
            await self._send(message, order.email)
        except aiosmtplib.SMTPRecipientsRefused as refused:
            if _is_permanent(refused.recipients[0]):
                raise RecipientRejected("the mail server does not know the e-mail address") from None
            raise

    async def _send(self, message: EmailMessage, recipient: str) -> None:
        client = aiosmtplib.SMTP(**self._server)
        try:
            async with asyncio.timeout(self._timeout):
                await client.connect()
                await client.send_message(message, recipients=[recipient])
        finally:
            with suppress(aiosmtplib.SMTPException, TimeoutError):  # the mail is accepted, or not, before QUIT
                async with asyncio.timeout(1):
                    await client.quit()
            client.close()


def _is_permanent(refused: aiosmtplib.SMTPRecipientRefused) -> bool:
    """Return True for a mailbox that cannot be reached; False for "try later" (4xx) and policy (5.7.x, RFC 3463).

    A refusal by policy, such as "relaying denied", may concern the sender: a person can correct it within the week.
    """
    return refused.code >= 500 and not refused.message.startswith("5.7.")
