"""A mail server (aiosmtpd). It refuses, hangs or loses replies as a test asks, and keeps what it accepted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

PASSWORD = "mail-4c81f07b"


class MailServer:
    """A handler of aiosmtpd.

    Attributes:
        mails: accepted mails, in sequence.
        connections: how many clients introduced themselves.
        replies: to the next recipients. "hang" answers never.
        lost_replies: how many mails are accepted without a reply.
        lost_goodbyes: how many QUITs get no answer.
        logins: how many passwords were received.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.mails: list[EmailMessage] = []
        self.connections = 0
        self.replies: list[str] = []
        self.lost_replies = 0
        self.lost_goodbyes = 0
        self.logins = 0
        self.password = PASSWORD

    def environment(self) -> dict[str, str]:
        """The settings of a worker that uses the server."""
        return {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.port),
            "SMTP_USERNAME": "shop",
            "SMTP_PASSWORD": PASSWORD,
            "SMTP_SENDER": "orders@shop.example",
        }

    def mailbox(self) -> dict[str, EmailMessage]:
        """The mails as a mailbox that shows one per Message-ID."""
        return {mail["Message-ID"]: mail for mail in self.mails}

    async def handle_EHLO(self, _: SMTP, session: Session, __: Envelope, hostname: str, lines: list[str]) -> list[str]:  # noqa: N802
        self.connections += 1
        session.host_name = hostname
        return lines

    async def handle_RCPT(self, _: SMTP, __: Session, envelope: Envelope, address: str, ___: list[str]) -> str:  # noqa: N802
        reply = self.replies.pop(0) if self.replies else "250 OK"
        if reply == "hang":
            await asyncio.Event().wait()
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: SMTP, _: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, EmailMessage, policy=policy.default)
        assert [mail["To"]] == envelope.rcpt_tos
        self.mails.append(mail)
        if self.lost_replies:
            self.lost_replies -= 1
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return "250 OK"

    async def handle_QUIT(self, *_: Any) -> str:  # noqa: N802
        if self.lost_goodbyes:
            self.lost_goodbyes -= 1
            await asyncio.Event().wait()
        return "221 bye"

    def authenticate(self, *arguments: Any) -> AuthResult:
        self.logins += 1
        login = arguments[-1]
        assert isinstance(login, LoginPassword)
        return AuthResult(success=login.password.decode() == self.password, handled=False)


@asynccontextmanager
async def serving(
    server: MailServer, tls: ssl.SSLContext | None = None, *, encrypted_from_the_start: bool = False
) -> AsyncIterator[None]:
    """Serve on the server's port: without TLS, with STARTTLS, or encrypted from the start, as on port 465."""
    loop = asyncio.get_running_loop()
    start_tls, implicit = (None, tls) if encrypted_from_the_start else (tls, None)

    def protocol() -> SMTP:
        return SMTP(server, authenticator=server.authenticate, auth_require_tls=False, tls_context=start_tls, loop=loop)

    listening = await loop.create_server(protocol, "127.0.0.1", server.port, ssl=implicit)
    try:
        yield
    finally:
        listening.close()
