"""The orders, and the clients that place them: each repeats its requests until they are answered."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.domain import TERMINAL, OrderStatus

COMPLETED, FAILED, CANCELLED = OrderStatus.COMPLETED, OrderStatus.FAILED, OrderStatus.CANCELLED
PRODUCTS = {  # price and available quantity; the vases run out, and a sofa needs approval
    "CHAOS-MUG": (12_99, 10_000),
    "CHAOS-VASE": (12_99, 15),
    "CHAOS-SOFA": (650_00, 10_000),
    "CHAOS-LAMP": (49_99, 10_000),  # the one whose document some faults lock
}
CITY, NEW_CITY = "Berlin", "Potsdam"  # before an address change, and after it
ANSWER_TIMEOUT = 60.0  # seconds; longer than every fault


class NotAnswered(Exception):
    """A request was not answered within ANSWER_TIMEOUT, however often it was repeated."""


@dataclass(frozen=True)
class Kind:
    """A kind of order: its relative frequency, its allowed final statuses, its content, and a later request."""

    weight: int
    outcomes: set[OrderStatus]
    sku: str = "CHAOS-MUG"
    payment_method: str = "pm_card_ok"
    postal_code: str = "10115"
    action: str = ""


KINDS = {
    "plain": Kind(8, {COMPLETED}),
    "scarce": Kind(4, {COMPLETED, FAILED}, sku="CHAOS-VASE"),
    "declined": Kind(2, {FAILED}, payment_method="pm_card_declined"),
    "unserviceable": Kind(2, {FAILED}, postal_code="00000"),
    "flaky": Kind(2, {COMPLETED}, payment_method="pm_card_flaky"),
    "slow": Kind(2, {COMPLETED}, payment_method="pm_card_slow"),
    "cancelled": Kind(3, {COMPLETED, CANCELLED}, action="cancel at once"),
    "cancelled while charging": Kind(
        3, {COMPLETED, CANCELLED}, payment_method="pm_card_slow", action="cancel while charging"
    ),
    "payment outage": Kind(2, {CANCELLED}, payment_method="pm_card_outage", action="cancel"),
    "carrier outage": Kind(2, {CANCELLED}, postal_code="99999", action="cancel"),
    "approved": Kind(2, {COMPLETED}, sku="CHAOS-SOFA", action="approve"),
    "rejected": Kind(1, {FAILED}, sku="CHAOS-SOFA", action="reject"),
    "moved": Kind(2, {COMPLETED}, payment_method="pm_card_slow", action="change the address"),
    # Placed by faults only, which also cancel some of them.
    "overtaken by a cancel": Kind(0, {COMPLETED, CANCELLED}, payment_method="pm_card_slow"),
    "charged on a frozen worker": Kind(0, {COMPLETED, CANCELLED}, payment_method="pm_card_slow"),
    "reserved on a frozen worker": Kind(0, {COMPLETED, CANCELLED}, sku="CHAOS-LAMP"),
    "cancelled twice": Kind(0, {CANCELLED}, sku="CHAOS-LAMP", payment_method="pm_card_outage"),
    "placed without a majority": Kind(0, {COMPLETED}),
}


@dataclass(frozen=True)
class PlannedOrder:
    """An order to place. `delay` is the time before the later request, from 0 to 1; `timeout` is the client's."""

    kind: str
    quantity: int = 1
    delay: float = 0.0
    timeout: float = 5.0  # seconds


def plan_orders(count: int, seed: int) -> list[PlannedOrder]:
    """Return the orders of a run, at least one of each kind. The same seed gives the same orders."""
    chosen = random.Random(f"orders {seed}")
    kinds = [name for name, kind in KINDS.items() if kind.weight]
    weights = {name: kind.weight for name, kind in KINDS.items()}
    kinds += chosen.choices(list(weights), list(weights.values()), k=count - len(kinds))
    chosen.shuffle(kinds)
    return [PlannedOrder(kind, chosen.randint(1, 2), chosen.random(), chosen.choice([0.7, 2.0, 5.0])) for kind in kinds]


@dataclass
class PlacedOrder:
    kind: str
    order_id: str
    key: str
    body: dict[str, Any]
    action: str = ""  # the later request, such as `cancel`
    answer: str = ""  # of the API to it
    repeats: int = 0  # of it
    final_before_reset: str = ""  # the final status, if the order had one when its workflow was reset
    operator_cancelled: bool = False


@dataclass
class RetryingClients:
    """Place orders, and repeat each request until it is answered. `longest_delay` (seconds) scales `PlannedOrder`'s."""

    http: httpx.AsyncClient
    longest_delay: float
    placed: list[PlacedOrder] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)  # requests by the class of their answer
    repeats: int = 0
    errors: list[str] = field(default_factory=list)
    _sent: int = 0

    async def send(self, method: str, path: str, *, timeout: float = 5.0, **request: Any) -> httpx.Response:
        """Repeat a request until the answer is not a 503 or another server error."""
        response, _ = await self.send_counted(method, path, timeout=timeout, **request)
        return response

    async def send_counted(
        self, method: str, path: str, *, timeout: float = 5.0, **request: Any
    ) -> tuple[httpx.Response, int]:
        """Like `send`, but also returns the number of repeats. The timeout doubles with each, up to 5 s.

        Raises:
            NotAnswered: `errors` has it.
        """
        repeats, deadline, last = 0, time.monotonic() + ANSWER_TIMEOUT, "no answer"
        while time.monotonic() < deadline:
            try:
                response = await self.http.request(method, path, timeout=timeout, **request)
            except httpx.TransportError as error:
                self.answered["no answer"] += 1
                last = type(error).__name__
            else:
                self.answered[str(response.status_code)] += 1
                if not response.is_server_error:
                    return response, repeats
                last = f"{response.status_code} {response.text}"
                if response.status_code != 503:
                    self.errors.append(f"{method} {path} was answered with {last}")
            repeats += 1
            self.repeats += 1
            await asyncio.sleep(min(0.2, timeout / 4))
            timeout = min(2 * timeout, 5.0)
        self.errors.append(f"{method} {path} was not answered within {ANSWER_TIMEOUT:.0f} s, last with {last}")
        raise NotAnswered

    async def run(self, order: PlannedOrder) -> None:
        """Place the order, then send the later request of its kind."""
        with suppress(NotAnswered):
            await self._run(order)

    async def _run(self, order: PlannedOrder) -> None:
        item, delay = await self.place(order), order.delay * self.longest_delay
        match KINDS[order.kind].action:
            case "change the address":
                await asyncio.sleep(delay / 4)
                address = {**item.body["shipping_address"], "city": NEW_CITY}
                await self.act(item, "shipping-address", address, method="PUT")
            case "cancel at once":
                await asyncio.sleep(delay / 20)
                await self.act(item, "cancel")
            case "cancel while charging":
                await self.wait_until(item, set(OrderStatus) - {OrderStatus.PLACED})
                await asyncio.sleep(order.delay)
                await self.act(item, "cancel")
            case "cancel":
                await asyncio.sleep(delay)
                await self.act(item, "cancel")
            case "approve" | "reject" as decision:
                await self.wait_until(item, set(OrderStatus) - {OrderStatus.PLACED})
                await asyncio.sleep(delay)
                await self.act(item, "approval", {"approved": decision == "approve"})

    async def place(self, order: PlannedOrder) -> PlacedOrder:
        kind = KINDS[order.kind]
        self._sent += 1
        key = f"chaos-{self._sent}"
        body = {
            "customer_id": "chaos",
            "email": "chaos@example.com",
            "payment_method": kind.payment_method,
            "lines": [{"sku": kind.sku, "quantity": order.quantity}],
            "shipping_address": {
                "name": "Ada Lovelace",
                "street": "Example Street 1",
                "city": CITY,
                "postal_code": kind.postal_code,
                "country": "DE",
            },
        }
        headers = {"Idempotency-Key": key}
        response = await self.send("POST", "/orders", timeout=order.timeout, json=body, headers=headers)
        item = PlacedOrder(order.kind, response.raise_for_status().json()["order_id"], key, body)
        self.placed.append(item)
        return item

    async def repeat(self, item: PlacedOrder) -> str:
        """Repeat the POST of an order, and return the order id of the answer if the order existed."""
        response = await self.send("POST", "/orders", json=item.body, headers={"Idempotency-Key": item.key})
        is_replayed = response.headers.get("Idempotency-Replayed") == "true"
        return str(response.json().get("order_id")) if is_replayed else "a new order"

    async def act(self, item: PlacedOrder, action: str, body: object = None, method: str = "POST") -> None:
        path, item.action = f"/orders/{item.order_id}/{action}", action
        response, item.repeats = await self.send_counted(method, path, json=body or {})
        item.answer = f"{response.status_code} {response.json().get('detail', '')}".strip()

    async def status(self, item: PlacedOrder) -> OrderStatus | None:
        """Return the order's status, or None if the order does not exist: it is lost."""
        response = await self.send("GET", f"/orders/{item.order_id}")
        return None if response.status_code == 404 else OrderStatus(response.raise_for_status().json()["status"])

    async def wait_until(self, item: PlacedOrder, statuses: Iterable[OrderStatus]) -> None:
        """Wait until the order has one of these statuses, is final, or is lost; at most ANSWER_TIMEOUT."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while await self.status(item) not in {*statuses, *TERMINAL, None} and time.monotonic() < deadline:
            await asyncio.sleep(0.3)
