"""G1 to G7, each checked on every order of a run, by what `evidence.py` has read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from app.domain import ALLOWED_FROM, CANCELLABLE, TERMINAL, OrderStatus, StepName, StepStatus
from dev.chaos.evidence import GATEWAYS, LOST, Histories, Journal, Journaled, Run
from dev.chaos.orders import CANCELLED, CITY, COMPLETED, FAILED, KINDS, NEW_CITY, PlacedOrder

GUARANTEES = {
    "G1": "an accepted order reaches a final status",
    "G2": "a repeated POST makes one order",
    "G3": "each step takes effect at most once",
    "G4": "what took effect is undone, once, for good",
    "G5": "available + reserved = stocked, at every instant",
    "G6": "paid: the total if it was shipped, else nothing",
    "G7": "a cancel works before shipment, as answered",
}
# Causes of failed workflow tasks in normal operation: a reset, a termination, a signal as the workflow closes.
NORMAL_CAUSES = {"RESET_WORKFLOW", "FORCE_CLOSE_COMMAND", "UNHANDLED_COMMAND"}
NORMAL_CLOSES = {"COMPLETED", "CANCELED", "TERMINATED", LOST}
# The transitions of a step. Each status can be entered once, so each effect and each compensation is recorded once.
STEP_TRANSITIONS = {
    (None, StepStatus.DONE),
    (None, StepStatus.FAILED),
    (StepStatus.DONE, StepStatus.COMPENSATED),
    (StepStatus.FAILED, StepStatus.COMPENSATED),  # a gateway had acted after all
}

Checks = Iterator[tuple[bool, str]]  # what must be true, and the violation otherwise


@dataclass
class Report:
    checked: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in GUARANTEES})
    violations: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in GUARANTEES})

    def check(self, guarantee: str, subject: str, checks: Checks, order_id: str) -> None:
        self.checked[guarantee].add(order_id)
        self.violations[guarantee] += [f"{subject}: {violation}" for holds, violation in checks if not holds]

    @property
    def violated(self) -> list[str]:
        return [name for name, violations in self.violations.items() if violations]


def audit(placed: list[PlacedOrder], repeated: dict[str, str], journal: Journal, histories: Histories) -> Report:
    """Check each guarantee on each order. `repeated` has the answer to a repeated POST, by key."""
    report = Report()
    runs: dict[str, list[Run]] = {item.order_id: [] for item in placed}
    for run in histories.runs.values():
        runs.setdefault(run.order_id, []).append(run)
    for item in placed:
        order = journal.orders.get(item.order_id, Journaled())
        subject = f"{item.order_id} ({item.kind}, {order.document.get('status', 'missing')})"
        checks: dict[str, Checks] = {"G1": ends(item, order, runs[item.order_id]), "G2": is_one(item, repeated)}
        if order.document:
            checks |= {
                "G3": at_most_once(item.order_id, order, journal),
                "G4": undone(item, order, runs[item.order_id], journal),
                "G6": charged(item.order_id, order, journal),
                "G7": answered_honestly(item, order),
            }
            if any(step == StepName.RESERVE_INVENTORY for step, _, _ in order.steps):
                report.checked["G5"].add(item.order_id)
        for guarantee, these in checks.items():
            report.check(guarantee, subject, these, item.order_id)
    known = Counter(item.order_id for item in placed)
    for order_id in journal.orders.keys() - known.keys():
        report.violations["G2"].append(f"{order_id}: no client was answered with this order")
    for key in journal.gateways:
        prefix, _, order_id = key.partition(":")
        if prefix in GATEWAYS and order_id not in known:
            report.violations["G3"].append(f"{key}: a gateway was called for an order that no client placed")
    report.violations["G5"] += journal.stock_violations
    return report


def ends(item: PlacedOrder, order: Journaled, runs: list[Run]) -> Checks:
    status = order.document.get("status")
    if not order.document:
        yield False, "is not in MongoDB"
        return
    yield status in TERMINAL, "has no final status"
    allowed = KINDS[item.kind].outcomes | ({CANCELLED} if item.operator_cancelled else set())
    yield status not in TERMINAL or status in allowed, "has a final status that this order cannot have"
    yield item.final_before_reset in {"", status}, f"was {item.final_before_reset} before the reset"
    for run in runs:
        if run.close == "OPEN":
            yield status not in TERMINAL, "its workflow is still open"
            continue
        causes = set(run.failed_tasks) - NORMAL_CAUSES
        yield not causes, f"workflow tasks failed: {', '.join(sorted(causes))}"
        yield run.close in NORMAL_CLOSES, f"a workflow closed as {run.close}"
        result = CANCELLED if run.close == "CANCELED" else run.result
        yield result in {None, status}, f"a workflow ended with the result {result}"


def is_one(item: PlacedOrder, repeated: dict[str, str]) -> Checks:
    answer = repeated.get(item.key)
    yield answer == item.order_id, f"its Idempotency-Key was later answered with {answer}"


def at_most_once(order_id: str, order: Journaled, journal: Journal) -> Checks:
    for step, before, after in order.steps:
        yield (before, after) in STEP_TRANSITIONS, f"{step} went from {before} to {after}"
    for prefix, (_, effect) in GATEWAYS.items():
        record = journal.gateways.get(f"{prefix}:{order_id}")
        changes = record.changes.get(effect, []) if record else []
        yield len(changes) <= 1, f"the {prefix} gateway acted {len(changes)} times"


def undone(item: PlacedOrder, order: Journaled, runs: list[Run], journal: Journal) -> Checks:
    for before, after in pairwise(order.statuses):
        yield before in ALLOWED_FROM[OrderStatus(after)], f"went from {before} to {after}"
    steps = {step: record["status"] for step, record in order.document.get("steps", {}).items()}
    done = sorted(step for step, status in steps.items() if status == StepStatus.DONE)
    if order.document["status"] == COMPLETED:
        yield len(done) == len(steps), f"is complete, but only these steps took effect: {', '.join(done)}"
    elif order.document["status"] in {FAILED, CANCELLED}:
        yield not done, f"still took effect: {', '.join(done)}"
        shipment = journal.gateways.get(f"shipment:{item.order_id}")
        shipped = shipment is not None and shipment.document.get("shipped") and not shipment.document.get("called_off")
        yield not shipped, "was shipped"
        yield f"mail:{item.order_id}" not in journal.gateways, "was confirmed"
    for run in runs:
        yield not run.interrupted, f"a compensation was interrupted: {', '.join(sorted(run.interrupted))}"
        ended = run.close == "CANCELED" or run.result in {FAILED, CANCELLED}
        unfinished = run.begun - run.compensated
        yield not ended or not unfinished, f"a workflow ended during {', '.join(sorted(unfinished))}"


def charged(order_id: str, order: Journaled, journal: Journal) -> Checks:
    if order.document["status"] not in TERMINAL:
        return
    record = journal.gateways.get(f"payment:{order_id}")
    payment = record.document if record else {}
    paid = payment.get("captured", 0) - payment.get("refunded", 0)
    total = order.document["total"]["amount"]
    expected = total if order.document["status"] == COMPLETED else 0
    yield paid == expected, f"paid {paid} instead of {expected}, of a total of {total}"
    if order.document["status"] == COMPLETED:
        shipment = journal.gateways.get(f"shipment:{order_id}")
        yield shipment is not None and bool(shipment.document.get("shipped")), "was not shipped"
        yield f"mail:{order_id}" in journal.gateways, "was not confirmed"


def answered_honestly(item: PlacedOrder, order: Journaled) -> Checks:
    status, city = order.document["status"], order.document["shipping_address"]["city"]
    code, is_final = item.answer[:3], status in TERMINAL
    # After a 503, or none, the first request may have taken effect: a repeated one may be refused for that.
    is_certain = not item.repeats and not item.operator_cancelled
    if order.cancelled_in:
        yield order.cancelled_in in CANCELLABLE, f"a cancel was accepted when it was {order.cancelled_in}"
        yield status == CANCELLED or not is_final, "a cancel was accepted, but it is not cancelled"
    if item.action == "cancel":
        yield code in {"202", "409"}, f"unexpected answer: {item.answer}"
        yield code != "202" or bool(order.cancelled_in), "a cancel was answered with 202, but not recorded"
        yield code != "409" or not is_certain or status != CANCELLED, "a cancel was refused, but it is cancelled"
    elif item.action == "approval":
        yield code == "202" or not is_certain, f"unexpected answer: {item.answer}"
    elif item.action == "shipping-address":
        yield code in {"200", "409"}, f"unexpected answer: {item.answer}"
        cities = {NEW_CITY} if code == "200" else {CITY} if is_certain else {CITY, NEW_CITY}
        yield city in cities, f"is addressed to {city}, the answer to the change was {item.answer}"
