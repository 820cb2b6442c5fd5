"""A payment gateway for a payment service with an HTTP API: docs/make-it-yours.md connects it.

The problem: a call may fail in any way, and after most failures it is unknown if the card was charged.

The traps: a repeated call charges twice; a call that outlives its attempt charges an order that is already refunded; an
error page quotes the card number in a log.

The solution: each call has the order's idempotency key, and ends before the attempt does. A status that says "nothing
happened" is final. After any other error the outcome is unknown, so it is left to Temporal, which retries. The texts of
the service go nowhere.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import httpx
from pydantic import Field, SecretStr

from app.domain import Money
from app.gateways import Capture, Misconfigured, PaymentDeclined
from app.settings import Settings, Url

TIMEOUT = 20.0  # seconds, for a whole call: shorter than `start_to_close` of CHARGE_PAYMENT, and than SHORT_ATTEMPT

# For the customer, by the service's code. Its own texts may quote a card number or a name.
DECLINES = {"expired_card": "the card has expired", "insufficient_funds": "the card has insufficient funds"}


class InvalidApiKey(Misconfigured):
    """The service does not accept PAYMENTS_API_KEY."""


class RequestRejected(Misconfigured):
    """The service does not understand a request of this file."""


class PaymentSettings(Settings):
    payments_url: Annotated[Url, Field(min_length=1)]
    payments_api_key: Annotated[SecretStr, Field(min_length=1)]


class HttpPayments:
    """Charges, refunds and lists payments over HTTP.

    Args:
        timeout: in seconds, for a whole call.
    """

    def __init__(self, http: httpx.AsyncClient, timeout: float) -> None:
        self._http = http
        self._timeout = timeout

    async def charge(self, idempotency_key: str, amount: Money, payment_method: str) -> str:
        body = {"reference": idempotency_key, "payment_method": payment_method, **amount.model_dump()}
        charge = await self._call("POST", "/charges", headers={"Idempotency-Key": idempotency_key}, json=body)
        return str(charge["id"])

    async def refund(self, idempotency_key: str) -> bool:
        """Reverse the charge with this reference. If there is none, the service declines it from now on."""
        headers = {"Idempotency-Key": f"{idempotency_key}-reversal"}  # a key belongs to one request
        reversal = await self._call("POST", "/reversals", headers=headers, json={"reference": idempotency_key})
        return bool(reversal["refunded"])

    async def captured_between(self, begin: datetime, end: datetime) -> AsyncIterator[list[Capture]]:
        query = {"captured_from": begin.isoformat(), "captured_before": end.isoformat()}
        while query:
            page = await self._call("GET", "/charges", params=query)
            yield [
                Capture(each["reference"], Money(amount=each["net"], currency=each["currency"]))
                for each in page["charges"]
            ]
            query = {**query, "cursor": page["next"]} if page["next"] else {}

    async def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        async with asyncio.timeout(self._timeout):  # httpx has none for a whole call, only for each read
            response = await self._http.request(method, path, **request)
        match response.status_code:
            case 402:
                raise PaymentDeclined(DECLINES.get(response.json()["code"], "the card was declined"))
            case 401 | 403:
                raise InvalidApiKey
            case 400 | 404 | 405 | 422:
                raise RequestRejected
        response.raise_for_status()  # also 409, another call with this key is in progress, and 429, too many calls
        answer: dict[str, Any] = response.json()
        return answer


@asynccontextmanager
async def http_payments(timeout: float = TIMEOUT) -> AsyncIterator[HttpPayments]:
    """Open the client with the worker, and close it with the worker.

    Raises:
        SystemExit: PAYMENTS_URL or PAYMENTS_API_KEY is missing or wrong.
    """
    settings = PaymentSettings.load()
    headers = {"Authorization": f"Bearer {settings.payments_api_key.get_secret_value()}"}
    async with httpx.AsyncClient(base_url=settings.payments_url, headers=headers, timeout=timeout) as http:
        yield HttpPayments(http, timeout)
