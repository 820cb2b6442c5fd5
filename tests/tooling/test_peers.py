"""`make peers`: both peers run the whole saga, so that their figures are those of the same work."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dev.bench.shop import order_body, place_headers
from dev.peers import page, run, servers
from dev.peers.servers import Contender
from dev.stack import ROOT
from tests.kit.waiting import eventually
from tests.tooling.dev_process import Dev

PRICE = 1299  # of a piece, in dev/bench/shop.py
LINES = [{"sku": "MUG", "quantity": 2}, {"sku": "TEE", "quantity": 1}]
TOTAL = 3 * PRICE


@pytest.fixture(scope="module")
def peers() -> None:
    """Install what the peers need. Skip if PostgreSQL or npm is missing; fail if CI is set."""
    made = subprocess.run(["make", ".venv-peers/.ready"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    if made.returncode and not os.environ.get("CI"):
        errors = [line for line in made.stderr.splitlines() if line.startswith("error:")]
        pytest.skip(f"the peers cannot be installed: {(errors or ['make failed'])[0]}")
    assert made.returncode == 0, made.stderr


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("peer", ["dbos", "restate"])
async def test_books_of_a_peer_after_all_kinds_of_orders_are_right(peer: str) -> None:
    async with getattr(servers, peer)() as contender:
        shop = contender.shop
        for sku in ("MUG", "TEE"):
            await shop.stock(sku, available=1_000)
        placed = [asyncio.create_task(place(contender)) for _ in range(5)]
        completed = [await order for order in placed]
        declined = await place(contender, payment_method="pm_card_declined")
        short = await place(contender, lines=[LINES[0], {"sku": "NONE", "quantity": 1}])
        unserviceable = await place(contender, shipping_address=address("00000"))
        charged = await place(contender, wait=False, shipping_address=address("99999"))
        reserved = await place(contender, wait=False, payment_method="pm_card_outage")
        for order, status in ((charged, "charged"), (reserved, "reserved")):
            await reaches(contender, order, status)
            assert (await cancel(contender, order["order_id"])) == 202
            cancelled = await reaches(contender, order, "cancelled")
            assert cancelled["failure"]["code"] == "cancelled"
        assert {order["status"] for order in completed} == {"completed"}
        codes = ("payment_declined", "out_of_stock", "address_unserviceable")
        for order, code in zip((declined, short, unserviceable), codes, strict=True):
            assert (order["status"], order["failure"]["code"]) == ("failed", code)
        assert await cancel(contender, completed[0]["order_id"]) == 409
        assert await cancel(contender, reserved["order_id"]) == 409
        assert await cancel(contender, "unknown") == 404

        again = place_headers()
        first, second = await asyncio.gather(place(contender, headers=again), place(contender, headers=again))
        assert (first["order_id"], first["status"]) == (second["order_id"], "completed")
        completed.append(first)

        available = [(await shop.expect("GET", f"/inventory/{sku}")).json()["available"] for sku in ("MUG", "TEE")]
        assert available == [1_000 - 2 * 6, 1_000 - 6]
        books = read_books(contender)
        for order in completed:
            kept = {name: books.pop(f"{name}:{order['order_id']}") for name in ("payment", "shipment", "mail")}
            assert kept == {"payment": (TOTAL, None), "shipment": (1, None), "mail": (1, None)}
        for order in (unserviceable, charged):
            assert books.pop(f"payment:{order['order_id']}") == (TOTAL, TOTAL)
        assert {amount for amount, _ in books.values()} <= {None, 0}  # nothing else took effect


def address(postal_code: str) -> dict[str, str]:
    return {"name": "Ada", "street": "Street 1", "city": "Berlin", "postal_code": postal_code, "country": "DE"}


async def place(
    contender: Contender, *, wait: bool = True, headers: dict[str, str] | None = None, **fields: object
) -> dict[str, Any]:
    """The order, when it is final."""
    fields.setdefault("lines", LINES)
    body, prefer = order_body("customer", "", **fields), {"Prefer": "wait=50"} if wait else {}
    answer = await contender.shop.http.request("POST", "/orders", body, (headers or place_headers()) | prefer)
    assert answer.status == 202, answer.body
    order: dict[str, Any] = answer.json()
    return order


async def reaches(contender: Contender, order: dict[str, Any], status: str) -> dict[str, Any]:
    async def read() -> Any:
        return (await contender.shop.expect("GET", f"/orders/{order['order_id']}")).json()

    found: dict[str, Any] = await eventually(read, lambda found: found["status"] == status)
    return found


async def cancel(contender: Contender, order_id: str) -> int:
    return (await contender.shop.http.request("POST", f"/orders/{order_id}/cancel")).status


def read_books(contender: Contender) -> dict[str, tuple[int | None, int | None]]:
    """What each key took at a gateway, and what was undone of it."""
    query = "SELECT json_object_agg(key, json_build_array(amount, undone)) FROM gateway"
    command = [servers.find("psql"), contender.processes["PostgreSQL"].address, "-Atc", query]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: (amount, undone) for key, (amount, undone) in json.loads(printed).items()}


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.usefixtures("peers")
async def test_quick_comparison_measures_all_three(tmp_path: Path) -> None:
    dev = await Dev(tmp_path).start("dev.peers.run", "--quick", "--output", str(tmp_path))
    try:
        code, lines = await dev.wait_for_exit(timeout=170)
    finally:
        dev.kill()
    assert code == 0, lines
    found = json.loads((tmp_path / "peers.json").read_text())
    assert [*found["figures"]] == [*run.CONTENDERS]
    for figures in found["figures"].values():
        assert all(len(figures[key]) == 1 and figures[key][0] > 0 for key in page.ROWS.values())
    assert any("G7" in line for line in lines)


def test_comparison_page_is_written_from_the_committed_figures() -> None:
    assert page.PAGE.read_text() == page.text(json.loads(run.FIGURES.read_text())), "run make peers ARGS=--render"


def test_every_guarantee_has_a_verdict_for_each_program() -> None:
    verdicts = {"by the engine", "by hand", "in part", "no"}
    assert [row[0] for row in page.verdicts()] == [f"G{number}" for number in range(1, 8)]
    assert all(len(row) == 1 + len(run.CONTENDERS) and {*row[1:]} <= verdicts for row in page.verdicts())
