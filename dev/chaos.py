"""The proof that nothing is lost (`make chaos`): API, worker, Temporal and MongoDB stop while orders come in.

Orders of every kind are placed with an Idempotency-Key, each repeated until it is answered with 202. Meanwhile one
process after another is killed, stopped or frozen, and comes back. Afterwards every order must be final, once, and the
books of stock, payment service and carrier must agree with it.
"""

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
from pymongo import AsyncMongoClient

from dev.sample_stock import authorization
from dev.stack import NAMES, ROOT, Config, Stack, run

STOCK = {"CHAOS-MUG": 10_000, "CHAOS-VASE": 15}  # pieces; there are too few vases for all who want one
KINDS = {  # what is ordered, and how often: weight, payment method, postal code, sku
    "plain": (10, "pm_card_ok", "10115", "CHAOS-MUG"),
    "scarce": (4, "pm_card_ok", "10115", "CHAOS-VASE"),
    "declined": (2, "pm_card_declined", "10115", "CHAOS-MUG"),
    "unserviceable": (2, "pm_card_ok", "00000", "CHAOS-MUG"),
    "flaky": (2, "pm_card_flaky", "10115", "CHAOS-MUG"),
    "slow": (2, "pm_card_slow", "10115", "CHAOS-MUG"),
    "outage": (2, "pm_card_outage", "10115", "CHAOS-MUG"),  # ends only when it is cancelled
}
MAY_END = {
    "plain": {"completed"},
    "scarce": {"completed", "failed"},
    "declined": {"failed"},
    "unserviceable": {"failed"},
    "flaky": {"completed"},
    "slow": {"completed"},
    "outage": {"cancelled"},
}
FINAL = {"completed", "failed", "cancelled"}
KEPT = ROOT / ".dev" / "chaos"
PATIENCE = 180  # seconds; a step whose worker was killed is tried again after its timeout of 30


@dataclass
class Placed:
    kind: str
    order_id: str
    key: str
    body: dict[str, Any]
    cancel: str  # what the answer to the cancel was, if there was one


class Shop:
    """A client that does not give up."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.repeats = 0

    async def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Repeat a request until its answer is no 5xx."""
        while True:
            try:
                response = await self.http.request(method, path, **request)
            except httpx.TransportError:
                pass
            else:
                if not response.is_server_error:
                    return response
            self.repeats += 1
            await asyncio.sleep(0.2)

    async def place(self, kind: str, number: int) -> Placed:
        _, payment_method, postal_code, sku = KINDS[kind]
        body = {
            "customer_id": "chaos",
            "email": "chaos@example.com",
            "payment_method": payment_method,
            "lines": [{"sku": sku, "quantity": 1 + number % 2}],
            "shipping_address": {
                "name": "Ada Lovelace",
                "street": "Example Street 1",
                "city": "Berlin",
                "postal_code": postal_code,
                "country": "DE",
            },
        }
        key = f"chaos-{number}"
        response = await self.send("POST", "/orders", json=body, headers={"Idempotency-Key": key})
        order_id = response.raise_for_status().json()["order_id"]
        cancel = ""
        if kind == "outage":
            await asyncio.sleep(1)
            response = await self.send("POST", f"/orders/{order_id}/cancel", json={})
            cancel = f"{response.status_code} {response.json().get('detail', '')}".strip()
        return Placed(kind, order_id, key, body, cancel)

    async def order(self, order_id: str) -> dict[str, Any]:
        order: dict[str, Any] = (await self.send("GET", f"/orders/{order_id}")).raise_for_status().json()
        return order


async def disturb(stack: Stack, random_: random.Random, times: int) -> None:
    """Take one process away after another, and bring it back."""
    rounds = (name for _ in range(times) for name in random_.sample(NAMES, len(NAMES)))
    for number, name in enumerate(islice(rounds, times), 1):
        how = random_.choice(["killed", "killed", "stopped", "frozen"])
        away = random_.uniform(0.2, 3)
        print(f"  {number:>2}. {name} {how} for {away:.1f} s", flush=True)
        server = stack.processes[name]
        if how == "frozen":
            server.pause()
            await asyncio.sleep(away)
            server.resume()
        else:
            await (server.kill() if how == "killed" else server.stop())
            await asyncio.sleep(away)
            await stack.start(name)
        await asyncio.sleep(random_.uniform(0.5, 2))


async def audit(stack: Stack, shop: Shop, placed: list[Placed]) -> list[str]:
    """Everything that is not as it should be, a line each."""
    wrong = []
    async with AsyncMongoClient[dict[str, Any]](stack.mongodb_uri) as client:
        database = client["orders"]
        books = {entry["_id"]: entry async for entry in database.sandbox.find()}
        if (stored := await database.orders.count_documents({})) != len(placed):
            wrong.append(f"{len(placed)} orders were placed, {stored} are stored")
        held: Counter[str] = Counter()
        async for reservation in database.reservations.find({"state": "reserved"}):
            held.update({line["sku"]: line["quantity"] for line in reservation["lines"]})

    for sku, stocked in STOCK.items():
        available = (await shop.send("GET", f"/inventory/{sku}")).json()["available"]
        if available < 0 or available + held[sku] != stocked:
            wrong.append(f"{sku}: {available} available + {held[sku]} reserved is not {stocked}")

    for item in placed:
        order = await shop.order(item.order_id)
        status, total = order["status"], order["total"]["amount"]
        again = await shop.send("POST", "/orders", json=item.body, headers={"Idempotency-Key": item.key})
        payment = books.get(f"payment:{item.order_id}", {})
        shipment = books.get(f"shipment:{item.order_id}", {})
        paid = payment.get("captured", 0) - payment.get("refunded", 0)
        shipped = bool(shipment.get("shipped")) and not shipment.get("called_off")
        mailed = f"mail:{item.order_id}" in books
        sold = status == "completed"
        for fine, what in (
            (status in MAY_END[item.kind], "has the wrong end"),
            (item.cancel in {"", "202"}, f"cancel was answered with {item.cancel}"),
            (again.json().get("order_id") == item.order_id, "was made a second time by its Idempotency-Key"),
            (paid == (total if sold else 0), f"{paid} were paid of {total}"),
            (shipped == sold, "shipped" if shipped else "did not ship"),
            (mailed == sold, "the customer was told" if mailed else "the customer was not told"),
        ):
            if not fine:
                wrong.append(f"{item.order_id} ({item.kind}, {status}): {what}")
    return wrong


async def chaos(orders: int, disturbances: int, seed: int) -> int:
    random_ = random.Random(seed)
    begin = time.monotonic()
    print(f"{orders} orders, {disturbances} disturbances, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="order-saga-") as folder:
        config = Config.on_free_ports(Path(folder))
        async with (
            Stack(config) as stack,
            httpx.AsyncClient(base_url=stack.api_url, headers=authorization(), timeout=5) as http,
        ):
            shop = Shop(http)
            for sku, pieces in STOCK.items():
                article = {
                    "name": sku,
                    "unit_price": {"amount": 1299, "currency": "EUR"},
                    "available": pieces,
                }
                (await http.put(f"/inventory/{sku}", json=article)).raise_for_status()

            kinds = random_.choices(list(KINDS), [weight for weight, *_ in KINDS.values()], k=orders)
            disturbing = asyncio.create_task(disturb(stack, random_, disturbances))
            placing = []
            for number, kind in enumerate(kinds):
                placing.append(asyncio.create_task(shop.place(kind, number)))
                await asyncio.sleep(disturbances * 3 / orders)  # orders keep coming until about the end
            await disturbing
            placed = await asyncio.gather(*placing)
            print(
                f"all orders are in, after {shop.repeats} repeated requests; waiting for them to end",
                flush=True,
            )

            open_ = {item.order_id for item in placed}
            deadline = time.monotonic() + PATIENCE
            while open_ and time.monotonic() < deadline:
                await asyncio.sleep(1)
                open_ = {order_id for order_id in open_ if (await shop.order(order_id))["status"] not in FINAL}
            wrong = await audit(stack, shop, placed)
            ends = Counter([(await shop.order(item.order_id))["status"] for item in placed])
        if wrong:
            shutil.copytree(folder, KEPT, dirs_exist_ok=True)
            wrong.append(f"data and logs are kept in {KEPT}")

    print(", ".join(f"{count} {status}" for status, count in ends.most_common()), end=" ")
    print(f"after {time.monotonic() - begin:.0f} s")
    print("\n".join(wrong) if wrong else "nothing lost, nothing doubled, the books agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__)
    arguments.add_argument("--orders", type=int, default=100)
    arguments.add_argument("--disturbances", type=int, default=12)
    arguments.add_argument("--seed", type=int, default=random.randrange(10_000), help="to see the same again")
    given = arguments.parse_args()
    run(chaos(given.orders, given.disturbances, given.seed))
