"""A guided tour (`make demo`): orders that go every way an order can go, each saga drawn as it moves.

Everything happens over HTTP, as your own code would do it. Exits with 0 when every order ended as it should.
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
from dev.stack import run, running_or_new

SIGNS = {
    "done": ("✔", "green"),
    "failed": ("✘", "red"),
    "compensated": ("↩", "yellow"),
    "interrupted": ("◌", "dim"),
    "": ("·", "dim"),
}
FINAL = {"completed", "failed", "cancelled"}
PATIENCE = 30  # seconds for one order; the slowest takes about one

# Products for the tour alone. The bicycle is dear enough to wait for approval.
BIKE_PRICE = max(649_00, int(os.environ.get("APPROVAL_THRESHOLD") or 0))
PRODUCTS = {
    "TOUR-MUG": {"name": "Mug", "unit_price": {"amount": 12_99, "currency": "EUR"}, "available": 100},
    "TOUR-VASE": {"name": "Vase, the last", "unit_price": {"amount": 89_00, "currency": "EUR"}, "available": 1},
    "TOUR-BIKE": {"name": "Bicycle", "unit_price": {"amount": BIKE_PRICE, "currency": "EUR"}, "available": 100},
}


@dataclass(frozen=True)
class Act:
    """One order of the tour: what is special about it, what is done while it is under way, and how it must end."""

    title: str
    status: str
    failure: str | None = None
    sku: str = "TOUR-MUG"
    quantity: int = 1
    payment_method: str = "pm_card_ok"
    postal_code: str = "10115"
    when: str = ""  # at this status ...
    post: str = ""  # ... this is posted to the order ...
    body: dict[str, Any] | None = None  # ... with this


ACTS = [
    Act("An order that all goes well for", "completed"),
    Act("A card that is declined", "failed", "payment_declined", payment_method="pm_card_declined"),
    Act("Two of a product of which there is one", "failed", "out_of_stock", sku="TOUR-VASE", quantity=2),
    Act("An address that no carrier serves", "failed", "address_unserviceable", postal_code="00000"),
    Act(
        "The payment service is down, and the customer cancels",
        "cancelled",
        "cancelled",
        payment_method="pm_card_outage",
        when="reserved",
        post="cancel",
        body={"reason": "changed my mind"},
    ),
    Act(
        "A bicycle, dear enough that a person must approve it: yes",
        "completed",
        sku="TOUR-BIKE",
        when="awaiting_approval",
        post="approval",
        body={"approved": True},
    ),
    Act(
        "Another bicycle: no",
        "failed",
        "not_approved",
        sku="TOUR-BIKE",
        when="awaiting_approval",
        post="approval",
        body={"approved": False, "reason": "credit limit reached"},
    ),
]


async def play(act: Act, number: int, saga: list[str], http: httpx.AsyncClient, console: Console) -> bool:
    """Place the order, draw it until it is final, and tell whether it ended as it should. `saga` names the steps."""
    response = await http.post(
        "/orders",
        json={
            "customer_id": "tour",
            "email": "tour@example.com",
            "payment_method": act.payment_method,
            "lines": [{"sku": act.sku, "quantity": act.quantity}],
            "shipping_address": {
                "name": "Ada Lovelace",
                "street": "Example Street 1",
                "city": "Berlin",
                "postal_code": act.postal_code,
                "country": "DE",
            },
        },
    )
    order = response.raise_for_status().json()
    notes = [f"POST /orders -> {order['order_id']}"]
    begin = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if act.when and order["status"] == act.when and len(notes) == 1:
                await http.post(f"/orders/{order['order_id']}/{act.post}", json=act.body)
                notes.append(f"POST /orders/{{order_id}}/{act.post} {json.dumps(act.body)}")
            over = order["status"] in FINAL or time.monotonic() - begin > PATIENCE
            live.update(drawing(act, number, saga, order, notes, over=over), refresh=True)
            if over:
                return as_it_should(act, order)
            await asyncio.sleep(0.05)
            order = (await http.get(f"/orders/{order['order_id']}")).raise_for_status().json()


def as_it_should(act: Act, order: dict[str, Any]) -> bool:
    failure = order["failure"] and order["failure"]["code"]
    return bool(order["status"] == act.status and failure == act.failure)


def drawing(act: Act, number: int, saga: list[str], order: dict[str, Any], notes: list[str], *, over: bool) -> Group:
    taken = {step["step"]: step for step in order["steps"]}
    steps = Table.grid(padding=(0, 2))
    for name in saga:
        step = taken.get(name, {"status": "", "detail": "", "interrupted": False})
        status = "interrupted" if step["interrupted"] else step["status"]
        sign, style = SIGNS[status]
        steps.add_row(
            "  ",
            Text(sign, style),
            Text(name.replace("_", " ").capitalize(), style),
            Text(status, style),
            Text(step["detail"], "dim"),
        )
    ending = Text(f"    = {order['status']}", "bold")
    if order["failure"]:
        ending.append(f" ({order['failure']['code']}): {order['failure']['message']}", "not bold")
    if over and not as_it_should(act, order):
        ending.append(f"  should have been {act.status} ({act.failure})", "bold red")
    asked = [Text(f"    > {note}", "cyan") for note in notes]
    return Group(Text(f"{number}. {act.title}", "bold"), *asked, steps, ending)


async def demo() -> int:
    console = Console(highlight=False)
    async with (
        running_or_new() as api_url,
        httpx.AsyncClient(base_url=api_url, headers=authorization(), timeout=10) as http,
    ):
        for sku, product in PRODUCTS.items():
            (await http.put(f"/inventory/{sku}", json=product)).raise_for_status()
        saga = [row["step"] for row in (await http.get("/saga")).raise_for_status().json()["steps"]]
        results = []
        for number, act in enumerate(ACTS, 1):
            results.append(await play(act, number, saga, http, console))
            console.print("" if console.is_terminal else "\n")
    console.print(f"{sum(results)} of {len(results)} orders ended as they should")
    return 0 if all(results) else 1


if __name__ == "__main__":
    run(demo())
