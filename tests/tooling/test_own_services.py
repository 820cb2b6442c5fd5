"""Connect the payment service and the mail server of docs/make-it-yours.md in a copy of the program."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.gateways.sandbox import records
from app.settings import Settings
from dev.servers import Server, free_port
from dev.stack import ROOT
from tests.kit.mail_server import MailServer, serving
from tests.kit.orders import EMAIL, UNSERVICEABLE, order_body
from tests.kit.own_services import connect
from tests.kit.payment_service import PaymentService, payment_service
from tests.kit.program_copy import ProgramCopy, environment_of
from tests.kit.shop import Shop
from tests.kit.waiting import eventually


@pytest.fixture
def copy(tmp_path: Path) -> ProgramCopy:
    copy = ProgramCopy(tmp_path / "copy")
    connect(copy)
    return copy


@pytest.fixture
def service() -> Iterator[PaymentService]:
    with payment_service() as service:
        yield service


async def test_orders_pay_and_are_confirmed_through_the_connected_services(
    copy: ProgramCopy, settings: Settings, temporal_server: Server, shop: Shop, service: PaymentService
) -> None:
    server = MailServer(free_port())
    environment = {"SANDBOX_GATEWAYS": "true", **environment_of(settings, temporal_server)}
    environment |= service.environment() | server.environment()
    await shop.stock()
    bodies = [
        order_body(payment_method="pm_lost_reply"),
        order_body(payment_method="pm_poor"),
        order_body(shipping_address=UNSERVICEABLE),
    ]
    async with serving(server), copy.api(environment) as api, copy.worker(environment, "worker.py"):
        ids = [(await api.post("/orders", json=body)).json()["order_id"] for body in bodies]

        async def orders() -> list[dict[str, Any]]:
            return [(await api.get(f"/orders/{order_id}")).json() for order_id in ids]

        final = await eventually(orders, lambda found: all(o["status"] in {"completed", "failed"} for o in found))

    assert [order["failure"] and order["failure"]["message"] for order in final] == [
        None,
        "the card has insufficient funds",
        "no carrier delivers to this address",
    ]
    assert {reference: charge["net"] for reference, charge in service.charges.items()} == {ids[0]: 2_000, ids[2]: 0}
    assert [mail["To"] for mail in server.mails] == [EMAIL]
    assert await records(shop.mongo).count_documents({"_id": {"$regex": "^(payment|mail):"}}) == 0
    log = (copy.folder / "worker.log").read_text()
    assert "carrier: a sandbox" in log  # and nothing else is
    for secret in (EMAIL, *service.environment().values(), server.environment()["SMTP_PASSWORD"]):
        assert secret not in log


async def test_worker_without_a_setting_of_a_service_names_it_and_does_not_start(
    copy: ProgramCopy, settings: Settings, temporal_server: Server, service: PaymentService
) -> None:
    environment = environment_of(settings, temporal_server) | service.environment()
    code, output = await copy.run("worker.py", environment=environment)
    assert code == 1, output
    assert output.splitlines()[-1] == "wrong setting: SMTP_HOST: Field required; SMTP_SENDER: Field required"


@pytest.mark.exhaustive  # takes as long as checking the types of the whole project
async def test_types_of_the_connected_services_are_right(copy: ProgramCopy) -> None:
    shutil.copy(ROOT / "pyproject.toml", copy.folder)
    code, mistakes = await copy.run("-m", "mypy", "app", "worker.py", within=170)
    assert code == 0, mistakes


async def test_copied_tests_run_on_the_own_gateways(copy: ProgramCopy, exhaustive: bool) -> None:
    copy.add("pyproject.toml")
    copied = ["tests/activities/test_payment_service.py", "tests/activities/test_mail_server.py"]
    for name in copied:
        assert "examples" not in (copy.folder / name).read_text().partition('"""\n')[2]
    some = [] if exhaustive else ["-k", "declined or settings"]
    assert await copy.passed(*copied, *some) > 0
