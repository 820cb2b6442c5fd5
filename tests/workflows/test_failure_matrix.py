"""The failure matrix: every step, with every fault, cancelled at every moment by signal and by Temporal (G3 to G7).

Each case is one order with its own product, worker and faults. Stock and money must be correct at its end. The cases
run concurrently, most of them with skipped time. A normal run has every pair of step, fault, moment and kind of cancel;
`--exhaustive` has all cases.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, cast

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.testing import TimeSkipper

from app.domain import Order, OrderStatus
from app.gateways import Declined, Unavailable
from app.gateways.sandbox import records
from app.messages import OrderProgress, OrderResult
from app.mongo import Mongo
from app.names import WORKFLOW_ID_PREFIX
from app.settings import Settings
from app.workflows import steps
from app.workflows.order import OrderWorkflow
from app.workflows.steps import activity_name
from dev.servers import Server
from tests.kit.faults import Call, FaultyGateways, Pause, T
from tests.kit.orders import ADDRESS, steps_of
from tests.kit.pairs import case as parameters
from tests.kit.pairs import covering_all_pairs
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import (
    CHARGE,
    RESERVE,
    SHIP,
    Handle,
    RestartableWorker,
    act_as_step_ends,
    reconfigure,
    wait_for_retry_delay,
)

STOCK, QUANTITY, PRICE = 10, 3, 1_000
TABLE = {activity_name(step.activity): step for step in steps.STEPS}
STEPS = list(TABLE)
REVERSIBLE = [activity_name(step.activity) for step in steps.REVERSIBLE_STEPS]
COMPENSATION_OF = {name: activity_name(step.compensation) for name, step in TABLE.items() if step.compensation}


class StepFault(StrEnum):
    DECLINED = "declined"  # declined, not retried
    EXHAUSTED = "exhausted"  # fails until its retries are exhausted
    FLAKY = "flaky"  # fails three times, then succeeds
    TIMES_OUT = "times_out"  # takes effect, but the attempt times out
    REPLY_LOST = "reply_lost"  # takes effect, then the attempt fails
    WORKER_LOST = "worker_lost"  # takes effect, then the worker is lost
    NONE = "none"


class When(StrEnum):
    NEVER = "never"
    BEFORE = "before"  # as the step before it ends, or before the first workflow task
    RUNS = "runs"
    WAITS = "waits"  # between retries
    COMPENSATES = "compensates"  # during its compensation


class How(StrEnum):
    SIGNAL = "signal"
    TEMPORAL = "temporal"

    @property
    def other(self) -> How:
        return How.TEMPORAL if self is How.SIGNAL else How.SIGNAL


WITH_EFFECT = {StepFault.TIMES_OUT, StepFault.REPLY_LOST, StepFault.WORKER_LOST}
DECLINES: dict[
    str, tuple[str, dict[str, Any]]
] = {  # the failure code, and fields of an order that the sandbox declines
    RESERVE: ("out_of_stock", {"quantity": STOCK + 1}),
    CHARGE: ("payment_declined", {"payment_method": "pm_card_declined"}),
    SHIP: ("address_unserviceable", {"shipping_address": {**ADDRESS, "postal_code": "00000"}}),
}


@dataclass(frozen=True)
class Case:
    step: str
    fault: StepFault
    when: When
    how: How

    def __str__(self) -> str:
        return "-".join([self.step, self.fault, self.when, self.how])

    @property
    def later_decline(self) -> str | None:
        """The step whose decline causes the compensation of this one, if the fault itself does not."""
        if self.when is not When.COMPENSATES or self.fault is StepFault.DECLINED or self.step == REVERSIBLE[-1]:
            return None
        return STEPS[STEPS.index(self.step) + 1]

    @property
    def first_cancel(self) -> How | None:
        """The cancel that takes effect. Only a cancel compensates a successful shipment; `how` then comes second."""
        if self.when is When.COMPENSATES:
            for_cancel = self.step == REVERSIBLE[-1] and self.fault is not StepFault.DECLINED
            return self.how.other if for_cancel else None
        if self.step not in REVERSIBLE:  # only a signalled cancel is in MongoDB before the shipment
            return How.SIGNAL if (self.when, self.how) == (When.BEFORE, How.SIGNAL) else None
        return None if self.when is When.NEVER else self.how

    @property
    def declined(self) -> str | None:
        return self.step if self.fault is StepFault.DECLINED else self.later_decline

    @property
    def code(self) -> str | None:
        """The failure code that the order ends with."""
        if self.first_cancel:
            return "cancelled"
        if self.fault is StepFault.EXHAUSTED:
            return TABLE[self.step].timed_out.code
        return DECLINES.get(self.declined, (Declined.code,))[0] if self.declined else None

    @property
    def status(self) -> OrderStatus:
        if self.first_cancel:
            return OrderStatus.CANCELLED
        return OrderStatus.FAILED if self.code and self.step in REVERSIBLE else OrderStatus.COMPLETED


def cases() -> Iterator[Case]:
    for step in STEPS:
        # A cancel as the previous step ends. It is too late if that step is the shipment.
        yield from (Case(step, StepFault.NONE, When.BEFORE, how) for how in How)
        for fault in [t for t in StepFault if t is not StepFault.NONE]:
            if fault is StepFault.DECLINED and step not in REVERSIBLE:
                continue  # the sandbox never declines a confirmation
            yield Case(step, fault, When.NEVER, How.SIGNAL)
            if fault is StepFault.EXHAUSTED:
                continue  # with a cancel, it equals FLAKY
            for how in How:
                yield Case(step, fault, When.RUNS, how)
                retry_may_win = (step, fault, how) == (REVERSIBLE[-1], StepFault.WORKER_LOST, How.TEMPORAL)
                if fault is not StepFault.DECLINED and not retry_may_win:  # a declined step is not retried
                    yield Case(step, fault, When.WAITS, how)
                if step in REVERSIBLE:
                    yield Case(step, fault, When.COMPENSATES, how)


CASES = list(cases())
# Each cancel in the workflow task in which a step ends is a race of its own.
CHOSEN = covering_all_pairs([astuple(case) for case in CASES])
CHOSEN |= {astuple(case) for case in CASES if case.when is When.BEFORE}


class ScriptedFault:
    """Applies the fault of a case to the calls of its step. Blocks at the decisive point until `resume` is set."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._fails = 2.0 if case.when is When.WAITS else 0.0  # the third retry delay is long enough for the test
        if case.fault is StepFault.FLAKY:
            self._fails = 3.0
        if case.fault is StepFault.EXHAUSTED:
            self._fails = float("inf")
        self._calls = 0
        self.at_work = 0
        self.reached = asyncio.Event()
        self.resume = asyncio.Event()

    async def __call__(self, call: Call[T]) -> T:
        self._calls += 1
        self.at_work += 1
        try:
            return await self._answer(self._calls, call)
        finally:
            self.at_work -= 1

    async def _answer(self, nth: int, call: Call[T]) -> T:
        if nth <= self._fails:
            if (nth == 3 and self._case.when is When.WAITS) or self._case.fault is StepFault.EXHAUSTED:
                await self._block()
            raise Unavailable
        if nth > self._fails + 1:
            return await call()
        if self._case.fault in WITH_EFFECT:
            result = await call()
            await self._block()
            if self._case.fault is StepFault.REPLY_LOST:
                raise Unavailable
            return result
        await self._block()
        if self._case.fault is StepFault.DECLINED and self._case.step not in DECLINES:
            raise Declined("declined")
        return await call()

    async def _block(self) -> None:
        self.reached.set()
        await self.resume.wait()


async def _declines(call: Call[T]) -> T:
    raise Declined("declined")


class CaseRun:
    """Runs one case, and checks its outcome."""

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
                handle = await self._run_with_fault(restartable)
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
            handle = await act_as_step_ends(
                before, gateways, restartable, self._start, lambda handle: self._cancel(handle, self.case.how)
            )
        await self._end(handle)
        return handle

    async def _cancel(self, handle: Handle, how: How) -> None:
        """Cancel as the API does, which records the cancel first, or as Temporal's tools do."""
        if how is How.SIGNAL:
            order_id = handle.id.removeprefix(WORKFLOW_ID_PREFIX)
            await self.shop.workflows.start(await self.shop.orders.request_cancellation(order_id, None))
            return
        await handle.cancel()
        if self.case.fault is StepFault.WORKER_LOST and self.case.when is not When.WAITS and self.case.first_cancel:
            # Otherwise, the retry may ship before the workflow handles the cancel.
            await self.shop.wait_for_status(handle, OrderStatus.COMPENSATING, OrderStatus.CANCELLED)

    async def _run_with_fault(self, restartable: RestartableWorker) -> Handle:
        case, step = self.case, self.step
        handle = await self._start()
        await step.reached.wait()
        if case.when is When.RUNS:
            await self._cancel(handle, case.how)
        elif case.when is When.COMPENSATES and case.first_cancel:
            await self._cancel(handle, case.first_cancel)

        interrupted = case.first_cancel and case.when is not When.WAITS
        if case.fault is StepFault.WORKER_LOST:
            await restartable.stop()
        elif case.fault is StepFault.TIMES_OUT and not interrupted:
            await reconfigure(handle, case.step, attempt=timedelta(seconds=0.3))
        elif not interrupted:
            if case.fault is StepFault.EXHAUSTED:
                await reconfigure(handle, case.step, pause=TABLE[case.step].schedule_to_close / 15)
            step.resume.set()

        if case.when is When.WAITS:
            await wait_for_retry_delay(handle)
            await self._cancel(handle, case.how)
        if case.fault is StepFault.WORKER_LOST:
            restartable.start()
        if case.when is When.COMPENSATES:
            await self.compensation.reached.wait()
            await (handle.signal(OrderWorkflow.cancel) if case.how is How.SIGNAL else handle.cancel())
            self.compensation.resume.set()
        await self._end(handle)
        step.resume.set()  # a blocked attempt continues late, after all compensations
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
        entries = records(self.shop.mongo)
        parcel = await entries.find_one({"_id": f"shipment:{order.order_id}"}) or {}
        assert parcel.get("shipped", False) - parcel.get("called_off", False) == shipped
        payment = await entries.find_one({"_id": f"payment:{order.order_id}"}) or {}
        assert payment.get("captured", 0) in {0, order.total.amount}
        assert payment.get("refunded", 0) in {0, payment.get("captured", 0)}

    async def _check_workflow(self, handle: Handle) -> None:
        case = self.case
        description = await handle.describe()
        closed = WorkflowExecutionStatus.COMPLETED
        if case.step not in REVERSIBLE and case.fault is StepFault.EXHAUSTED:
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
        """Check that all steps are done, or that all are compensated up to the one with the fault."""
        states = list(steps_of(order).values())
        if self.case.status is OrderStatus.COMPLETED:
            assert states == ["done"] * (len(REVERSIBLE) if self.case.code else len(STEPS))
            return
        assert "done" not in states
        failed_index = STEPS.index(self.case.declined or self.case.step)
        assert states[:failed_index] == ["compensated"] * failed_index
        assert len(states) <= failed_index + 2  # of the later steps, at most the next is listed, as interrupted
        failed = [record.step for record in order.steps if record.failure]
        fails = self.case.declined is not None or self.case.fault is StepFault.EXHAUSTED
        assert bool(failed) == (fails and not self.case.first_cancel), order.steps


@pytest.fixture(scope="module")
async def runs(
    request: pytest.FixtureRequest, summary: Counter[str], mongod: Server, client: Client, skipper: TimeSkipper
) -> AsyncIterator[dict[Case, asyncio.Task[None]]]:
    """The tasks of all selected cases, started together."""
    selected: list[Case] = [
        cast(Case, item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    summary["cases of the failure matrix"] += len(selected)
    mongo = Mongo(mongod.address, "matrix", app_name="matrix")
    slots = asyncio.Semaphore(12)

    async def run(case: Case) -> None:
        settings = Settings(
            mongodb_uri=mongod.address, mongodb_database="matrix", task_queue=f"matrix-{case}", approval_threshold=10**9
        )
        # Skipped time would skip the retry delay during which the order is cancelled.
        starter = client if case.when is When.WAITS else skipper.client
        async with slots, asyncio.timeout(60):
            await CaseRun(case, Shop(mongo, settings, starter)).run()

    yield {case: asyncio.create_task(run(case)) for case in selected}
    await mongo.client.drop_database("matrix")
    mongo.close()


@pytest.mark.parametrize("case", [parameters(case, chosen=astuple(case) in CHOSEN) for case in CASES], ids=str)
async def test_order_with_fault_ends_with_correct_stock_and_money(
    case: Case, runs: dict[Case, asyncio.Task[None]]
) -> None:
    await runs[case]
