"""What the audit rests on, none of it kept by the chaos test itself: MongoDB's own record of changes, and histories.

The journal is a change stream from before the first order: every write that a majority has, in the one sequence in
which the replica set applied them, and the writes of a transaction together. So each instant can be checked afterwards.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bson import Timestamp
from pymongo import AsyncMongoClient
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from app.domain import OrderStatus, StepName, StepStatus
from app.names import NAME, WORKFLOW_ID_PREFIX
from app.workflows.steps import COMPENSATABLE_STEPS, activity_name

Document = dict[str, Any]
COMPENSATIONS = {activity_name(step.compensation) for step in COMPENSATABLE_STEPS if step.compensation}
# Of the sandbox gateways: the prefix of a record, its step, and the field that an attempt sets and a compensation not.
GATEWAYS = {
    "payment": (StepName.CHARGE_PAYMENT, "captured"),
    "shipment": (StepName.CREATE_SHIPMENT, "shipped"),
    "mail": (StepName.SEND_CONFIRMATION, "mails"),
}


# --- MongoDB


@dataclass
class Journaled:
    """An order's document, and how it became what it is."""

    document: Document = field(default_factory=dict)
    statuses: list[str] = field(default_factory=list)
    steps: list[tuple[str, str | None, str]] = field(default_factory=list)  # step, status before and after
    fenced_at: dict[str, Timestamp] = field(default_factory=dict)  # by step
    cancelled_in: str = ""  # the status in which a cancel was accepted

    def apply(self, document: Document, time: Timestamp) -> None:
        before = self.document
        if document.get("status") != before.get("status"):
            self.statuses.append(document["status"])
        if document.get("cancellation") and not before.get("cancellation"):
            self.cancelled_in = document["status"]
        for step, record in document.get("steps", {}).items():
            old = before.get("steps", {}).get(step, {}).get("status")
            if record["status"] != old:
                self.steps.append((step, old, record["status"]))
                if record["status"] == StepStatus.FAILED and not record.get("failure"):
                    self.fenced_at[step] = time
        self.document = document


@dataclass
class GatewayRecord:
    """A gateway's record under one idempotency key, and when each field got each of its values."""

    document: Document = field(default_factory=dict)
    changes: dict[str, list[tuple[Timestamp, Any]]] = field(default_factory=lambda: defaultdict(list))

    def apply(self, document: Document, time: Timestamp) -> None:
        for name, value in document.items():
            if name not in self.document or self.document[name] != value:
                self.changes[name].append((time, value))
        self.document = document


@dataclass
class Journal:
    """The changes of the database, replayed: orders, gateways' records by key, and what was wrong with the stock."""

    stocked: Mapping[str, int]  # by SKU
    orders: dict[str, Journaled] = field(default_factory=lambda: defaultdict(Journaled))
    gateways: dict[str, GatewayRecord] = field(default_factory=lambda: defaultdict(GatewayRecord))
    available: dict[str, int] = field(default_factory=dict)
    instants: int = 0  # at which the stock was compared
    stock_violations: list[str] = field(default_factory=list)
    _held: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _instant: Timestamp | None = None
    _touched: set[str] = field(default_factory=set)  # products whose stock the changes of this instant concern

    async def read(self, mongo: AsyncMongoClient[Document], since: Timestamp) -> None:
        """Read all changes since then, up to a write of our own."""
        database = mongo[NAME]
        end = (await database.chaos.insert_one({})).inserted_id
        async with await database.watch(start_at_operation_time=since, batch_size=1_000) as changes:
            async for change in changes:
                self.add(change)
                if change.get("documentKey", {}).get("_id") == end:
                    return

    def add(self, change: Document) -> None:
        """Apply a change; once the next instant begins, compare the stock of what changed."""
        if change["clusterTime"] != self._instant:
            self._compare_stock(self._touched)
            self._touched, self._instant = set(), change["clusterTime"]
        if change["operationType"] in {"insert", "replace", "update"}:
            self._touched |= self._apply(change["ns"]["coll"], change["documentKey"]["_id"], change)

    def _apply(self, collection: str, key: str, change: Document) -> set[str]:
        """Apply a change, and return the products whose stock it may have changed."""
        time = change["clusterTime"]
        if collection == "sandbox":
            gateway = self.gateways[key]
            gateway.apply(_after(gateway.document, change), time)
        if collection == "inventory" and key in self.stocked:
            self.available[key] = _after({"available": self.available.get(key)}, change)["available"]
            return {key}
        if collection == "orders":
            order = self.orders[key]
            held_before = _held(order.document)
            order.apply(_after(order.document, change), time)
            held = _held(order.document)
            for sku in held_before.keys() | held.keys():
                self._held[sku] += held.get(sku, 0) - held_before.get(sku, 0)
            return (held_before.keys() | held.keys()) if held != held_before else set()
        return set()

    def _compare_stock(self, skus: set[str]) -> None:
        for sku in skus:
            self.instants += 1
            available, held, stocked = self.available[sku], self._held[sku], self.stocked[sku]
            if available < 0 or available + held != stocked:
                violation = f"{sku}: {available} available + {held} reserved is not {stocked}"
                self.stock_violations.append(violation)

    def late_attempts(self) -> list[tuple[str, str]]:
        """Return the order and step of each attempt that reached the gateway after the step's fence was written."""
        late = []
        for key, record in self.gateways.items():
            prefix, _, order_id = key.partition(":")
            step, effect = GATEWAYS.get(prefix, ("", ""))
            fenced_at = self.orders[order_id].fenced_at.get(step) if order_id in self.orders else None
            if fenced_at and any(time > fenced_at for time, _ in record.changes.get(effect, [])):
                late.append((order_id, str(step)))
        return late


def _after(before: Document, change: Document) -> Document:
    """Return the document after a change. Changes within arrays are left out: nothing here depends on them."""
    if "fullDocument" in change:
        return dict(change["fullDocument"])
    after: Document = _copy(before)
    for path, value in change["updateDescription"]["updatedFields"].items():
        *parents, name = path.split(".")
        target: Any = after
        for parent in parents:
            target = target.setdefault(parent, {}) if isinstance(target, dict) else None
        if isinstance(target, dict):
            target[name] = value
    for path in change["updateDescription"]["removedFields"]:
        if "." not in path:
            after.pop(path, None)
    return after


def _copy(value: Any) -> Any:
    return {name: _copy(each) for name, each in value.items()} if isinstance(value, dict) else value


def _held(order: Document) -> dict[str, int]:
    """Return the quantities that an order's reservation holds, by SKU."""
    record = order.get("steps", {}).get(StepName.RESERVE_INVENTORY, {})
    lines = record.get("quantities", []) if record.get("status") == StepStatus.DONE else []
    return {line["sku"]: line["quantity"] for line in lines}


# --- Temporal

CLOSES = {"COMPLETED", "FAILED", "TIMED_OUT", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW"}
LOST = "LOST"


@dataclass(frozen=True)
class Run:
    """A run of an order's workflow, as its history tells it."""

    order_id: str
    close: str  # how it closed, as in `CLOSES`; `OPEN`; or `LOST`, with Temporal's data
    result: OrderStatus | None
    begun: frozenset[str]  # compensations
    compensated: frozenset[str]  # those that completed
    interrupted: frozenset[str]  # those that were asked to stop
    failed_tasks: tuple[str, ...]  # causes
    taken_over: int  # attempts that followed one whose time was over
    workers: frozenset[str]  # identities


class Histories:
    """All runs of the orders' workflows. Collected before Temporal's data is deleted, and at the end."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}  # by run id

    async def collect(self, temporal: Client, *, about_to_be_lost: bool = False) -> None:
        async for execution in temporal.list_workflows():
            if execution.id.startswith(WORKFLOW_ID_PREFIX):
                handle = temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
                events = [event async for event in handle.fetch_history_events()]
                run = read_run(execution.id.removeprefix(WORKFLOW_ID_PREFIX), events)
                self.runs[execution.run_id] = (
                    replace(run, close=LOST) if about_to_be_lost and run.close == "OPEN" else run
                )


def read_run(order_id: str, events: list[HistoryEvent]) -> Run:
    activities: dict[int, str] = {}  # by the event that schedules it
    begun, compensated, interrupted, workers = set[str](), set[str](), set[str](), set[str]()
    failed_tasks: list[str] = []
    taken_over, result = 0, None
    for event in events:
        match event.event_type:
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                activities[event.event_id] = event.activity_task_scheduled_event_attributes.activity_type.name
                begun |= {activities[event.event_id]} & COMPENSATIONS
            case EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                started = event.activity_task_started_event_attributes
                workers.add(started.identity)
                taken_over += started.last_failure.HasField("timeout_failure_info")
            case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                completed = event.activity_task_completed_event_attributes
                compensated |= {activities[completed.scheduled_event_id]} & COMPENSATIONS
            case EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED:
                requested = event.activity_task_cancel_requested_event_attributes
                interrupted |= {activities[requested.scheduled_event_id]} & COMPENSATIONS
            case EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                workers.add(event.workflow_task_completed_event_attributes.identity)
            case EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                cause = WorkflowTaskFailedCause.Name(event.workflow_task_failed_event_attributes.cause)
                failed_tasks.append(cause.removeprefix("WORKFLOW_TASK_FAILED_CAUSE_"))
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
                (payload,) = event.workflow_execution_completed_event_attributes.result.payloads
                result = OrderStatus(json.loads(payload.data)["status"])
    last = EventType.Name(events[-1].event_type).removeprefix("EVENT_TYPE_WORKFLOW_EXECUTION_")
    return Run(
        order_id,
        last if last in CLOSES else "OPEN",
        result,
        frozenset(begun),
        frozenset(compensated),
        frozenset(interrupted),
        tuple(failed_tasks),
        taken_over,
        frozenset(workers),
    )
