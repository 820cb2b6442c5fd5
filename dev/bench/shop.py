"""The client of the program that is measured: places orders over HTTP, and waits for their end."""

import asyncio
import json
import uuid
from collections.abc import Mapping

from app.mongo import Mongo
from dev.bench.load import Answer, Http
from dev.servers import ServerError

SKU = "MUG-BLUE"
WAIT = {"Prefer": "wait=30"}  # the response comes when the order is final
POLL = 0.05  # seconds


def order_body(customer: str = "", sku: str = SKU, **fields: object) -> bytes:
    order = {
        "customer_id": customer or f"bench-{uuid.uuid4().hex[:12]}",
        "email": "bench@example.com",
        "payment_method": "pm_card_ok",
        "lines": [{"sku": sku, "quantity": 1}],
        "shipping_address": {
            "name": "Ada Lovelace",
            "street": "Example Street 1",
            "city": "Berlin",
            "postal_code": "10115",
            "country": "DE",
        },
    }
    return json.dumps(order | fields).encode()


def place_headers() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


class Shop:
    """The API. `refused` counts the POSTs that it refused under load."""

    def __init__(self, http: Http) -> None:
        self.http = http
        self.refused = 0

    async def stock(self, sku: str = SKU, available: int = 100_000_000) -> None:
        """Replace a product, with so many available."""
        product = {"name": sku, "unit_price": {"amount": 1299, "currency": "EUR"}, "available": available}
        await self.expect("PUT", f"/inventory/{sku}", json.dumps(product).encode())

    async def place(self, body: bytes = b"") -> str:
        """Place an order; return its id.

        Raises:
            ServerError: the answer is not 202.
        """
        return str((await self._post(body)).json()["order_id"])

    async def complete(self) -> None:
        """Place an order, and wait until it is completed.

        Raises:
            ServerError: it ended otherwise, or was not accepted.
        """
        order = (await self._post(headers=WAIT)).json()
        while order["status"] != "completed":
            if order["failure"]:
                raise ServerError(f"order {order['order_id']} failed: {order['failure']['message']}")
            await asyncio.sleep(POLL)  # it took longer than WAIT
            order = (await self.expect("GET", f"/orders/{order['order_id']}")).json()

    async def complete_unwatched(self, mongo: Mongo) -> None:
        """The same without another request to the API: the order's end is read from MongoDB."""
        order_id = await self.place()
        while not await mongo.orders.count_documents({"_id": order_id, "status": "completed"}):
            await asyncio.sleep(POLL)

    async def _post(self, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """A POST that is refused under load (503) is repeated when the answer says; its time includes that."""
        order, headers = body or order_body(), place_headers() | dict(headers or {})
        while (answer := await self.http.request("POST", "/orders", order, headers)).status == 503:
            self.refused += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        return _checked(answer, "POST /orders")

    async def expect(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises ServerError if the answer is not a success."""
        return _checked(await self.http.request(method, path, body, headers), f"{method} {path}")


def _checked(answer: Answer, request: str) -> Answer:
    if not 200 <= answer.status < 300:
        raise ServerError(f"{request}: {answer.status} {answer.body.decode(errors='replace')}")
    return answer
