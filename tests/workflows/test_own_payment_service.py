"""Run the payment gateway of docs/make-it-yours.md against a payment service over HTTP."""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from app.domain import OrderStatus
from app.gateways import Gateways
from app.workflows.reconciliation import ReconciliationWorkflow
from dev.servers import free_port
from dev.stack import ROOT
from tests.kit.orders import ADDRESS, UNSERVICEABLE
from tests.kit.shop import Shop, build_shop_worker

PAGE = (ROOT / "docs" / "make-it-yours.md").read_text().split("## Your own payment service")[1].split("\n## ")[0]
CODE = "\n".join(
    textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
)
# The parts that the page leaves to its reader.
IMPORTS = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import httpx

from app.domain import Money
from app.gateways import Capture, Gateways, Misconfigured, PaymentDeclined
from app.gateways.sandbox import sandbox
from app.mongo import Mongo
"""


class PaymentService:
    """A payment service that records money by idempotency key. It first answers with the scripted error statuses."""

    def __init__(self) -> None:
        self.captured: dict[str, int] = {}
        self.refunded: dict[str, int] = {}
        self.errors: list[int] = []
        self.calls = 0
        self.app = FastAPI()
        self.app.post("/charges/{key}")(self.charge)
        self.app.post("/charges/{key}/refund")(self.refund)
        self.app.get("/charges")(self.list)

    async def charge(self, key: str, body: dict[str, Any], response: Response) -> dict[str, str]:
        self.calls += 1
        if self.errors:
            response.status_code = self.errors.pop(0)
        else:
            self.captured[key] = body["amount"]
        return {"id": f"ch_{key}"}

    async def refund(self, key: str) -> dict[str, bool]:
        self.refunded[key] = self.captured.get(key, 0)
        return {"refunded": key in self.captured}

    async def list(self, request: Request) -> dict[str, Any]:
        """A page has one charge. (All charges of a test are from now.)"""
        query = dict(request.query_params)
        begin, end = (datetime.fromisoformat(query[name]) for name in ("from", "to"))
        assert begin < datetime.now(UTC) < end
        number = int(query.get("page", 0))
        charges = [
            {"key": key, "net": amount - self.refunded.get(key, 0), "currency": "EUR"}
            for key, amount in self.captured.items()
        ]
        return {
            "charges": charges[number : number + 1],
            "next": {**query, "page": str(number + 1)} if number + 1 < len(charges) else None,
        }


@pytest.fixture
async def service() -> AsyncIterator[tuple[PaymentService, str]]:
    """A payment service and its address."""
    service, port = PaymentService(), free_port()
    server = uvicorn.Server(uvicorn.Config(service.app, host="127.0.0.1", port=port, log_level="critical"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        assert not running.done(), "the payment service did not start"
        await asyncio.sleep(0.01)
    yield service, f"http://127.0.0.1:{port}"
    server.should_exit = True
    await running


@pytest.fixture
async def payments(service: tuple[PaymentService, str], shop: Shop) -> AsyncIterator[PaymentService]:
    """The payment service, with a worker that uses it."""
    names: dict[str, Any] = {}
    exec(IMPORTS + CODE.replace("https://payments.example", service[1]), names)  # noqa: S102 - the page's own code
    my_gateways: AbstractAsyncContextManager[Gateways] = names["my_gateways"](shop.mongo)
    await shop.stock()
    async with my_gateways as gateways, build_shop_worker(shop, gateways):
        yield service[0]


async def test_completed_order_is_charged_once_after_service_error(payments: PaymentService, shop: Shop) -> None:
    payments.errors = [503]
    handle = await shop.start()
    assert (await handle.result()).status is OrderStatus.COMPLETED
    assert payments.calls == 2
    assert list(payments.captured.values()) == [2_000]
    assert payments.refunded == {}


async def test_unshippable_order_is_refunded(payments: PaymentService, shop: Shop) -> None:
    handle = await shop.start(shipping_address=UNSERVICEABLE)
    assert (await handle.result()).status is OrderStatus.FAILED
    assert list(payments.captured.values()) == list(payments.refunded.values()) == [2_000]


async def test_reconciliation_reads_every_page_of_the_service(
    payments: PaymentService, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    handles = [await shop.start(shipping_address=address) for address in (ADDRESS, ADDRESS, UNSERVICEABLE)]
    order_ids = [(await handle.result()).order_id for handle in handles]
    ended = datetime.now(UTC) - timedelta(hours=1)
    await shop.mongo.orders.update_many({}, {"$set": {"updated_at": ended}})
    payments.refunded[order_ids[1]] = 500  # by hand
    task_queue = shop.settings.task_queue
    await shop.client.execute_workflow(
        ReconciliationWorkflow.run, ended - timedelta(hours=1), id=f"{task_queue}-by-hand", task_queue=task_queue
    )
    assert re.findall("order (.*): (.*)", caplog.text) == [(order_ids[1], "wrong_amount")]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [(402, "payment_declined", "the card was declined"), (401, "misconfigured", "the service is misconfigured")],
)
async def test_declined_or_misconfigured_payment_fails_order_without_retry(
    payments: PaymentService, shop: Shop, status: int, code: str, message: str
) -> None:
    payments.errors = [status]
    handle = await shop.start()
    assert (await handle.result()).failure_code == code
    order = await shop.order(handle)
    assert order.failure is not None
    assert order.failure.message == message
    assert payments.calls == 1
    assert await shop.available() == 100
