"""The proof that nothing is lost (`make chaos`): servers and workflows are taken away while orders come in.

One API, two workers, Temporal and three mongods. Orders of every kind are placed, cancelled, approved, rejected and
sent to another address by customers who repeat each request until it is answered. Meanwhile processes are killed,
stopped and frozen, the primary steps down or loses what only it has written, workflows are reset and terminated, and
all of Temporal's data is deleted. Afterwards every order must be final, once, and the books of stock, payment service
and carrier must agree with it.
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

PRODUCTS = {  # price and quantity; there are too few vases for all who want one, and a sofa needs approval
    "CHAOS-MUG": (12_99, 10_000),
    "CHAOS-VASE": (12_99, 15),
    "CHAOS-SOFA": (650_00, 10_000),
}


@dataclass(frozen=True)
class Kind:
    """What is ordered, how often, what the customer does then, and how the order may end."""

    weight: int
    ends: set[str]
    sku: str = "CHAOS-MUG"
    payment_method: str = "pm_card_ok"
    postal_code: str = "10115"
    then: str = ""


KINDS = {
    "plain": Kind(8, {"completed"}),
    "scarce": Kind(4, {"completed", "failed"}, sku="CHAOS-VASE"),
    "declined": Kind(2, {"failed"}, payment_method="pm_card_declined"),
    "unserviceable": Kind(2, {"failed"}, postal_code="00000"),
    "flaky": Kind(2, {"completed"}, payment_method="pm_card_flaky"),
    "slow": Kind(2, {"completed"}, payment_method="pm_card_slow"),
    "cancelled": Kind(3, {"completed", "cancelled"}, then="cancel at once"),
    "payment outage": Kind(2, {"cancelled"}, payment_method="pm_card_outage", then="cancel"),
    "carrier outage": Kind(2, {"cancelled"}, postal_code="99999", then="cancel"),
    "approved": Kind(2, {"completed"}, sku="CHAOS-SOFA", then="approve"),
    "rejected": Kind(1, {"failed"}, sku="CHAOS-SOFA", then="reject"),
    "moved": Kind(2, {"completed"}, payment_method="pm_card_slow", then="change the address"),
}
CITY, NEW_CITY = "Berlin", "Potsdam"  # before an address change, and after it
TERMINAL = {"completed", "failed", "cancelled"}
KEPT = ROOT / ".dev" / "chaos"
SETTLE_TIMEOUT = 180  # seconds: the relay's sweep of 60, a step's timeout of 30, and their retries
PROCESSES = ("api", "worker", "worker-2", "temporal", "primary", "secondary")
FAULTS = [
    *((name, how) for name in PROCESSES for how in ("killed", "stopped", "frozen")),
    *[("primary", "stepped down")] * 2,
    *[("primary", "rolled back")] * 2,
    *[("workflows", "reset")] * 5,
    *[("workflows", "terminated")] * 3,
    ("Temporal's data", "deleted"),
]
AT_ONCE = 4  # workflows that are reset or terminated together


@dataclass
class Placed:
    kind: str
    order_id: str
    key: str
    body: dict[str, Any]
    answer: str = ""  # to what the customer did then
    repeats: int = 0  # of that request
    final: str = ""  # its status when its workflow was reset, if it was final by then
    operator_cancelled: bool = False


@dataclass
class Shop:
    """A client that does not give up."""

    http: httpx.AsyncClient
    placed: list[Placed] = field(default_factory=list)
    repeats: int = 0
    errors: list[str] = field(default_factory=list)

    async def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Repeat a request until it is answered, and not with "try again later"."""
        response, _ = await self.insist(method, path, **request)
        return response

    async def insist(self, method: str, path: str, **request: Any) -> tuple[httpx.Response, int]:
        """The same, with how often it was repeated."""
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

    async def place(self, name: str, number: int, patience: float) -> None:
        """Place an order of this kind; do with it what this kind asks for, some time within `patience` seconds."""
        kind = KINDS[name]
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
        item = Placed(name, response.raise_for_status().json()["order_id"], key, body)
        self.placed.append(item)
        match kind.then:
            case "change the address":
                await asyncio.sleep(patience / 4)
                await self.decide(item, "shipping-address", {**address, "city": NEW_CITY}, method="PUT")
            case "cancel at once":
                await asyncio.sleep(patience / 20)
                await self.decide(item, "cancel", {})
            case "cancel":
                await asyncio.sleep(patience)
                await self.decide(item, "cancel", {})
            case "approve" | "reject":
                async with asyncio.timeout(SETTLE_TIMEOUT):
                    while (await self.order(item.order_id))["status"] == "placed":
                        await asyncio.sleep(0.5)
                await asyncio.sleep(patience)
                await self.decide(item, "approval", {"approved": kind.then == "approve"})

    async def decide(self, item: Placed, what: str, body: dict[str, Any], method: str = "POST") -> None:
        response, item.repeats = await self.insist(method, f"/orders/{item.order_id}/{what}", json=body)
        item.answer = f"{response.status_code} {response.json().get('detail', '')}".strip()

    async def order(self, order_id: str) -> dict[str, Any]:
        order: dict[str, Any] = (await self.send("GET", f"/orders/{order_id}")).raise_for_status().json()
        return order


# --- faults


class Faults:
    """Takes away one thing after another, and brings it back."""

    def __init__(self, stack: Stack, replica_set: ReplicaSet, temporal: Client, shop: Shop, seed: int) -> None:
        self.survived = Counter[str]()
        self._stack = stack
        self._replica_set = replica_set
        self._temporal = temporal
        self._shop = shop
        self._random = random.Random(seed)

    async def run(self, times: int) -> None:
        rounds = (fault for _ in count() for fault in self._random.sample(FAULTS, len(FAULTS)))
        for number, (what, how) in enumerate(islice(rounds, times), 1):
            away = self._random.uniform(0.2, 3)
            began = time.monotonic()
            print(f"  {number:>2}. {what} {how}", end="", flush=True)
            match how:
                case "reset" | "terminated":
                    many = await (self._reset() if how == "reset" else self._terminate())
                    print(f": {many}", end="")
                    self.survived[f"{what} {how}"] += many
                case "deleted":
                    await self._delete_temporal_data(away)
                    self.survived[f"{what} {how}"] += 1
                case "stepped down":
                    await self._replica_set.step_down()
                    await self._replica_set.until_complete()
                    self.survived[how] += 1
                case "rolled back":
                    await self._replica_set.roll_back(away)
                    await self._replica_set.until_complete()
                    self.survived[how] += 1
                case _:
                    await self._disturb(what, how, away)
                    self.survived[how] += 1
            print(f" ({time.monotonic() - began:.1f} s)", flush=True)
            await asyncio.sleep(self._random.uniform(0.5, 2))

    async def _disturb(self, name: str, how: str, away: float) -> None:
        server = await self._server(name)
        if how == "frozen":
            server.pause()
            await asyncio.sleep(away)
            server.resume()
        else:
            await (server.kill() if how == "killed" else server.stop(timeout=20))
            await asyncio.sleep(away)
            if server in self._replica_set.members:
                await self._replica_set.restart(server)
            else:
                await self._stack.start(name)
        await self._replica_set.until_complete()

    async def _server(self, name: str) -> Server:
        if name not in {"primary", "secondary"}:
            return self._stack.processes[name]
        primary = await self._replica_set.primary()
        secondaries = [member for member in self._replica_set.members if member is not primary]
        return primary if name == "primary" else self._random.choice(secondaries)

    async def _delete_temporal_data(self, away: float) -> None:
        await self._stack.processes["temporal"].kill()
        for file in self._stack.temporal_data.parent.glob(f"{self._stack.temporal_data.name}*"):
            file.unlink()
        await asyncio.sleep(away)
        await self._stack.start("temporal")

    async def _reset(self) -> int:
        """Reset workflows of orders in any state, final ones too, each to any point; some are cancelled right after."""
        done = 0
        for item in self._random.sample(self._shop.placed, len(self._shop.placed)):
            status = (await self._shop.order(item.order_id))["status"]
            item.final = item.final or (status if status in TERMINAL else "")
            handle = self._temporal.get_workflow_handle(f"order-{item.order_id}")
            try:
                done += await self._reset_one(handle)
                if self._random.random() < 0.3:
                    item.operator_cancelled = True
                    await handle.cancel()
                elif self._random.random() < 0.4:
                    item.operator_cancelled = True
                    await self._shop.send("POST", f"/orders/{item.order_id}/cancel", json={})
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # from before Temporal's data was deleted, or ended
                    raise
            if done == AT_ONCE:
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
        """Terminate workflows that run."""
        done = 0
        running = [each.id async for each in self._temporal.list_workflows("ExecutionStatus = 'Running'")]
        for workflow_id in self._random.sample(running, min(AT_ONCE, len(running))):
            try:
                await self._temporal.get_workflow_handle(workflow_id).terminate("chaos")
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # it has ended meanwhile
                    raise
            else:
                done += 1
        return done


# --- afterwards


async def audit(stack: Stack, shop: Shop) -> list[str]:
    """Everything that is not as it should be, a line each."""
    wrong = list(shop.errors)
    async with AsyncMongoClient[dict[str, Any]](stack.mongodb_uri) as client:
        database = client["orders"]
        books = {entry["_id"]: entry async for entry in database.sandbox.find()}
        if (stored := await database.orders.count_documents({})) != len(shop.placed):
            wrong.append(f"{len(shop.placed)} orders were placed, {stored} are stored")
        held: Counter[str] = Counter()
        async for order in database.orders.find({"steps.reserve_inventory.status": "done"}):
            quantities = order["steps"]["reserve_inventory"]["quantities"]
            held.update({line["sku"]: line["quantity"] for line in quantities})

    for sku, (_, stocked) in PRODUCTS.items():
        available = (await shop.send("GET", f"/inventory/{sku}")).json()["available"]
        if available < 0 or available + held[sku] != stocked:
            wrong.append(f"{sku}: {available} available + {held[sku]} reserved is not {stocked}")

    for item in shop.placed:
        order = await shop.order(item.order_id)
        again = await shop.send("POST", "/orders", json=item.body, headers={"Idempotency-Key": item.key})
        checks = [
            (again.json().get("order_id") == item.order_id, "was made a second time by its Idempotency-Key"),
            *check_end(item, order["status"]),
            check_address(item, order["shipping_address"]["city"]),
            *check_books(item.order_id, order, books),
        ]
        wrong += [f"{item.order_id} ({item.kind}, {order['status']}): {what}" for fine, what in checks if not fine]
    return wrong


def check_end(item: Placed, status: str) -> Iterator[tuple[bool, str]]:
    cancelled = {"cancelled"} if item.operator_cancelled else set()
    yield status in KINDS[item.kind].ends | cancelled, "has the wrong end"
    yield item.final in {"", status}, f"was {item.final} before it was reset"
    if not item.answer.startswith("409"):
        yield item.answer in {"", "200", "202"}, f"the request was answered with {item.answer}"
        cancel_accepted = item.answer == "202" and "cancel" in KINDS[item.kind].then
        yield not cancel_accepted or status == "cancelled", "the cancel was accepted"
    elif item.repeats == 0 and not cancelled:  # else it may have taken effect before it was answered
        yield item.kind in {"cancelled", "moved"} and status == "completed", f"the request was refused: {item.answer}"


def check_address(item: Placed, city: str) -> tuple[bool, str]:
    if item.kind == "moved" and item.answer != "200" and item.repeats:  # may have been changed before it was answered
        return city in {CITY, NEW_CITY}, f"goes to {city}"
    return city == (
        NEW_CITY if item.answer == "200" else CITY
    ), f"goes to {city}, the change was answered {item.answer}"


def check_books(order_id: str, order: dict[str, Any], books: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    total, sold = order["total"]["amount"], order["status"] == "completed"
    payment = books.get(f"payment:{order_id}", {})
    shipment = books.get(f"shipment:{order_id}", {})
    paid = payment.get("captured", 0) - payment.get("refunded", 0)
    shipped = bool(shipment.get("shipped")) and not shipment.get("called_off")
    mailed = f"mail:{order_id}" in books
    yield paid == (total if sold else 0), f"{paid} were paid of {total}"
    yield shipped == sold, "shipped" if shipped else "did not ship"
    yield mailed == sold, "the customer was told" if mailed else "the customer was not told"


async def chaos(orders: int, disturbances: int, seed: int) -> int:
    random_ = random.Random(seed)
    begin = time.monotonic()
    print(f"{orders} orders, {disturbances} disturbances, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="order-saga-") as name:
        folder = Path(name)
        replica_set = await ReplicaSet.start(folder / "mongodb", [free_port() for _ in range(3)])
        try:
            config = Config.on_free_ports(folder, mongodb_uri=replica_set.uri, workers=2)
            async with (
                Stack(config) as stack,
                httpx.AsyncClient(base_url=stack.api_url, headers=authorization(), timeout=5) as http,
            ):
                shop = Shop(http)
                for sku, (price, quantity) in PRODUCTS.items():
                    unit_price = {"amount": price, "currency": "EUR"}
                    product = {"name": sku, "unit_price": unit_price, "available": quantity}
                    (await http.put(f"/inventory/{sku}", json=product)).raise_for_status()

                temporal = await Client.connect(stack.temporal_address)
                faults = Faults(stack, replica_set, temporal, shop, seed)
                weights = [kind.weight for kind in KINDS.values()]
                async with asyncio.TaskGroup() as group:
                    disturbing = group.create_task(faults.run(disturbances))
                    for number, kind in enumerate(random_.choices(list(KINDS), weights, k=orders)):
                        group.create_task(shop.place(kind, number, random_.uniform(0, 20)))
                        await asyncio.sleep(disturbances * 3 / orders)  # orders keep coming until about the end
                    await disturbing
                print(f"all orders are in, after {shop.repeats} repeated requests; waiting for them to end", flush=True)
                await settle(shop)
                wrong = await audit(stack, shop)
                ends = Counter([(await shop.order(item.order_id))["status"] for item in shop.placed])
        finally:
            await replica_set.stop()
        if wrong:
            shutil.rmtree(KEPT, ignore_errors=True)
            shutil.copytree(folder, KEPT)
            wrong.append(f"data and logs are kept in {KEPT}")

    print("survived:", ", ".join(f"{many} {how}" for how, many in faults.survived.most_common()))
    print(", ".join(f"{many} {status}" for status, many in ends.most_common()), end=" ")
    print(f"after {time.monotonic() - begin:.0f} s")
    print("\n".join(wrong) if wrong else "nothing lost, nothing doubled, the books agree")
    return 1 if wrong else 0


async def settle(shop: Shop) -> None:
    """Wait until every order is final, or for SETTLE_TIMEOUT."""
    open_ = {item.order_id for item in shop.placed}
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while open_ and time.monotonic() < deadline:
        await asyncio.sleep(1)
        open_ = {order_id for order_id in open_ if (await shop.order(order_id))["status"] not in TERMINAL}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__)
    arguments.add_argument("--orders", type=int, default=150)
    arguments.add_argument("--disturbances", type=int, default=len(FAULTS))
    arguments.add_argument("--seed", type=int, default=random.randrange(10_000), help="to see the same again")
    given = arguments.parse_args()
    run(chaos(given.orders, given.disturbances, given.seed))
