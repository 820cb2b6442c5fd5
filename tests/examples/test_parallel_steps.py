"""Two steps run in parallel; after a failure or a cancel, both are compensated, each after its last attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

from examples.parallel_steps import PrepareOrderWorkflow, Services
from tests.kit.waiting import eventually
from tests.replay.histories import replayer
from worker import SANDBOX

STEPS, COMPENSATIONS = {"reserve", "charge"}, {"release", "refund"}
BOTH_COMPENSATED = {"reserve": "compensated", "charge": "compensated"}
Handle = WorkflowHandle[PrepareOrderWorkflow, None]


class Faults:
    """Holds calls until `resume` is set, declines them, or fails them with the next attempt an hour away."""

    def __init__(
        self, *, held: Sequence[str] = (), declined: Sequence[str] = (), unavailable: Sequence[str] = ()
    ) -> None:
        self._held, self._declined, self._unavailable = held, declined, unavailable
        self.resume = asyncio.Event()
        self.log: list[str] = []

    async def respond(self, name: str, _: str) -> None:
        self.log.append(f"{name} begins")
        if name in self._held:
            await self.resume.wait()
        self.log.append(f"{name} ends")
        if name in self._declined:
            raise ApplicationError("declined", non_retryable=True, category=ApplicationErrorCategory.BENIGN)
        if name in self._unavailable:
            delay = timedelta(hours=1)
            raise ApplicationError("down", next_retry_delay=delay, category=ApplicationErrorCategory.BENIGN)

    async def reach(self, *lines: str) -> None:
        async def log() -> list[str]:
            return self.log

        await eventually(log, lambda log: {*lines} <= {*log})

    def assert_compensated_after_steps(self) -> None:
        first = min(self.log.index(f"{name} begins") for name in COMPENSATIONS)
        assert not [line for line in self.log[first:] if line.split()[0] in STEPS]


@asynccontextmanager
async def order(client: Client, task_queue: str, faults: Faults, **options: Any) -> AsyncIterator[tuple[Handle, Any]]:
    """Start an order and a worker; afterwards, replay the history."""
    services = Services(faults.respond)
    activities = [services.reserve, services.release, services.charge, services.refund]
    workflows = [PrepareOrderWorkflow]
    async with Worker(
        client, task_queue=task_queue, workflows=workflows, activities=activities, workflow_runner=SANDBOX, **options
    ):
        handle = await client.start_workflow(
            PrepareOrderWorkflow.run,
            task_queue,
            id=task_queue,
            task_queue=task_queue,
            task_timeout=timedelta(seconds=5),
        )
        yield handle, services.records[task_queue]
    await replayer(PrepareOrderWorkflow).replay_workflow(await handle.fetch_history())


async def count(handle: Handle, event_type: EventType.ValueType) -> int:
    return sum(event.event_type == event_type for event in (await handle.fetch_history()).events)


async def wait_for_cancel_requests(handle: Handle, number: int) -> None:
    """Wait until the workflow has asked `number` activities to cancel."""
    requested = EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED
    await eventually(lambda: count(handle, requested), lambda seen: seen == number)


async def outcome(handle: Handle) -> WorkflowExecutionStatus | None:
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    return (await handle.describe()).status


async def test_run_order_without_failure_keeps_both_steps(client: Client, task_queue: str) -> None:
    async with order(client, task_queue, Faults()) as (handle, records):
        await handle.result()
        assert records == {"reserve": "done", "charge": "done"}


async def test_decline_while_other_step_is_in_flight_compensates_both_after_it(client: Client, task_queue: str) -> None:
    """Without a cache, each workflow task replays the history, and evicts the workflow."""
    faults = Faults(declined=["charge"], held=["reserve"])
    async with order(client, task_queue, faults, max_cached_workflows=0) as (handle, records):
        await faults.reach("reserve begins")
        await wait_for_cancel_requests(handle, 1)
        faults.resume.set()
        assert await outcome(handle) is WorkflowExecutionStatus.FAILED
        assert records == BOTH_COMPENSATED
    faults.assert_compensated_after_steps()


async def test_decline_while_other_step_waits_for_retry_ends_its_retries(client: Client, task_queue: str) -> None:
    faults = Faults(declined=["charge"], held=["charge"], unavailable=["reserve"])
    async with order(client, task_queue, faults) as (handle, records):
        await faults.reach("reserve ends")
        faults.resume.set()
        assert await outcome(handle) is WorkflowExecutionStatus.FAILED
        assert records == BOTH_COMPENSATED


async def test_cancel_while_both_steps_are_in_flight_compensates_both_after_them(
    client: Client, task_queue: str
) -> None:
    faults = Faults(held=["reserve", "charge"])
    async with order(client, task_queue, faults, max_cached_workflows=0) as (handle, records):
        await faults.reach("reserve begins", "charge begins")
        await handle.cancel()
        await wait_for_cancel_requests(handle, 2)
        faults.resume.set()
        assert await outcome(handle) is WorkflowExecutionStatus.CANCELED
        assert records == BOTH_COMPENSATED
    faults.assert_compensated_after_steps()


@pytest.mark.parametrize("held", ["reserve", "release"])
async def test_cancel_after_decline_does_not_interrupt_compensations(
    client: Client, task_queue: str, held: str
) -> None:
    """It arrives while the other step is waited for, or while a compensation runs."""
    faults = Faults(declined=["charge"], held=[held])
    async with order(client, task_queue, faults) as (handle, records):
        await faults.reach(f"{held} begins")
        if held == "reserve":
            await wait_for_cancel_requests(handle, 1)
        tasks = await count(handle, EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
        await handle.cancel()
        handled = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        await eventually(lambda: count(handle, handled), lambda seen: seen > tasks)
        faults.resume.set()
        assert await outcome(handle) is WorkflowExecutionStatus.FAILED
        assert records == BOTH_COMPENSATED
        completed = EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        assert await count(handle, completed) == 3, "the workflow ended before reserve, release and refund"


async def test_late_attempt_after_compensation_is_refused() -> None:
    services, environment = Services(Faults().respond), ActivityEnvironment()
    await environment.run(services.release, "order-1")
    with pytest.raises(ApplicationError, match="compensated before"):
        await environment.run(services.reserve, "order-1")
    assert services.records["order-1"] == {"reserve": "compensated"}
