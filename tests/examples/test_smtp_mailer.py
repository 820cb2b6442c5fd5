"""Orders that are confirmed by mail over SMTP (examples/smtp_mailer.py)."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

import examples.smtp_mailer as smtp_mailer
from app.domain import Order, OrderStatus, StepName
from app.gateways import Gateways
from app.workflows.steps import STEPS
from dev.servers import free_port
from examples.smtp_mailer import TIMEOUT, MailSettings, SmtpMailer
from tests.kit.certificates import Authority
from tests.kit.mail_server import PASSWORD, MailServer, serving
from tests.kit.orders import EMAIL, NAME, order_document, steps_of
from tests.kit.shop import Shop, build_shop_worker, sandbox_gateways
from tests.kit.waiting import eventually

SHORT = 0.5  # seconds: the mailer's timeout where the server hangs


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> MailServer:
    """A mail server that does not run yet."""
    server = MailServer(free_port())
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


def gateways(shop: Shop, timeout: float = TIMEOUT) -> Gateways:
    return sandbox_gateways(shop.mongo, mailer=SmtpMailer(MailSettings.load(), timeout))


async def attempts_of_confirmation(shop: Shop, handle: Any) -> int:
    pending = (await handle.describe()).raw_description.pending_activities
    return max((each.attempt for each in pending if each.activity_type.name == "SendConfirmation"), default=0)


async def test_completed_order_is_confirmed_by_mail(server: MailServer, shop: Shop) -> None:
    await shop.stock()
    async with serving(server), build_shop_worker(shop, gateways(shop)):
        handle = await shop.start()
        assert (await handle.result()).status is OrderStatus.COMPLETED
    order = await shop.order(handle)
    (mail,) = server.mails
    assert (mail["From"], mail["To"]) == ("orders@shop.example", EMAIL)
    assert mail["Message-ID"] == f"<{order.order_id}@shop.example>"
    assert "2 x MUG" in mail.get_content()


async def test_mail_is_sent_when_the_server_is_back(server: MailServer, shop: Shop) -> None:
    await shop.stock()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(build_shop_worker(shop, gateways(shop)))
        handle = await shop.start()
        await eventually(lambda: attempts_of_confirmation(shop, handle), lambda attempts: attempts >= 2)
        assert (await shop.order(handle)).status is OrderStatus.SHIPPED
        await stack.enter_async_context(serving(server))
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert len(server.mails) == 1


@pytest.mark.parametrize(
    "reply", ["451 4.7.1 greylisted, try later", "452 4.2.2 mailbox full", "554 5.7.1 relaying denied", "hang"]
)
async def test_mail_refused_for_now_is_retried(
    server: MailServer, shop: Shop, caplog: pytest.LogCaptureFixture, reply: str
) -> None:
    server.replies = [f"{reply} for {EMAIL}" if reply != "hang" else reply]
    await shop.stock()
    async with serving(server), build_shop_worker(shop, gateways(shop, SHORT)):
        handle = await shop.start()
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await shop.order(handle)).steps[-1].attempts == 2
    assert len(server.mails) == 1
    history = (await handle.fetch_history()).to_json()
    for secret in (EMAIL, NAME, PASSWORD):
        assert secret not in history + caplog.text


async def test_unknown_recipient_completes_order_and_fails_workflow_without_retry(
    server: MailServer, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """The order was shipped, so nothing is compensated: a person has to look."""
    server.replies = [f"550 5.1.1 <{EMAIL}>: no such user"]
    await shop.stock()
    async with serving(server), build_shop_worker(shop, gateways(shop)):
        handle = await shop.start()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "recipient_rejected"
    order = await shop.order(handle)
    assert order.status is OrderStatus.COMPLETED
    assert order.failure is not None
    assert order.failure.message == "the mail server does not know the e-mail address"
    assert steps_of(order) == {**dict.fromkeys(StepName, "done"), StepName.SEND_CONFIRMATION: "failed"}
    assert server.connections == 1
    assert EMAIL not in (await handle.fetch_history()).to_json() + caplog.text


async def test_lost_reply_sends_mail_again_with_the_same_message_id(server: MailServer, shop: Shop) -> None:
    server.lost_replies = 1
    await shop.stock()
    async with serving(server), build_shop_worker(shop, gateways(shop)):
        handle = await shop.start()
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert len(server.mails) == 2
    assert len(server.mailbox()) == 1


async def test_lost_reply_to_quit_does_not_repeat_the_mail(server: MailServer, shop: Shop) -> None:
    server.lost_goodbyes = 1
    await shop.stock()
    async with serving(server), build_shop_worker(shop, gateways(shop, SHORT)):
        handle = await shop.start()
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert len(server.mails) == 1


async def test_mail_with_wrong_password_is_sent_once_it_is_corrected(
    server: MailServer, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    server.password = "rotated"
    await shop.stock()
    async with serving(server), build_shop_worker(shop, gateways(shop)):
        handle = await shop.start()
        await eventually(lambda: attempts_of_confirmation(shop, handle), lambda attempts: attempts >= 2)
        server.password = PASSWORD
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert len(server.mails) == 1
    assert "SMTPAuthenticationError" in caplog.text
    assert PASSWORD not in (await handle.fetch_history()).to_json() + caplog.text


@pytest.fixture
def another_machine(
    server: MailServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], tuple[ssl.SSLContext, SmtpMailer, Order]]:
    """TLS for the server, and a mailer that takes 127.0.0.1 for another machine and trusts one authority."""
    trusted = Authority(tmp_path / "trusted", "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.certificate))
    monkeypatch.setattr(smtp_mailer, "LOOPBACK", ())

    def prepare(authority: str) -> tuple[ssl.SSLContext, SmtpMailer, Order]:
        issuer = trusted if authority == "trusted" else Authority(tmp_path / authority, authority)
        files = issuer.issue("mail.example")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(files.certificate, files.key)
        return tls, SmtpMailer(MailSettings.load()), Order.from_document(order_document())

    return prepare


@pytest.mark.parametrize("implicit", [False, True])
async def test_server_on_another_machine_gets_mail_over_tls(
    server: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    another_machine: Callable[[str], tuple[ssl.SSLContext, SmtpMailer, Order]],
    *,
    implicit: bool,
) -> None:
    if implicit:
        monkeypatch.setattr(smtp_mailer, "TLS_PORT", server.port)
    tls, mailer, order = another_machine("trusted")
    async with serving(server, tls, encrypted_from_the_start=implicit):
        await mailer.send_confirmation(order.order_id, order)
    assert (len(server.mails), server.logins) == (1, 1)


@pytest.mark.parametrize("authority", ["unknown", ""])
async def test_server_on_another_machine_gets_no_password_without_verified_tls(
    server: MailServer, another_machine: Callable[[str], tuple[ssl.SSLContext, SmtpMailer, Order]], authority: str
) -> None:
    tls, mailer, order = another_machine(authority or "trusted")
    async with serving(server, tls if authority else None):
        with pytest.raises((aiosmtplib.SMTPException, ssl.SSLError), match=r"STARTTLS|certificate"):
            await mailer.send_confirmation(order.order_id, order)
    assert (server.mails, server.logins) == ([], 0)


def test_mailer_gives_up_before_the_attempt_ends() -> None:
    assert STEPS[-1].name == "send_confirmation"
    assert STEPS[-1].start_to_close.total_seconds() - 5 > TIMEOUT


def test_missing_setting_is_named_at_the_start(server: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMTP_HOST")
    monkeypatch.setenv("SMTP_SENDER", "the shop")
    with pytest.raises(SystemExit, match=re.escape("SMTP_HOST: Field required; SMTP_SENDER: ")) as caught:
        MailSettings.load()
    assert PASSWORD not in str(caught.value)
