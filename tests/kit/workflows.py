"""Control order workflows from outside: workers, resets and pending activities."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Self

from google.protobuf.field_mask_pb2 import FieldMask
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    PauseActivityRequest,
    ResetWorkflowExecutionRequest,
    UpdateActivityOptionsRequest,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from app.messages import OrderResult
from app.workflows.steps import STEPS, activity_name
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.waiting import eventually

Handle = WorkflowHandle[Any, OrderResult]
Start = Callable[[], Awaitable[Handle]]
RESERVE, CHARGE, SHIP, CONFIRM = "ReserveInventory", "ChargePayment", "CreateShipment", "SendConfirmation"
RELEASE, REFUND, UNSHIP = "ReleaseInventory", "RefundPayment", "CancelShipment"
ACTIVITIES = [activity_name(step.activity) for step in STEPS]
COMPENSATIONS = [activity_name(step.compensation) for step in reversed(STEPS) if step.compensation]  # as they run


class RestartableWorker:
    """A worker that can be stopped and replaced."""

    def __init__(self, gateways: FaultyGateways) -> None:
        self._gateways = gateways
        self._running: list[tuple[Worker, asyncio.Task[None]]] = []

    def start(self, **options: Any) -> None:
        worker = self._gateways.worker(**options)
        self._running.append((worker, asyncio.create_task(worker.run())))

    async def stop(self) -> None:
        """Stop the worker that was started last. Its running activities are cut off."""
        worker, running = self._running.pop()
        await worker.shutdown()
        await running

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._running:
            await self.stop()


async def act_as_step_ends(
    step: str,
    gateways: FaultyGateways,
    worker: RestartableWorker,
    start: Start,
    then: Callable[[Handle], Awaitable[None]],
) -> Handle:
    """Start an order and call `then`, so that one workflow task delivers both its effect and the end of a step."""
    pause = Pause(done=True)
    gateways.faults[step] = pause
    worker.start(workflows=[])
    worker.start(activities=[])
    handle = await start()
    await pause.reached.wait()
    await worker.stop()
    await then(handle)
    pause.resume.set()
    await eventually(lambda: pending(handle), lambda activities: not activities)
    worker.start(activities=[])
    return handle


async def reset_points(handle: Handle) -> list[int]:
    """The ids of the events to which the workflow can be reset: each completed workflow task."""
    history = await handle.fetch_history()
    ended = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    return [event.event_id for event in history.events if event.event_type == ended]


async def reset(handle: Handle, event_id: int) -> None:
    """Reset the workflow as `temporal workflow reset` does: later signals are applied again."""
    request = ResetWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=handle.run_id or ""),
        reason="a test",
        workflow_task_finish_event_id=event_id,
        request_id=secrets.token_hex(8),
    )
    await handle._client.workflow_service.reset_workflow_execution(request)


async def pending(handle: Handle) -> list[PendingActivityInfo]:
    description = await handle.describe()
    return list(description.raw_description.pending_activities)


async def wait_for_retry_delay(handle: Handle) -> None:
    """Wait until an attempt has failed and the next one is scheduled."""

    def between(activities: list[PendingActivityInfo]) -> bool:
        return any(
            each.attempt > 1 and each.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
            for each in activities
        )

    await eventually(lambda: pending(handle), between)


async def reconfigure(
    handle: Handle, name: str, *, attempt: timedelta | None = None, pause: timedelta | None = None
) -> None:
    """Change the start-to-close timeout or the retry delay of a pending activity, as an operator can."""
    options, paths = ActivityOptions(), []
    if attempt is not None:
        options.start_to_close_timeout.FromTimedelta(attempt)
        paths.append("start_to_close_timeout")
    if pause is not None:
        options.retry_policy.initial_interval.FromTimedelta(pause)
        options.retry_policy.maximum_interval.FromTimedelta(pause)
        paths += ["retry_policy.initial_interval", "retry_policy.maximum_interval"]
    request = UpdateActivityOptionsRequest(
        namespace="default",
        execution=WorkflowExecution(workflow_id=handle.id),
        type=name,
        activity_options=options,
        update_mask=FieldMask(paths=paths),
    )
    service = handle._client.workflow_service
    await service.update_activity_options(request)


async def pause(handle: Handle, name: str) -> None:
    """Pause a pending activity, as an operator can."""
    execution = WorkflowExecution(workflow_id=handle.id)
    request = PauseActivityRequest(namespace="default", execution=execution, type=name)
    await handle._client.workflow_service.pause_activity(request)


async def activities_of(handle: Handle) -> list[str]:
    """The activities of steps and compensations that the workflow scheduled, in sequence."""
    history = await handle.fetch_history()
    names = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    return [name for name in names if name != "UpdateOrderStatus"]


async def delete_workflow(client: Client, handle: Handle) -> None:
    """Delete the workflow with its history, as if Temporal had lost its data."""
    request = DeleteWorkflowExecutionRequest(
        namespace=client.namespace, workflow_execution=WorkflowExecution(workflow_id=handle.id)
    )
    await client.workflow_service.delete_workflow_execution(request)

    async def is_lost() -> bool:
        try:
            await handle.describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await eventually(is_lost)
