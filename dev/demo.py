"""A guided tour (`make demo`): one order for each possible outcome, with each saga drawn while it runs.

The tour uses only the HTTP API, as a client would. The exit code is 0 if every order ended as expected.
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dev.sample_stock import authorization
from dev.stack import run, running_or_new_stack

SYMBOLS = {
    "done": ("✔", "green"),
    "failed": ("✘", "red"),
    "compensated": ("↩", "yellow"),
    "interrupted": ("◌", "dim"),
    "": ("·", "dim"),
}
TERMINAL = {"completed", "failed", "cancelled"}
TIMEOUT = 30  # seconds per order; the slowest takes about one

# Products that only the tour uses. The bicycle is expensive enough to need approval.
BIKE_PRICE = max(649_00, int(os.environ.get("APPROVAL_THRESHOLD") or 0))
PRODUCTS = {
    "TOUR-MUG": {"name": "Mug", "unit_price": {"amount": 12_99, "currency": "EUR"}, "available": 100},
    "TOUR-VASE": {"name": "Vase, last one", "unit_price": {"amount": 89_00, "currency": "EUR"}, "available": 1},
    "TOUR-BIKE": {"name": "Bicycle", "unit_price": {"amount": BIKE_PRICE, "currency": "EUR"}, "available": 100},
}


@dataclass(frozen=True)
class Scenario:
    """One order of the tour, an optional request while it is in progress, and its expected outcome."""

    title: str
    status: str
    failure: str | None = None
    sku: str = "TOUR-MUG"
    quantity: int = 1
    payment_method: str = "pm_card_ok"
    postal_code: str = "10115"
    at_status: str = ""  # when the order has this status ...
    action: str = ""  # ... the tour sends this action to it ...
    body: dict[str, Any] | None = None  # ... with this body


SCENARIOS = [
    Scenario("An order that completes", "completed"),
    Scenario("A declined card", "failed", "payment_declined", payment_method="pm_card_declined"),
    Scenario("Two units of a product with one in stock", "failed", "out_of_stock", sku="TOUR-VASE", quantity=2),
    Scenario("An address that the carrier does not serve", "failed", "address_unserviceable", postal_code="00000"),
    Scenario(
        "The payment service is down, and the customer cancels",
        "cancelled",
        "cancelled",
        payment_method="pm_card_outage",
        at_status="reserved",
        action="cancel",
        body={"reason": "changed my mind"},
    ),
    Scenario(
        "A bicycle, which needs approval: approved",
        "completed",
        sku="TOUR-BIKE",
        at_status="awaiting_approval",
        action="approval",
        body={"approved": True},
    ),
    Scenario(
        "Another bicycle: rejected",
        "failed",
        "not_approved",
        sku="TOUR-BIKE",
        at_status="awaiting_approval",
        action="approval",
        body={"approved": False, "reason": "credit limit reached"},
    ),
]


async def run_scenario(
    scenario: Scenario, number: int, saga: list[str], http: httpx.AsyncClient, console: Console
) -> bool:
    """Place the order and draw it until it is final. Returns True if it ended as expected. `saga` names the steps."""
    response = await http.post(
        "/orders",
        json={
            "customer_id": "tour",
            "email": "tour@example.com",
            "payment_method": scenario.payment_method,
            "lines": [{"sku": scenario.sku, "quantity": scenario.quantity}],
            "shipping_address": {
                "name": "Ada Lovelace",
                "street": "Example Street 1",
                "city": "Berlin",
                "postal_code": scenario.postal_code,
                "country": "DE",
            },
        },
    )
    order = response.raise_for_status().json()
    requests = [f"POST /orders -> {order['order_id']}"]
    started_at = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if scenario.at_status and order["status"] == scenario.at_status and len(requests) == 1:
                await http.post(f"/orders/{order['order_id']}/{scenario.action}", json=scenario.body)
                requests.append(f"POST /orders/{{order_id}}/{scenario.action} {json.dumps(scenario.body)}")
            finished = order["status"] in TERMINAL or time.monotonic() - started_at > TIMEOUT
            live.update(render(scenario, number, saga, order, requests, finished=finished), refresh=True)
            if finished:
                return ended_as_expected(scenario, order)
            await asyncio.sleep(0.05)
            order = (await http.get(f"/orders/{order['order_id']}")).raise_for_status().json()


def ended_as_expected(scenario: Scenario, order: dict[str, Any]) -> bool:
    failure = order["failure"] and order["failure"]["code"]
    return bool(order["status"] == scenario.status and failure == scenario.failure)


def render(
    scenario: Scenario, number: int, saga: list[str], order: dict[str, Any], requests: list[str], *, finished: bool
) -> Group:
    started = {step["step"]: step for step in order["steps"]}
    steps = Table.grid(padding=(0, 2))
    for name in saga:
        step = started.get(name, {"status": "", "detail": "", "interrupted": False})
        status = "interrupted" if step["interrupted"] else step["status"]
        symbol, style = SYMBOLS[status]
        steps.add_row(
            "  ",
            Text(symbol, style),
            Text(name.replace("_", " ").capitalize(), style),
            Text(status, style),
            Text(step["detail"], "dim"),
        )
    outcome = Text(f"    = {order['status']}", "bold")
    if order["failure"]:
        outcome.append(f" ({order['failure']['code']}): {order['failure']['message']}", "not bold")
    if finished and not ended_as_expected(scenario, order):
        outcome.append(f"  expected {scenario.status} ({scenario.failure})", "bold red")
    sent = [Text(f"    > {request}", "cyan") for request in requests]
    return Group(Text(f"{number}. {scenario.title}", "bold"), *sent, steps, outcome)


async def demo() -> int:
    console = Console(highlight=False)
    async with (
        running_or_new_stack() as api_url,
        httpx.AsyncClient(base_url=api_url, headers=authorization(), timeout=10) as http,
    ):
        for sku, product in PRODUCTS.items():
            (await http.put(f"/inventory/{sku}", json=product)).raise_for_status()
        saga = [row["step"] for row in (await http.get("/saga")).raise_for_status().json()["steps"]]
        results = []
        for number, scenario in enumerate(SCENARIOS, 1):
            results.append(await run_scenario(scenario, number, saga, http, console))
            console.print("" if console.is_terminal else "\n")
    console.print(f"{sum(results)} of {len(results)} orders ended as expected")
    return 0 if all(results) else 1


if __name__ == "__main__":
    run(demo())
