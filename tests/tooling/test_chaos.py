"""`make chaos`: its plan, and broken builds of the program, each of which it must catch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp

from app.domain import OrderStatus
from dev.chaos.audit import audit
from dev.chaos.evidence import Histories, Journal, Run
from dev.chaos.faults import ALL, SHORT, schedule
from dev.chaos.orders import CITY, KINDS, PlacedOrder, plan_orders
from tests.kit.program_copy import ProgramCopy

RELAY_SWEEP = """                if now >= self._sweep_at:
                    self._sweep_at = now + SWEEP_INTERVAL
                    await self._sweep(now)
"""
FENCE = '            record, _ = await self._record(order_id, StepEvent.FENCED, "stopped before it took effect")\n'
NO_FENCE = """            record = (await self._orders.get(order_id)).step(self._name)
            if record is None:
                await self._reverse(order_id)
                return
"""


def without_fence(copy: ProgramCopy) -> None:
    copy.replace("app/activities/order_step.py", FENCE, NO_FENCE)
    written = "after.status is not StepStatus.FAILED or after.failure is not None"
    copy.replace_line("app/activities/inventory.py", "if after != before:", f"if after != before and ({written}):\n")
    # The transaction reads the order as well, so a late reservation would find it stopped.
    copy.replace("app/activities/inventory.py", "(reason := order.stop_reason)", "(reason := None)")


def without_shield(copy: ProgramCopy) -> None:
    copy.insert_below("app/workflows/order.py", "                self.cancel()\n", "saga.cancel()\n")


def without_majority_reads(copy: ProgramCopy) -> None:
    copy.replace("app/mongo.py", '), ReadConcern("majority")\n', '), ReadConcern("local")\n')
    copy.replace("app/mongo.py", 'ReadConcern("linearizable")', 'ReadConcern("local")')
    # Change streams exist with majority read concern only.
    copy.replace("app/mongo.py", "source.watch(", 'source.with_options(read_concern=ReadConcern("majority")).watch(')


def without_sweep(copy: ProgramCopy) -> None:
    """The relay trusts the change stream to tell of each order that has no workflow."""
    copy.replace("app/relay.py", RELAY_SWEEP, "")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("break_it", "fault", "guarantee"),
    [
        (without_fence, "worker frozen while reserving", "G4"),
        (without_fence, "attempts overtaken", "G4"),
        (without_shield, "compensations interrupted", "G4"),
        (without_majority_reads, "primary rolled back", "G1"),
        (without_sweep, "workflows terminated", "G1"),
    ],
    ids=["fence of reservations", "fence of charges", "shield", "majority", "sweep"],
)
async def test_chaos_on_a_broken_build_names_the_violated_guarantee(
    tmp_path: Path, break_it: Callable[[ProgramCopy], None], fault: str, guarantee: str
) -> None:
    copy = ProgramCopy(tmp_path / "copy")
    break_it(copy)
    for seed in ("1", "2", "3"):  # on a busy machine, a run may miss the moment
        code, output = await copy.run("-m", "dev.chaos", "--only", fault, "--seed", seed, within=170)
        if f"\n{guarantee} violated: " in output:
            break
    assert (code, f"\n{guarantee} violated: " in output) == (1, True), output


def test_same_seed_gives_same_orders_and_faults() -> None:
    for faults in (ALL, SHORT):
        assert schedule(faults, 1) == schedule(faults, 1)
        assert schedule(faults, 1) != schedule(faults, 2)
        assert {fault.name for fault in schedule(faults, 1)} == {fault.name for fault in faults}
    assert plan_orders(300, 1) == plan_orders(300, 1)
    assert plan_orders(300, 1) != plan_orders(300, 2)


def test_plan_has_every_kind_of_order() -> None:
    orders = plan_orders(300, seed=1)
    assert {order.kind for order in orders} == {name for name, kind in KINDS.items() if kind.weight}
    assert len(orders) == 300


PRODUCT = {"available": 9}
RESERVED = {"status": "done", "quantities": [{"sku": "CHAOS-MUG", "quantity": 1}]}
TOTAL = 12_99
ORDER = {"status": "placed", "total": {"amount": TOTAL}, "shipping_address": {"city": CITY}}
FENCE_RECORD = {"status": "failed"}
STOPPED = {"create_shipment": FENCE_RECORD, "charge_payment": FENCE_RECORD}


def journal_of(*instants: dict[str, Any]) -> Journal:
    """The journal of these documents, by collection: those of one instant were written in one transaction."""
    journal = Journal({"CHAOS-MUG": 10})
    for number, written in enumerate([{"inventory": {"available": 10}}, *instants, {"chaos": {}}]):
        for collection, document in written.items():
            key = {"inventory": "CHAOS-MUG", "sandbox": "payment:ord_1"}.get(collection, "ord_1")
            change = {"operationType": "replace", "ns": {"coll": collection}, "documentKey": {"_id": key}}
            journal.add({**change, "fullDocument": document, "clusterTime": Timestamp(number + 1, 1)})
    return journal


def violated(journal: Journal, status: str, answer: str = "202", begun: frozenset[str] = frozenset()) -> list[str]:
    placed = PlacedOrder("cancelled", "ord_1", "key", {}, action="cancel", answer=answer)
    runs = Histories()
    runs.runs["run"] = Run(
        "ord_1", "COMPLETED", OrderStatus(status), begun, frozenset(), frozenset(), (), 0, frozenset()
    )
    return audit([placed], {"key": "ord_1"}, journal, runs).violated


CANCELLED_ORDER: list[dict[str, Any]] = [
    {"orders": ORDER},
    {"orders": {**ORDER, "steps": {"reserve_inventory": RESERVED}, "status": "reserved"}, "inventory": PRODUCT},
    {"orders": {**ORDER, "steps": {"reserve_inventory": RESERVED}, "status": "reserved", "cancellation": {"by": None}}},
    {
        "orders": {
            **ORDER,
            "steps": {**STOPPED, "reserve_inventory": RESERVED},
            "status": "compensating",
            "cancellation": {"by": None},
        }
    },
    {"sandbox": {"closed": True, "captured": 0}},  # of a late attempt
    {
        "orders": {
            **ORDER,
            "steps": {**STOPPED, "reserve_inventory": {**RESERVED, "status": "compensated"}},
            "status": "cancelled",
            "cancellation": {"by": None},
        },
        "inventory": {"available": 10},
    },
]


def test_audit_of_a_cancelled_order_finds_nothing_but_its_late_attempt() -> None:
    journal = journal_of(*CANCELLED_ORDER)
    assert violated(journal, "cancelled") == []
    assert journal.late_attempts() == [("ord_1", "charge_payment")]


@pytest.mark.parametrize(
    ("changed", "guarantees"),
    [
        ({5: {"inventory": {"available": 10}}}, ["G1", "G5"]),  # it stays open and holds the stock, which is returned
        ({1: {"orders": CANCELLED_ORDER[1]["orders"]}}, ["G5"]),  # for an instant, the stock is reserved twice
        ({4: {"sandbox": {"closed": True, "captured": TOTAL}}}, ["G6"]),
        ({2: {}}, ["G7"]),  # a cancel is first accepted while it is compensating
        ({0: {"orders": {**ORDER, "steps": {"charge_payment": {"status": "compensated"}}}}}, ["G3"]),
        ({4: {"orders": {**CANCELLED_ORDER[3]["orders"], "status": "shipped"}}}, ["G4"]),
    ],
    ids=["open", "oversold", "not refunded", "cancelled too late", "backwards", "shipped"],
)
def test_audit_names_the_violated_guarantee(changed: dict[int, dict[str, Any]], guarantees: list[str]) -> None:
    instants = [changed.get(number, written) for number, written in enumerate(CANCELLED_ORDER)]
    assert violated(journal_of(*instants), "cancelled") == guarantees


def test_audit_finds_a_cancel_that_was_refused_but_took_effect() -> None:
    assert violated(journal_of(*CANCELLED_ORDER), "cancelled", answer="409 cannot cancel") == ["G7"]


def test_audit_finds_a_workflow_that_ended_during_a_compensation() -> None:
    assert violated(journal_of(*CANCELLED_ORDER), "cancelled", begun=frozenset({"RefundPayment"})) == ["G4"]
