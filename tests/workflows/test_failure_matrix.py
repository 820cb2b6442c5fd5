"""The failure matrix: every step of the table, in every kind of trouble, cancelled at every moment, by signal and by
Temporal, ends with stock and money right (G3 to G7).

One case is one order with its own product, worker and faults. All cases run at once, most of their time skipped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, cast

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.testing import TimeSkipper

from app.domain import Order, OrderStatus
from app.gateways import Declined, Unavailable
from app.messages import OrderProgress, OrderResult
from app.mongo import Mongo
from app.settings import Settings
from app.workflows import steps
from app.workflows.order import OrderWorkflow
from app.workflows.steps import activity_name
from dev.servers import Server
from tests.kit.faults import Call, FaultyGateways, Pause, T
from tests.kit.orders import ADDRESS, steps_of
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import (
    CHARGE,
    RESERVE,
    SHIP,
    Handle,
    RestartableWorker,
    at_the_end_of,
    reconfigure,
    waits_to_retry,
)

STOCK, QUANTITY, PRICE = 10, 3, 1_000
TABLE = {activity_name(step.activity): step for step in steps.STEPS}
STEPS = list(TABLE)
REVERSIBLE = [activity_name(step.activity) for step in steps.REVERSIBLE_STEPS]
COMPENSATION_OF = {name: activity_name(step.compensation) for name, step in TABLE.items() if step.compensation}


class Trouble(StrEnum):
    DECLINED = "declined"  # a final no, not retried
    EXHAUSTED = "exhausted"  # fails until its retries run out
    FLAKY = "flaky"  # fails three times, then works
    TIMES_OUT = "times_out"  # happens, but the attempt does not end in time
    REPLY_LOST = "reply_lost"  # happens, and then the attempt fails
    WORKER_LOST = "worker_lost"  # happens, and then the worker is gone
    NONE = "none"


class When(StrEnum):
    NEVER = "never"
    BEFORE = "before"  # together with the end of the step before it; before the first workflow task
    RUNS = "runs"
    WAITS = "waits"  # between retries
    COMPENSATES = "compensates"  # while it is compensated


class How(StrEnum):
    SIGNAL = "signal"
    TEMPORAL = "temporal"

    @property
    def other(self) -> How:
        return How.TEMPORAL if self is How.SIGNAL else How.SIGNAL


HAPPENS = {Trouble.TIMES_OUT, Trouble.REPLY_LOST, Trouble.WORKER_LOST}
DECLINES: dict[str, tuple[str, dict[str, Any]]] = {  # the failure code, and the order that the sandbox declines
    RESERVE: ("out_of_stock", {"quantity": STOCK + 1}),
    CHARGE: ("payment_declined", {"payment_method": "pm_card_declined"}),
    SHIP: ("address_unserviceable", {"shipping_address": {**ADDRESS, "postal_code": "00000"}}),
}


@dataclass(frozen=True)
class Case:
    step: str
    trouble: Trouble
    when: When
    how: How

    def __str__(self) -> str:
        return "-".join([self.step, self.trouble, self.when, self.how])

    @property
    def later_decline(self) -> str | None:
        """The step whose decline compensates this one, when the trouble itself does not."""
        if self.when is not When.COMPENSATES or self.trouble is Trouble.DECLINED or self.step == REVERSIBLE[-1]:
            return None
        return STEPS[STEPS.index(self.step) + 1]

    @property
    def first_cancel(self) -> How | None:
        """The cancel that counts. A successful shipment is compensated only for a cancel, and `how` comes second."""
        if self.when is When.COMPENSATES:
            for_cancel = self.step == REVERSIBLE[-1] and self.trouble is not Trouble.DECLINED
            return self.how.other if for_cancel else None
        if self.step not in REVERSIBLE:  # MongoDB holds a signal's cancel before the shipment, Temporal's after it
            return How.SIGNAL if (self.when, self.how) == (When.BEFORE, How.SIGNAL) else None
        return None if self.when is When.NEVER else self.how

    @property
    def declined(self) -> str | None:
        return self.step if self.trouble is Trouble.DECLINED else self.later_decline

    @property
    def code(self) -> str | None:
        """The failure code that the order ends with."""
        if self.first_cancel:
            return "cancelled"
        if self.trouble is Trouble.EXHAUSTED:
            return TABLE[self.step].timed_out.code
        return DECLINES.get(self.declined, (Declined.code,))[0] if self.declined else None

    @property
    def status(self) -> OrderStatus:
        if self.first_cancel:
            return OrderStatus.CANCELLED
        return OrderStatus.FAILED if self.code and self.step in REVERSIBLE else OrderStatus.COMPLETED


def cases() -> Iterator[Case]:
    for step in STEPS:
        # A cancel together with the end of the step before: too late where that was the shipment.
        yield from (Case(step, Trouble.NONE, When.BEFORE, how) for how in How)
        for trouble in [t for t in Trouble if t is not Trouble.NONE]:
            if trouble is Trouble.DECLINED and step not in REVERSIBLE:
                continue  # the sandbox declines no confirmation
            yield Case(step, trouble, When.NEVER, How.SIGNAL)
            if trouble is Trouble.EXHAUSTED:
                continue  # but for its end, it is flaky
            for how in How:
                yield Case(step, trouble, When.RUNS, how)
                retry_may_win = (step, trouble, how) == (REVERSIBLE[-1], Trouble.WORKER_LOST, How.TEMPORAL)
                if trouble is not Trouble.DECLINED and not retry_may_win:  # a declined step is not retried
                    yield Case(step, trouble, When.WAITS, how)
                if step in REVERSIBLE:
                    yield Case(step, trouble, When.COMPENSATES, how)


class ScriptedFault:
    """The calls of the step in trouble. Where something has to happen meanwhile, a call waits for `go_on`."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._fails = 2.0 if case.when is When.WAITS else 0.0  # a third pause is long enough to be hit
        if case.trouble is Trouble.FLAKY:
            self._fails = 3.0
        if case.trouble is Trouble.EXHAUSTED:
            self._fails = float("inf")
        self._calls = 0
        self.at_work = 0
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, call: Call[T]) -> T:
        self._calls += 1
        self.at_work += 1
        try:
            return await self._answer(self._calls, call)
        finally:
            self.at_work -= 1

    async def _answer(self, nth: int, call: Call[T]) -> T:
        if nth <= self._fails:
            if (nth == 3 and self._case.when is When.WAITS) or self._case.trouble is Trouble.EXHAUSTED:
                await self._here()
            raise Unavailable
        if nth > self._fails + 1:
            return await call()
        if self._case.trouble in HAPPENS:
            result = await call()
            await self._here()
            if self._case.trouble is Trouble.REPLY_LOST:
                raise Unavailable
            return result
        await self._here()
        if self._case.trouble is Trouble.DECLINED and self._case.step not in DECLINES:
            raise Declined("declined")
        return await call()

    async def _here(self) -> None:
        self.reached.set()
        await self.go_on.wait()


async def _declines(call: Call[T]) -> T:
    raise Declined("declined")


class CaseRun:
    """One case, from the order to its end."""

    def __init__(self, case: Case, shop: Shop) -> None:
        self.case = case
        self.shop = shop
        self.sku = str(case)
        self.step = ScriptedFault(case)
        self.compensation = Pause()

    async def run(self) -> None:
        case = self.case
        await self.shop.stock(self.sku, STOCK, PRICE)
        gateways = FaultyGateways(self.shop)
        async with RestartableWorker(gateways) as restartable:
            if case.when is When.BEFORE:
                handle = await self._cancelled_before(gateways, restartable)
            else:
                gateways.faults[case.step] = self.step
                if case.when is When.COMPENSATES:
                    gateways.faults[COMPENSATION_OF[case.step]] = self.compensation
                    if case.later_decline and case.later_decline not in DECLINES:
                        gateways.faults[case.later_decline] = _declines
                restartable.start()
                handle = await self._in_trouble(restartable)
            await self._check(handle)

    async def _start(self) -> Handle:
        changes = dict(DECLINES[self.case.declined][1]) if self.case.declined in DECLINES else {}
        lines = {self.sku: changes.pop("quantity", QUANTITY)}
        return await self.shop.start(lines, price=PRICE, **changes)

    async def _cancelled_before(self, gateways: FaultyGateways, restartable: RestartableWorker) -> Handle:
        if self.case.step == RESERVE:
            handle = await self._start()
            await self._cancel(handle, self.case.how)
            restartable.start()
        else:
            before = STEPS[STEPS.index(self.case.step) - 1]
            handle = await at_the_end_of(
                before, gateways, restartable, self._start, lambda handle: self._cancel(handle, self.case.how)
            )
        await self._end(handle)
        return handle

    async def _cancel(self, handle: Handle, how: How) -> None:
        """As the API does it, which writes the cancellation first; or as Temporal's own tools do."""
        if how is How.SIGNAL:
            order_id = handle.id.removeprefix("order-")
            await self.shop.workflows.start(await self.shop.orders.request_cancellation(order_id, None))
            return
        await handle.cancel()
        if self.case.trouble is Trouble.WORKER_LOST and self.case.when is not When.WAITS and self.case.first_cancel:
            # Else the retry may ship before the workflow hears of it.
            await self.shop.reaches(handle, OrderStatus.COMPENSATING, OrderStatus.CANCELLED)

    async def _in_trouble(self, restartable: RestartableWorker) -> Handle:
        case, step = self.case, self.step
        handle = await self._start()
        await step.reached.wait()
        if case.when is When.RUNS:
            await self._cancel(handle, case.how)
        elif case.when is When.COMPENSATES and case.first_cancel:
            await self._cancel(handle, case.first_cancel)

        interrupted = case.first_cancel and case.when is not When.WAITS
        if case.trouble is Trouble.WORKER_LOST:
            await restartable.stop()
        elif case.trouble is Trouble.TIMES_OUT and not interrupted:
            await reconfigure(handle, case.step, attempt=timedelta(seconds=0.3))
        elif not interrupted:
            if case.trouble is Trouble.EXHAUSTED:
                await reconfigure(handle, case.step, pause=TABLE[case.step].schedule_to_close / 15)
            step.go_on.set()

        if case.when is When.WAITS:
            await waits_to_retry(handle)
            await self._cancel(handle, case.how)
        if case.trouble is Trouble.WORKER_LOST:
            restartable.start()
        if case.when is When.COMPENSATES:
            await self.compensation.reached.wait()
            await (handle.signal(OrderWorkflow.cancel) if case.how is How.SIGNAL else handle.cancel())
            self.compensation.go_on.set()
        await self._end(handle)
        step.go_on.set()  # an attempt that is still at work comes late, when all has been undone
        await eventually(self._at_work, lambda calls: calls == 0)
        return handle

    async def _at_work(self) -> int:
        return self.step.at_work

    async def _end(self, handle: Handle) -> None:
        with suppress(WorkflowFailureError):
            await handle.result()

    async def _check(self, handle: Handle) -> None:
        case = self.case
        order = await self.shop.order(handle)
        assert order.status is case.status
        assert (order.failure.code if order.failure else None) == case.code
        await self._check_workflow(handle)
        self._check_timeline(order)

        shipped = case.status is OrderStatus.COMPLETED
        assert await self.shop.available(self.sku) + await self.shop.held(self.sku) == STOCK
        assert await self.shop.held(self.sku) == (QUANTITY if shipped else 0)
        assert await self.shop.net_money(order.order_id) == (order.total.amount if shipped else 0)
        books = self.shop.mongo.sandbox
        parcel = await books.find_one({"_id": f"shipment:{order.order_id}"}) or {}
        assert parcel.get("shipped", False) - parcel.get("called_off", False) == shipped
        payment = await books.find_one({"_id": f"payment:{order.order_id}"}) or {}
        assert payment.get("captured", 0) in {0, order.total.amount}
        assert payment.get("refunded", 0) in {0, payment.get("captured", 0)}

    async def _check_workflow(self, handle: Handle) -> None:
        case = self.case
        description = await handle.describe()
        closed = WorkflowExecutionStatus.COMPLETED
        if case.step not in REVERSIBLE and case.trouble is Trouble.EXHAUSTED:
            closed = WorkflowExecutionStatus.FAILED
        elif case.first_cancel is How.TEMPORAL:
            closed = WorkflowExecutionStatus.CANCELED
        else:
            result: OrderResult = await handle.result()
            assert result.status is case.status
        assert description.status is closed
        progress: OrderProgress = await handle.query(OrderWorkflow.status)
        assert (progress.status, progress.cancel_requested) == (case.status, case.first_cancel is not None)
        history = await handle.fetch_history()
        assert not any(e.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED for e in history.events)

    def _check_timeline(self, order: Order) -> None:
        """All done; or all compensated up to the step in trouble, which shows as declined only if it was."""
        states = list(steps_of(order).values())
        if self.case.status is OrderStatus.COMPLETED:
            assert states == ["done"] * (len(REVERSIBLE) if self.case.code else len(STEPS))
            return
        assert "done" not in states
        trouble_at = STEPS.index(self.case.declined or self.case.step)
        assert states[:trouble_at] == ["compensated"] * trouble_at
        assert len(states) <= trouble_at + 2  # of the steps after it, only the next is listed, as interrupted
        declined = [record.step for record in order.steps if record.failure]
        assert bool(declined) == (self.case.declined is not None and not self.case.first_cancel), order.steps


@pytest.fixture(scope="module")
async def runs(
    request: pytest.FixtureRequest, summary: Counter[str], mongod: Server, client: Client, skipper: TimeSkipper
) -> AsyncIterator[dict[Case, asyncio.Task[None]]]:
    """All chosen cases, begun at once."""
    chosen: list[Case] = [
        cast(Case, item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    summary["cases of the failure matrix"] += len(chosen)
    mongo = Mongo(mongod.address, "matrix", app_name="matrix")
    at_once = asyncio.Semaphore(12)

    async def run(case: Case) -> None:
        settings = Settings(
            mongodb_uri=mongod.address, mongodb_database="matrix", task_queue=f"matrix-{case}", approval_threshold=10**9
        )
        # Skipping time would skip the pause in which the order is cancelled.
        starter = client if case.when is When.WAITS else skipper.client
        async with at_once, asyncio.timeout(60):
            await CaseRun(case, Shop(mongo, settings, starter)).run()

    yield {case: asyncio.create_task(run(case)) for case in chosen}
    await mongo.client.drop_database("matrix")
    mongo.close()


@pytest.mark.parametrize("case", list(cases()), ids=str)
async def test_order_in_trouble_ends_with_stock_and_money_right(
    case: Case, runs: dict[Case, asyncio.Task[None]]
) -> None:
    await runs[case]
