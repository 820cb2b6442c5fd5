"""The failure matrix: whatever goes wrong with a step, and whenever the order is cancelled meanwhile, by signal or by
Temporal, it ends with stock and money right (G3 to G7).

One case is one order with its own article, worker and faults. All cases run at once, most of their time skipped.
"""

from __future__ import annotations

import asyncio
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

from app.models import Order, OrderProgress, OrderResult, OrderStatus
from app.mongo import Mongo
from app.settings import Settings
from app.workflows.order import OrderWorkflow
from dev.servers import Server
from tests.support import ADDRESS, SUMMARY, Shop, eventually, steps_of
from tests.workflows.faults import (
    CHARGE,
    CONFIRM,
    REFUND,
    RELEASE,
    RESERVE,
    SHIP,
    UNSHIP,
    Call,
    Handle,
    Hands,
    Pause,
    Services,
    T,
    Unavailable,
    at_the_end_of,
    reconfigure,
    waits_to_retry,
)

STOCK, PIECES, PRICE = 10, 3, 1_000
STEPS = [RESERVE, CHARGE, SHIP, CONFIRM]
UNDO_OF = {RESERVE: RELEASE, CHARGE: REFUND, SHIP: UNSHIP}


class Trouble(StrEnum):
    REFUSED = "refused"  # a final no, not tried again
    IN_VAIN = "in_vain"  # fails until its retries run out
    FLAKY = "flaky"  # fails three times, then works
    TIMES_OUT = "times_out"  # happens, but the attempt does not end in time
    REPLY_LOST = "reply_lost"  # happens, and then the attempt fails
    WORKER_LOST = "worker_lost"  # happens, and then the worker is gone
    NONE = "none"


class When(StrEnum):
    NEVER = "never"
    BEFORE = "before"  # together with the end of the step before it; before the first workflow task
    RUNS = "runs"
    WAITS = "waits"  # to try again
    UNDO = "undo"  # while it is undone


class How(StrEnum):
    SIGNAL = "signal"
    TEMPORAL = "temporal"

    @property
    def other(self) -> How:
        return How.TEMPORAL if self is How.SIGNAL else How.SIGNAL


HAPPENS = {Trouble.TIMES_OUT, Trouble.REPLY_LOST, Trouble.WORKER_LOST}
REFUSALS: dict[str, tuple[str, dict[str, Any]]] = {  # the failure code of each, and the order that meets it
    RESERVE: ("out_of_stock", {"pieces": STOCK + 1}),
    CHARGE: ("payment_declined", {"payment_method": "pm_card_declined"}),
    SHIP: ("address_unserviceable", {"shipping_address": {**ADDRESS, "postal_code": "00000"}}),
}
OUT_OF_TIME = {
    RESERVE: "inventory_unavailable",
    CHARGE: "payment_unavailable",
    SHIP: "shipping_unavailable",
    CONFIRM: "confirmation_not_sent",
}


# Between the tries of `in_vain`: even with skipped time, hundreds of them would take a minute.
LONG_PAUSE = {
    RESERVE: timedelta(seconds=20),
    CHARGE: timedelta(minutes=1),
    SHIP: timedelta(hours=2),
    CONFIRM: timedelta(hours=12),
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
    def later_refusal(self) -> str | None:
        """The step whose refusal makes this one be undone, when the trouble itself does not."""
        if self.when is not When.UNDO or self.trouble is Trouble.REFUSED:
            return None
        return {RESERVE: CHARGE, CHARGE: SHIP}.get(self.step)

    @property
    def first_cancel(self) -> How | None:
        """The cancel that counts. A shipment that succeeds is undone only for a cancel; the second one is `how`."""
        if self.when is When.UNDO:
            undone_for_cancel = self.step == SHIP and self.trouble is not Trouble.REFUSED
            return self.how.other if undone_for_cancel else None
        too_late = self.step == CONFIRM and self.when is not When.BEFORE
        return None if self.when is When.NEVER or too_late else self.how

    @property
    def refused(self) -> str | None:
        return self.step if self.trouble is Trouble.REFUSED else self.later_refusal

    @property
    def code(self) -> str | None:
        """The failure code that the order ends with."""
        if self.first_cancel:
            return "cancelled"
        if self.trouble is Trouble.IN_VAIN:
            return OUT_OF_TIME[self.step]
        return REFUSALS[self.refused][0] if self.refused else None

    @property
    def status(self) -> OrderStatus:
        if self.first_cancel:
            return OrderStatus.CANCELLED
        return OrderStatus.FAILED if self.code and self.step != CONFIRM else OrderStatus.COMPLETED


def cases() -> Iterator[Case]:
    for step in STEPS:
        # A cancel before the step: it never runs, so there is no trouble with it.
        yield from (Case(step, Trouble.NONE, When.BEFORE, how) for how in How)
        for trouble in [t for t in Trouble if t is not Trouble.NONE]:
            if trouble is Trouble.REFUSED and step == CONFIRM:
                continue  # nobody refuses a confirmation
            yield Case(step, trouble, When.NEVER, How.SIGNAL)
            if trouble is Trouble.IN_VAIN:
                continue  # but for its end, it is flaky
            for how in How:
                yield Case(step, trouble, When.RUNS, how)
                if trouble is not Trouble.REFUSED:  # what is refused is not tried again
                    yield Case(step, trouble, When.WAITS, how)
                if step != CONFIRM:  # a confirmation is not undone
                    yield Case(step, trouble, When.UNDO, how)


class Troubled:
    """The calls of the step in trouble. Where something is to happen meanwhile, a call waits for `go_on`."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._fails = 2.0 if case.when is When.WAITS else 0.0  # a third pause is long enough to be hit
        if case.trouble is Trouble.FLAKY:
            self._fails = 3.0
        if case.trouble is Trouble.IN_VAIN:
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
            if (nth == 3 and self._case.when is When.WAITS) or self._case.trouble is Trouble.IN_VAIN:
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
        return await call()

    async def _here(self) -> None:
        self.reached.set()
        await self.go_on.wait()


async def cancel(handle: Handle, how: How) -> None:
    await (handle.signal(OrderWorkflow.cancel) if how is How.SIGNAL else handle.cancel())


class Play:
    """One case, from the order to its end."""

    def __init__(self, case: Case, shop: Shop) -> None:
        self.case = case
        self.shop = shop
        self.sku = str(case)
        self.step = Troubled(case)
        self.undo = Pause()

    async def run(self) -> None:
        case = self.case
        await self.shop.stock(self.sku, STOCK, PRICE)
        services = Services(self.shop)
        async with Hands(services) as hands:
            if case.when is When.BEFORE:
                handle = await self._cancelled_before(services, hands)
            else:
                services.faults[case.step] = self.step
                if case.when is When.UNDO:
                    services.faults[UNDO_OF[case.step]] = self.undo
                hands.start()
                handle = await self._in_trouble(hands)
            await self._check(handle)

    async def _start(self) -> Handle:
        changes = dict(REFUSALS[self.case.refused][1]) if self.case.refused else {}
        lines = {self.sku: changes.pop("pieces", PIECES)}
        return await self.shop.start(lines, price=PRICE, **changes)

    async def _cancelled_before(self, services: Services, hands: Hands) -> Handle:
        if self.case.step == RESERVE:
            handle = await self._start()
            await cancel(handle, self.case.how)
            hands.start()
        else:
            before = STEPS[STEPS.index(self.case.step) - 1]
            handle = await at_the_end_of(
                before, services, hands, self._start, lambda handle: cancel(handle, self.case.how)
            )
        await self._end(handle)
        return handle

    async def _in_trouble(self, hands: Hands) -> Handle:
        case, step = self.case, self.step
        handle = await self._start()
        await step.reached.wait()
        if case.when is When.RUNS:
            await cancel(handle, case.how)
        elif case.when is When.UNDO and case.first_cancel:
            await cancel(handle, case.first_cancel)

        interrupted = case.first_cancel and case.when is not When.WAITS
        if case.trouble is Trouble.WORKER_LOST:
            await hands.stop()
        elif case.trouble is Trouble.TIMES_OUT and not interrupted:
            await reconfigure(handle, case.step, attempt=timedelta(seconds=0.3))
        elif not interrupted:
            if case.trouble is Trouble.IN_VAIN:
                await reconfigure(handle, case.step, pause=LONG_PAUSE[case.step])
            step.go_on.set()

        if case.when is When.WAITS:
            await waits_to_retry(handle)
            await cancel(handle, case.how)
        if case.trouble is Trouble.WORKER_LOST:
            hands.start()
        if case.when is When.UNDO:
            await self.undo.reached.wait()
            await cancel(handle, case.how)
            self.undo.go_on.set()
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
        assert await self.shop.held(self.sku) == (PIECES if shipped else 0)
        assert await self.shop.net_money(order.order_id) == (order.total.amount if shipped else 0)
        books = self.shop.mongo.sandbox
        parcel = await books.find_one({"_id": f"shipment:{order.order_id}"}) or {}
        assert parcel.get("shipped", False) - parcel.get("called_off", False) == shipped
        payment = await books.find_one({"_id": f"payment:{order.order_id}"}) or {}
        assert payment.get("captured", 0) in {0, order.total.amount}
        assert payment.get("refunded", 0) in {0, payment.get("captured", 0)}
        for entries in [self.shop.mongo.payments, self.shop.mongo.shipments]:  # no door is left open
            entry = await entries.find_one({"_id": order.order_id})
            assert entry is None or entry["state"] != "pending"

    async def _check_workflow(self, handle: Handle) -> None:
        case = self.case
        description = await handle.describe()
        closed = WorkflowExecutionStatus.COMPLETED
        if case.step == CONFIRM and case.trouble is Trouble.IN_VAIN:
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
        """It tells the story: all done, or what was done before is undone and nothing is left as done."""
        steps = list(steps_of(order).values())
        if self.case.status is OrderStatus.COMPLETED:
            done = 3 if self.case.code else 4
            assert steps == ["done"] * done
            return
        assert "done" not in steps
        trouble_at = STEPS.index(self.case.refused or self.case.step)
        assert steps[:trouble_at] == ["undone"] * trouble_at
        assert all(status == "failed" for status in steps[trouble_at + 1 :])


@pytest.fixture(scope="module")
async def plays(
    request: pytest.FixtureRequest, mongod: Server, client: Client, skipper: TimeSkipper
) -> AsyncIterator[dict[Case, asyncio.Task[None]]]:
    """All chosen cases, begun at once."""
    chosen: list[Case] = [
        cast(Case, item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    request.config.stash[SUMMARY].append(f"failure matrix: {len(chosen)} cases")
    mongo = Mongo(mongod.address, "matrix", app_name="matrix")
    at_once = asyncio.Semaphore(12)

    async def play(case: Case) -> None:
        settings = Settings(
            mongodb_uri=mongod.address,
            mongodb_database="matrix",
            task_queue=f"matrix-{case}",
            approval_threshold=10**9,
        )
        # A pause that an order is to be cancelled in would be skipped: it passes in real time.
        starter = client if case.when is When.WAITS else skipper.client
        async with at_once, asyncio.timeout(60):
            await Play(case, Shop(mongo, settings, starter)).run()

    yield {case: asyncio.create_task(play(case)) for case in chosen}
    await mongo.client.drop_database("matrix")
    mongo.close()


@pytest.mark.parametrize("case", list(cases()), ids=str)
async def test_every_order_ends_with_stock_and_money_right(case: Case, plays: dict[Case, asyncio.Task[None]]) -> None:
    await plays[case]
