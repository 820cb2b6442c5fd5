"""Chaos test (`make chaos`): inject faults into servers and workflows while orders come in. No order may be lost.

The stack has one API, two workers, Temporal and three mongods. A client places, cancels, approves and rejects orders,
changes their addresses, and repeats each request until it is answered. Meanwhile, processes are killed, stopped and
frozen, the primary steps down or loses its unreplicated writes, workflows are reset and terminated, and all of
Temporal's data is deleted. Afterwards, each order must exist once with a final status that agrees with the stock, the
payments and the shipments.
"""

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from pymongo import AsyncMongoClient
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from dev.sample_stock import authorization
from dev.servers import ReplicaSet, Server, free_port
from dev.stack import ROOT, Config, Stack, run
from dev.terminal import console, progress, temporary_stack

PRODUCTS = {  # price and available quantity; the vases run out, and a sofa needs approval
    "CHAOS-MUG": (12_99, 10_000),
    "CHAOS-VASE": (12_99, 15),
    "CHAOS-SOFA": (650_00, 10_000),
}


@dataclass(frozen=True)
class Kind:
    """A kind of order: its relative frequency, its allowed final statuses, its content, and a later request."""

    weight: int
    outcomes: set[str]
    sku: str = "CHAOS-MUG"
    payment_method: str = "pm_card_ok"
    postal_code: str = "10115"
    action: str = ""


KINDS = {
    "plain": Kind(8, {"completed"}),
    "scarce": Kind(4, {"completed", "failed"}, sku="CHAOS-VASE"),
    "declined": Kind(2, {"failed"}, payment_method="pm_card_declined"),
    "unserviceable": Kind(2, {"failed"}, postal_code="00000"),
    "flaky": Kind(2, {"completed"}, payment_method="pm_card_flaky"),
    "slow": Kind(2, {"completed"}, payment_method="pm_card_slow"),
    "cancelled": Kind(3, {"completed", "cancelled"}, action="cancel at once"),
    "payment outage": Kind(2, {"cancelled"}, payment_method="pm_card_outage", action="cancel"),
    "carrier outage": Kind(2, {"cancelled"}, postal_code="99999", action="cancel"),
    "approved": Kind(2, {"completed"}, sku="CHAOS-SOFA", action="approve"),
    "rejected": Kind(1, {"failed"}, sku="CHAOS-SOFA", action="reject"),
    "moved": Kind(2, {"completed"}, payment_method="pm_card_slow", action="change the address"),
}
CITY, NEW_CITY = "Berlin", "Potsdam"  # before an address change, and after it
TERMINAL = {"completed", "failed", "cancelled"}
FAILURE_DIR = ROOT / ".dev" / "chaos"
SETTLE_TIMEOUT = 180  # seconds: allows for the relay's sweep (60), a start-to-close timeout (30) and retries
PROCESSES = ("api", "worker", "worker-2", "temporal", "primary", "secondary")
FAULTS = [
    *((name, how) for name in PROCESSES for how in ("killed", "stopped", "frozen")),
    *[("primary", "stepped down")] * 2,
    *[("primary", "rolled back")] * 2,
    *[("workflows", "reset")] * 5,
    *[("workflows", "terminated")] * 3,
    ("Temporal's data", "deleted"),
]
WORKFLOWS_PER_FAULT = 4  # reset or terminated together


@dataclass
class PlacedOrder:
    kind: str
    order_id: str
    key: str
    body: dict[str, Any]
    answer: str = ""  # of the API to the action
    repeats: int = 0  # of the action's request
    final_before_reset: str = ""  # the final status, if the order had one when its workflow was reset
    operator_cancelled: bool = False


@dataclass
class RetryingClient:
    """Places orders, and repeats each request until it is answered."""

    http: httpx.AsyncClient
    placed: list[PlacedOrder] = field(default_factory=list)
    repeats: int = 0
    errors: list[str] = field(default_factory=list)

    async def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Repeat a request until the answer is not a 503 or another server error."""
        response, _ = await self.send_counted(method, path, **request)
        return response

    async def send_counted(self, method: str, path: str, **request: Any) -> tuple[httpx.Response, int]:
        """Like `send`, but also returns the number of repeats."""
        repeats = 0
        async with asyncio.timeout(SETTLE_TIMEOUT):
            while True:
                try:
                    response = await self.http.request(method, path, **request)
                except httpx.TransportError:
                    pass
                else:
                    if not response.is_server_error:
                        return response, repeats
                    if response.status_code != 503:
                        self.errors.append(f"{method} {path} was answered with {response.status_code}: {response.text}")
                repeats += 1
                self.repeats += 1
                await asyncio.sleep(0.2)

    async def place(self, kind_name: str, number: int, max_delay: float) -> None:
        """Place an order of this kind, then send the action of the kind within `max_delay` seconds."""
        kind = KINDS[kind_name]
        address = {
            "name": "Ada Lovelace",
            "street": "Example Street 1",
            "city": CITY,
            "postal_code": kind.postal_code,
            "country": "DE",
        }
        body = {
            "customer_id": "chaos",
            "email": "chaos@example.com",
            "payment_method": kind.payment_method,
            "lines": [{"sku": kind.sku, "quantity": 1 + number % 2}],
            "shipping_address": address,
        }
        key = f"chaos-{number}"
        response = await self.send("POST", "/orders", json=body, headers={"Idempotency-Key": key})
        item = PlacedOrder(kind_name, response.raise_for_status().json()["order_id"], key, body)
        self.placed.append(item)
        match kind.action:
            case "change the address":
                await asyncio.sleep(max_delay / 4)
                await self.act(item, "shipping-address", {**address, "city": NEW_CITY}, method="PUT")
            case "cancel at once":
                await asyncio.sleep(max_delay / 20)
                await self.act(item, "cancel", {})
            case "cancel":
                await asyncio.sleep(max_delay)
                await self.act(item, "cancel", {})
            case "approve" | "reject":
                async with asyncio.timeout(SETTLE_TIMEOUT):
                    while (await self.order(item.order_id))["status"] == "placed":
                        await asyncio.sleep(0.5)
                await asyncio.sleep(max_delay)
                await self.act(item, "approval", {"approved": kind.action == "approve"})

    async def act(self, item: PlacedOrder, action: str, body: dict[str, Any], method: str = "POST") -> None:
        response, item.repeats = await self.send_counted(method, f"/orders/{item.order_id}/{action}", json=body)
        item.answer = f"{response.status_code} {response.json().get('detail', '')}".strip()

    async def order(self, order_id: str) -> dict[str, Any]:
        order: dict[str, Any] = (await self.send("GET", f"/orders/{order_id}")).raise_for_status().json()
        return order


# --- faults


class Faults:
    """Injects one fault after another, and recovers from each."""

    def __init__(
        self, stack: Stack, replica_set: ReplicaSet, temporal: Client, client: RetryingClient, seed: int
    ) -> None:
        self.injected = Counter[str]()
        self.current = ""
        self._stack = stack
        self._replica_set = replica_set
        self._temporal = temporal
        self._client = client
        self._random = random.Random(seed)

    async def run(self, times: int) -> None:
        rounds = (fault for _ in count() for fault in self._random.sample(FAULTS, len(FAULTS)))
        for number, (target, fault) in enumerate(islice(rounds, times), 1):
            downtime = self._random.uniform(0.2, 3)
            started_at = time.monotonic()
            self.current = f"{number}. {target} {fault}"
            detail = ""
            match fault:
                case "reset" | "terminated":
                    affected = await (self._reset() if fault == "reset" else self._terminate())
                    detail = f": {affected}"
                    self.injected[f"{target} {fault}"] += affected
                case "deleted":
                    await self._delete_temporal_data(downtime)
                    self.injected[f"{target} {fault}"] += 1
                case "stepped down":
                    await self._replica_set.step_down()
                    await self._replica_set.wait_until_complete()
                    self.injected[fault] += 1
                case "rolled back":
                    await self._replica_set.roll_back(downtime)
                    await self._replica_set.wait_until_complete()
                    self.injected[fault] += 1
                case _:
                    await self._interrupt(target, fault, downtime)
                    self.injected[fault] += 1
            took = time.monotonic() - started_at
            console.print(f"  {number:>2}. {target} {fault}{detail} [dim]({took:.1f} s)[/]")
            self.current = ""
            await asyncio.sleep(self._random.uniform(0.5, 2))

    async def _interrupt(self, name: str, fault: str, downtime: float) -> None:
        server = await self._server(name)
        if fault == "frozen":
            server.pause()
            await asyncio.sleep(downtime)
            server.resume()
        else:
            await (server.kill() if fault == "killed" else server.stop(timeout=20))
            await asyncio.sleep(downtime)
            if server in self._replica_set.members:
                await self._replica_set.restart(server)
            else:
                await self._stack.start(name)
        await self._replica_set.wait_until_complete()

    async def _server(self, name: str) -> Server:
        if name not in {"primary", "secondary"}:
            return self._stack.processes[name]
        primary = await self._replica_set.primary()
        secondaries = [member for member in self._replica_set.members if member is not primary]
        return primary if name == "primary" else self._random.choice(secondaries)

    async def _delete_temporal_data(self, downtime: float) -> None:
        await self._stack.processes["temporal"].kill()
        for file in self._stack.temporal_data.parent.glob(f"{self._stack.temporal_data.name}*"):
            file.unlink()
        await asyncio.sleep(downtime)
        await self._stack.start("temporal")

    async def _reset(self) -> int:
        """Reset workflows of orders in any status, final ones too, to a random point. Cancel some right after."""
        done = 0
        for item in self._random.sample(self._client.placed, len(self._client.placed)):
            status = (await self._client.order(item.order_id))["status"]
            item.final_before_reset = item.final_before_reset or (status if status in TERMINAL else "")
            handle = self._temporal.get_workflow_handle(f"order-{item.order_id}")
            try:
                done += await self._reset_one(handle)
                if self._random.random() < 0.3:
                    item.operator_cancelled = True
                    await handle.cancel()
                elif self._random.random() < 0.4:
                    item.operator_cancelled = True
                    await self._client.send("POST", f"/orders/{item.order_id}/cancel", json={})
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # closed, or deleted with Temporal's data
                    raise
            if done == WORKFLOWS_PER_FAULT:
                break
        return done

    async def _reset_one(self, handle: WorkflowHandle[Any, Any]) -> bool:
        run_id = (await handle.describe()).run_id
        points = [
            event.event_id
            for event in (await handle.fetch_history()).events
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        ]
        if not points:
            return False
        await self._temporal.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=self._temporal.namespace,
                workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=run_id),
                reason="chaos",
                workflow_task_finish_event_id=self._random.choice(points),
                request_id=str(uuid4()),
            )
        )
        return True

    async def _terminate(self) -> int:
        """Terminate running workflows."""
        done = 0
        running = [each.id async for each in self._temporal.list_workflows("ExecutionStatus = 'Running'")]
        for workflow_id in self._random.sample(running, min(WORKFLOWS_PER_FAULT, len(running))):
            try:
                await self._temporal.get_workflow_handle(workflow_id).terminate("chaos")
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # already closed
                    raise
            else:
                done += 1
        return done


# --- audit


async def audit(stack: Stack, client: RetryingClient) -> list[str]:
    """Compare orders, stock, payments and shipments. Returns a line for each violation."""
    violations = list(client.errors)
    async with AsyncMongoClient[dict[str, Any]](stack.mongodb_uri) as mongo:
        database = mongo["orders"]
        records = {entry["_id"]: entry async for entry in database.sandbox.find()}
        if (stored := await database.orders.count_documents({})) != len(client.placed):
            violations.append(f"{len(client.placed)} orders were placed, {stored} are stored")
        held: Counter[str] = Counter()
        async for order in database.orders.find({"steps.reserve_inventory.status": "done"}):
            quantities = order["steps"]["reserve_inventory"]["quantities"]
            held.update({line["sku"]: line["quantity"] for line in quantities})

    for sku, (_, stocked) in PRODUCTS.items():
        available = (await client.send("GET", f"/inventory/{sku}")).json()["available"]
        if available < 0 or available + held[sku] != stocked:
            violations.append(f"{sku}: {available} available + {held[sku]} reserved is not {stocked}")

    for item in client.placed:
        order = await client.order(item.order_id)
        again = await client.send("POST", "/orders", json=item.body, headers={"Idempotency-Key": item.key})
        checks = [
            (again.json().get("order_id") == item.order_id, "its Idempotency-Key made a second order"),
            *check_outcome(item, order["status"]),
            check_address(item, order["shipping_address"]["city"]),
            *check_sandbox_records(item.order_id, order, records),
        ]
        violations += [
            f"{item.order_id} ({item.kind}, {order['status']}): {message}" for ok, message in checks if not ok
        ]
    return violations


def check_outcome(item: PlacedOrder, status: str) -> Iterator[tuple[bool, str]]:
    cancelled = {"cancelled"} if item.operator_cancelled else set()
    yield status in KINDS[item.kind].outcomes | cancelled, "has an unexpected final status"
    yield item.final_before_reset in {"", status}, f"was {item.final_before_reset} before the reset"
    if not item.answer.startswith("409"):
        yield item.answer in {"", "200", "202"}, f"unexpected answer: {item.answer}"
        cancel_accepted = item.answer == "202" and "cancel" in KINDS[item.kind].action
        yield not cancel_accepted or status == "cancelled", "the cancel was accepted, but the order is not cancelled"
    elif item.repeats == 0 and not cancelled:  # a repeated request may have taken effect the first time
        yield item.kind in {"cancelled", "moved"} and status == "completed", f"unexpected refusal: {item.answer}"


def check_address(item: PlacedOrder, city: str) -> tuple[bool, str]:
    if item.kind == "moved" and item.answer != "200" and item.repeats:  # may have been changed by the first request
        return city in {CITY, NEW_CITY}, f"is addressed to {city}"
    return city == (
        NEW_CITY if item.answer == "200" else CITY
    ), f"is addressed to {city}, the answer to the change was {item.answer}"


def check_sandbox_records(order_id: str, order: dict[str, Any], records: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    total, completed = order["total"]["amount"], order["status"] == "completed"
    payment = records.get(f"payment:{order_id}", {})
    shipment = records.get(f"shipment:{order_id}", {})
    paid = payment.get("captured", 0) - payment.get("refunded", 0)
    shipped = bool(shipment.get("shipped")) and not shipment.get("called_off")
    confirmed = f"mail:{order_id}" in records
    yield paid == (total if completed else 0), f"paid {paid} of {total}"
    yield shipped == completed, "was shipped" if shipped else "was not shipped"
    yield confirmed == completed, "a confirmation was sent" if confirmed else "no confirmation was sent"


async def chaos(orders: int, fault_count: int, seed: int) -> int:
    generator = random.Random(seed)
    begin = time.monotonic()
    console.print(f"{orders} orders, {fault_count} faults, seed {seed}", style="bold")
    with tempfile.TemporaryDirectory(prefix="order-saga-") as name:
        folder = Path(name)
        async with progress(lambda: "starting three mongods"):
            replica_set = await ReplicaSet.start(folder / "mongodb", [free_port() for _ in range(3)])
        try:
            config = Config.on_free_ports(folder, mongodb_uri=replica_set.uri, workers=2)
            async with (
                temporary_stack(config) as stack,
                httpx.AsyncClient(base_url=stack.api_url, headers=authorization(), timeout=5) as http,
            ):
                client = RetryingClient(http)
                for sku, (price, quantity) in PRODUCTS.items():
                    unit_price = {"amount": price, "currency": "EUR"}
                    product = {"name": sku, "unit_price": unit_price, "available": quantity}
                    (await http.put(f"/inventory/{sku}", json=product)).raise_for_status()

                temporal = await Client.connect(stack.temporal_address)
                faults = Faults(stack, replica_set, temporal, client, seed)
                weights = [kind.weight for kind in KINDS.values()]

                def state() -> str:
                    placed, repeats = f"{len(client.placed)} of {orders} orders placed", client.repeats
                    return f"{placed}, {repeats} requests repeated; {faults.current or 'no fault'}"

                async with progress(state), asyncio.TaskGroup() as group:
                    injecting = group.create_task(faults.run(fault_count))
                    for number, kind in enumerate(generator.choices(list(KINDS), weights, k=orders)):
                        group.create_task(client.place(kind, number, generator.uniform(0, 20)))
                        await asyncio.sleep(fault_count * 3 / orders)  # orders keep coming until about the last fault
                    await injecting
                console.print(f"all orders are placed, {client.repeats} requests repeated")
                await wait_until_final(client)
                async with progress(lambda: "checking orders, stock, payments and shipments"):
                    violations = await audit(stack, client)
                    outcomes = Counter([(await client.order(item.order_id))["status"] for item in client.placed])
        finally:
            await replica_set.kill()
        if violations:
            shutil.rmtree(FAILURE_DIR, ignore_errors=True)
            shutil.copytree(folder, FAILURE_DIR)
            violations.append(f"data and logs are in {FAILURE_DIR}")

    survived = ", ".join(f"{number} {fault}" for fault, number in faults.injected.most_common())
    console.print(f"survived: {survived}", soft_wrap=True)
    ended = ", ".join(f"{number} {status}" for status, number in outcomes.most_common())
    console.print(f"{ended} after {time.monotonic() - begin:.0f} s")
    for violation in violations:
        console.print(violation, style="red", markup=False, soft_wrap=True)
    if not violations:
        console.print("no order lost or duplicated; stock, payments and shipments agree", style="green")
    return 1 if violations else 0


async def wait_until_final(client: RetryingClient) -> None:
    """Wait until every order is final, at most SETTLE_TIMEOUT."""
    unfinished = {item.order_id for item in client.placed}
    deadline = time.monotonic() + SETTLE_TIMEOUT
    async with progress(lambda: f"waiting for the final status of {len(unfinished)} of {len(client.placed)} orders"):
        while unfinished and time.monotonic() < deadline:
            await asyncio.sleep(1)
            for order_id in list(unfinished):
                if (await client.order(order_id))["status"] in TERMINAL:
                    unfinished.remove(order_id)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__)
    arguments.add_argument("--orders", type=int, default=150)
    arguments.add_argument("--faults", type=int, default=len(FAULTS))
    arguments.add_argument("--seed", type=int, default=random.randrange(10_000), help="repeats an earlier run")
    given = arguments.parse_args()
    run(chaos(given.orders, given.faults, given.seed))
