"""A guided tour (`make demo`): one order for each possible outcome, with each saga drawn while it runs, then a rush.

The tour uses the HTTP API, as a client would, and the control endpoint of the stack to kill the worker. It orders the
sample products. The exit code is 0 if every scene ended as expected.
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import httpx
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from dev.sample_stock import SAMPLE_STOCK, authorization
from dev.servers import ServerError
from dev.stack import run
from dev.terminal import Addresses, clock, console, running_or_new_stack

SYMBOLS = {
    "done": ("✔", "green"),
    "failed": ("✘", "red"),
    "compensated": ("↩", "yellow"),
    "interrupted": ("◌", "dim"),
    "in progress": ("▸", "blue"),
    "": ("·", "dim"),
}
TERMINAL = {"completed": "green", "failed": "red", "cancelled": "yellow"}
TIMEOUT = 90  # seconds per order; the slowest waits for another worker
DOWNTIME = 3  # seconds that the worker is away
LOOK = 0.1  # seconds between two looks at an order
LEFT_OUT = "left out, because this stack has no control endpoint"
RUSH = {"many": 150, "few": 5}  # customers and their orders, in the sequence in which they are placed
AT_ONCE = 10  # POSTs of the rush
RUSH_LOOK = 0.3  # seconds between two looks at all orders of the rush

# A bike, or as many as need approval.
BIKES = max(1, -(-int(os.environ.get("APPROVAL_THRESHOLD") or 0) // SAMPLE_STOCK["BIKE-CITY"][1]))


@dataclass(frozen=True)
class Scenario:
    """One order of the tour, an optional request while it is in progress, and its expected outcome."""

    title: str
    status: str
    failure: str | None = None
    sku: str = "MUG-BLUE"
    quantity: int = 1
    payment_method: str = "pm_card_ok"
    postal_code: str = "10115"
    at_status: str = ""  # when the order has this status, or the one in which this step begins ...
    action: str = ""  # ... the tour sends this action to it ...
    body: dict[str, Any] | None = None  # ... with this body
    kills_worker: bool = False  # while the charge waits for its next attempt


SCENARIOS = [
    Scenario("An order that completes", "completed"),
    Scenario("A declined card", "failed", "payment_declined", payment_method="pm_card_declined"),
    Scenario(
        "More lamps than there are: approved, but out of stock",
        "failed",
        "out_of_stock",
        sku="LAMP-OAK",
        at_status="awaiting_approval",
        action="approval",
        body={"approved": True},
    ),
    Scenario("An address that the carrier does not serve", "failed", "address_unserviceable", postal_code="00000"),
    Scenario(
        "The payment service is down, and the customer cancels",
        "cancelled",
        "cancelled",
        payment_method="pm_card_outage",
        at_status="charge_payment",
        action="cancel",
        body={"reason": "changed my mind"},
    ),
    Scenario(
        "A bike, which needs approval: approved",
        "completed",
        sku="BIKE-CITY",
        quantity=BIKES,
        at_status="awaiting_approval",
        action="approval",
        body={"approved": True},
    ),
    Scenario(
        "Another bike: rejected",
        "failed",
        "not_approved",
        sku="BIKE-CITY",
        quantity=BIKES,
        at_status="awaiting_approval",
        action="approval",
        body={"approved": False, "reason": "credit limit reached"},
    ),
    Scenario(
        "The worker is killed in the middle of an order", "completed", payment_method="pm_card_flaky", kills_worker=True
    ),
]


@dataclass
class Run:
    """A scenario while it runs: what is known of its order, and what the tour has done."""

    scenario: Scenario
    number: int
    saga: dict[str, str]  # the names of the steps, with the status in which each begins
    http: httpx.AsyncClient
    control: httpx.AsyncClient
    order: dict[str, Any] = field(default_factory=dict)
    activities: list[dict[str, Any]] = field(default_factory=list)  # that Temporal has not completed yet
    done: list[str] = field(default_factory=list)
    placed_at: float = field(default_factory=time.monotonic)
    seconds: float | None = None  # until it was final

    async def run(self) -> bool:
        """Place the order and draw it until it is final. Returns True if it ended as expected."""
        with Live(get_renderable=self.render, console=console, refresh_per_second=8) as live:
            await self.place()
            while self.order["status"] not in TERMINAL and time.monotonic() - self.placed_at < TIMEOUT:
                if self.is_due() and self.scenario.action and len(self.done) == 1:
                    await self.act()
                if self.scenario.kills_worker and len(self.done) == 1:
                    await self.look_at_activities()
                    if any(each["state"] == "waiting" for each in self.activities):
                        await self.kill_worker()
                await asyncio.sleep(LOOK)
                await self.look()
            self.seconds = time.monotonic() - self.placed_at
            live.refresh()
        return self.ended_as_expected()

    async def place(self) -> None:
        scenario = self.scenario
        body = order_body("tour", scenario.sku, scenario.quantity, scenario.payment_method, scenario.postal_code)
        self.order = (await self.http.post("/orders", json=body)).raise_for_status().json()
        self.done.append(f"POST /orders -> {self.order['order_id']}")

    def is_due(self) -> bool:
        at = self.scenario.at_status
        return bool(self.order["status"] == self.saga.get(at, at))

    async def act(self) -> None:
        """Send the request of the scenario."""
        path = f"/orders/{self.order['order_id']}/{self.scenario.action}"
        (await self.http.post(path, json=self.scenario.body)).raise_for_status()
        self.done.append(f"POST /orders/{{order_id}}/{self.scenario.action} {json.dumps(self.scenario.body)}")

    async def kill_worker(self) -> None:
        """Kill the worker, show that the order waits, and start it again."""
        await use_control(self.control, "kill", "stopped")
        self.activities = []
        self.done.append("the worker is killed (SIGKILL): the order waits")
        await asyncio.sleep(DOWNTIME)
        await self.look()
        self.done.append("the worker is started again: it takes over within 10 s")
        await use_control(self.control, "start", "running")

    async def look(self) -> None:
        self.order = (await self.http.get(f"/orders/{self.order['order_id']}")).raise_for_status().json()

    async def look_at_activities(self) -> None:
        """Ask the workflow, which no worker may answer for."""
        answer = await self.http.get(f"/orders/{self.order['order_id']}/status")
        self.activities = answer.json()["activities"] if answer.is_success else []

    def ended_as_expected(self) -> bool:
        failure = self.order["failure"] and self.order["failure"]["code"]
        return bool(self.order["status"] == self.scenario.status and failure == self.scenario.failure)

    def render(self) -> Group:
        title = Text(f"{self.number}. {self.scenario.title}", "bold")
        if self.seconds is None:
            title.append(f"  {clock(time.monotonic() - self.placed_at)}", "not bold dim")
        done = [Text(f"    > {action}", "cyan") for action in self.done]
        return Group(title, *done, self.steps(), *([self.outcome()] if self.order else []))

    def steps(self) -> Table:
        records = {step["step"]: step for step in self.order.get("steps", [])}
        table = Table.grid(*(Column(no_wrap=True) for _ in range(5)), padding=(0, 2))
        for name in self.saga:
            status, took, detail = "", "", ""
            if record := records.get(name):
                status = "interrupted" if record["interrupted"] else record["status"]
                took, detail = _took(record), record["detail"]
            elif pending := next((each for each in self.activities if each["step"] == name), None):
                status, failure = "in progress", pending["last_failure"]
                took = f"attempt {pending['attempt']}"
                detail = f"{failure['message']}; {pending['state']}" if failure else pending["state"]
            symbol, style = SYMBOLS[status]
            more = Text(detail, "dim", no_wrap=True, overflow="ellipsis")
            words = Text(name.replace("_", " ").capitalize(), style)
            table.add_row("  ", Text(symbol, style), words, Text(status, style), took, more)
        return table

    def outcome(self) -> Text:
        status, failure = self.order["status"], self.order["failure"]
        text = Text("    = ").append(status, f"bold {TERMINAL.get(status, 'blue')}")
        if failure:
            text.append(f" ({failure['code']}): {failure['message']}")
        if self.seconds is not None:
            text.append(f"  after {self.seconds:.1f} s", "dim")
            if not self.ended_as_expected():
                text.append(f"  expected {self.scenario.status} ({self.scenario.failure})", "bold red")
        return text


@dataclass
class Rush:
    """While the worker is away, one customer places many orders, and another a few. Then they take turns."""

    title: str
    http: httpx.AsyncClient
    control: httpx.AsyncClient
    placed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RUSH, 0))
    completed: dict[str, list[datetime]] = field(default_factory=lambda: {name: [] for name in RUSH})  # when
    done: list[str] = field(default_factory=list)

    async def run(self) -> bool:
        """Draw how many orders are completed, until all are. Returns False if some are not in time."""
        with Live(get_renderable=self.render, console=console, refresh_per_second=8) as live:
            await use_control(self.control, "stop", "stopped")
            self.done.append("the worker is stopped, and the orders wait")
            for customer, orders in RUSH.items():
                await self.place(customer, orders)
            await use_control(self.control, "start", "running")
            self.done.append("the worker is started again")
            began_at = time.monotonic()
            while not self.is_over() and time.monotonic() - began_at < TIMEOUT:
                await asyncio.sleep(RUSH_LOOK)
                for customer in RUSH:
                    self.completed[customer] = await self.look(customer)
            live.refresh()
        return self.is_over()

    def is_over(self) -> bool:
        return all(len(self.completed[customer]) == orders for customer, orders in RUSH.items())

    async def place(self, customer: str, orders: int) -> None:
        body = order_body(f"tour-{customer}")
        while self.placed[customer] < orders:
            count = min(AT_ONCE, orders - self.placed[customer])
            for answer in await asyncio.gather(*(self.http.post("/orders", json=body) for _ in range(count))):
                answer.raise_for_status()
            self.placed[customer] += count

    async def look(self, customer: str) -> list[datetime]:
        """When the customer's orders completed. They are the newest: those of an earlier tour do not count."""
        orders: list[dict[str, Any]] = []
        query = {"customer_id": f"tour-{customer}", "limit": str(min(RUSH[customer], 100))}
        while len(orders) < RUSH[customer]:
            page = (await self.http.get("/orders", params=query)).raise_for_status().json()
            orders += page["items"]
            query["cursor"] = page["next_cursor"]
        completed = [order for order in orders[: RUSH[customer]] if order["status"] == "completed"]
        return [datetime.fromisoformat(order["updated_at"]) for order in completed]

    def render(self) -> Group:
        done = [Text(f"    > {action}", "cyan") for action in self.done]
        table = Table.grid(*(Column(no_wrap=True) for _ in range(4)), padding=(0, 2))
        for customer, orders in RUSH.items():
            completed = len(self.completed[customer])
            bar = ProgressBar(total=orders, completed=completed, width=30, complete_style="green")
            table.add_row("  ", customer, bar, f"{completed} of {self.placed[customer]} completed")
        outcome = [Text(f"    = {self.outcome()}", "green")] if self.is_over() else []
        return Group(Text(self.title, "bold"), *done, table, *outcome)

    def outcome(self) -> str:
        last = max(self.completed["few"])
        earlier = sum(completed_at < last for completed_at in self.completed["many"])
        return f"the {RUSH['few']} completed when {earlier} of {RUSH['many']} had"


def order_body(
    customer: str,
    sku: str = "MUG-BLUE",
    quantity: int = 1,
    payment_method: str = "pm_card_ok",
    postal_code: str = "10115",
) -> dict[str, Any]:
    return {
        "customer_id": customer,
        "email": "tour@example.com",
        "payment_method": payment_method,
        "lines": [{"sku": sku, "quantity": quantity}],
        "shipping_address": {
            "name": "Ada Lovelace",
            "street": "Example Street 1",
            "city": "Berlin",
            "postal_code": postal_code,
            "country": "DE",
        },
    }


def _took(record: dict[str, Any]) -> str:
    """From the first attempt of a step to its outcome."""
    attempts = f", {record['attempts']} attempts" if record["attempts"] > 1 else ""
    if not record["first_attempt_at"]:
        return ""
    began, ended = (datetime.fromisoformat(record[name]) for name in ("first_attempt_at", "at"))
    return f"{(ended - began).total_seconds():.2f} s{attempts}"


async def use_control(control: httpx.AsyncClient, action: str, state: str) -> None:
    """Stop, kill or start the worker, and wait for its new state."""
    answer = (await control.post("/servers/worker", json={"action": action})).raise_for_status().json()
    while next(each["state"] for each in answer["servers"] if each["name"] == "worker") != state:
        await asyncio.sleep(LOOK)
        answer = (await control.get("/servers")).raise_for_status().json()


async def available(http: httpx.AsyncClient) -> dict[str, int]:
    """The quantity of each product that the tour needs. Raises ServerError if it cannot be ordered."""
    quantities = {}
    for sku in {scenario.sku for scenario in SCENARIOS}:
        answer = await http.get(f"/inventory/{sku}")
        quantities[sku] = answer.json()["available"] if answer.is_success else 0
        if quantities[sku] < BIKES:
            raise ServerError(f"the tour orders sample products, and {sku} is out of stock or missing: restock it")
    return quantities


def is_left_out(scenario: Scenario, stack: Addresses) -> bool:
    return scenario.kills_worker and not stack.control_url


async def demo() -> int:
    async with (
        running_or_new_stack() as stack,
        httpx.AsyncClient(base_url=stack.api_url, headers=authorization(), timeout=10) as http,
        httpx.AsyncClient(base_url=stack.control_url, timeout=10) as control,
    ):
        lamps = (await available(http))["LAMP-OAK"]
        rows = (await http.get("/saga")).raise_for_status().json()["steps"]
        saga = {row["step"]: row["starts_from"] for row in rows}
        results = []
        for number, scenario in enumerate(SCENARIOS, 1):
            if is_left_out(scenario, stack):
                console.print(f"{number}. {scenario.title}: {LEFT_OUT}")
                continue
            ordered = replace(scenario, quantity=lamps + 1) if scenario.sku == "LAMP-OAK" else scenario
            results.append(await Run(ordered, number, saga, http, control).run())
            console.print("" if console.is_terminal else "\n")
        title = f"{len(SCENARIOS) + 1}. {RUSH['few']} orders of one customer behind {RUSH['many']} of another"
        if stack.control_url:
            results.append(await Rush(title, http, control).run())
            console.print("" if console.is_terminal else "\n")
        else:
            console.print(f"{title}: {LEFT_OUT}")
    console.print(f"{sum(results)} of {len(results)} scenes ended as expected")
    return 0 if all(results) else 1


if __name__ == "__main__":
    run(demo())
