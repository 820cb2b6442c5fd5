"""Gateways that fail on cue, and the worker that uses them.

A fault is made where it would happen: in the gateway's call, which takes effect in the sandbox's books or does not, and
then answers, answers late, or never. An activity that calls no gateway has its fault at the report to Temporal.
Neither the workflow nor the activities know of it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import fields
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from temporalio import activity
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest, UpdateActivityOptionsRequest
from temporalio.client import WorkflowHandle
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from app.gateways import Gateways, Unavailable
from app.messages import OrderResult
from tests.support import Shop, build_shop_worker, eventually, sandbox_gateways

T = TypeVar("T")
Call = Callable[[], Awaitable[T]]
Handle = WorkflowHandle[Any, OrderResult]
Start = Callable[[], Awaitable[Handle]]

RESERVE, CHARGE, SHIP, CONFIRM = "ReserveInventory", "ChargePayment", "CreateShipment", "SendConfirmation"
RELEASE, REFUND, UNSHIP = "ReleaseInventory", "RefundPayment", "CancelShipment"
WITHOUT_GATEWAY = {RESERVE, RELEASE, "UpdateOrderStatus", "ChangeShippingAddress"}


class Fault(Protocol):
    """Stands between an activity and what it calls."""

    async def __call__(self, call: Call[T]) -> T: ...


class Fails:
    """The first calls fail without effect; all of them, if `times` is not given."""

    def __init__(self, times: float = float("inf")) -> None:
        self.times = times
        self.calls = 0

    async def __call__(self, call: Call[T]) -> T:
        self.calls += 1
        if self.calls <= self.times:
            raise Unavailable
        return await call()


class Pause:
    """The first call waits for `go_on`, before its effect or, if `done`, after it."""

    def __init__(self, *, done: bool = False) -> None:
        self._done = done
        self._calls = 0
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, call: Call[T]) -> T:
        self._calls += 1
        if self._calls > 1:
            return await call()
        if self._done:
            try:
                return await call()
            finally:
                await self._wait()
        await self._wait()
        return await call()

    async def _wait(self) -> None:
        self.reached.set()
        await self.go_on.wait()


class FaultyGateways(Interceptor):
    """The sandbox gateways for one worker; `faults` by the name of the activity that calls them."""

    def __init__(self, shop: Shop, **faults: Fault) -> None:
        self.shop = shop
        self.faults = faults
        bundle = sandbox_gateways(shop.mongo)
        faulty: dict[str, Any] = {each.name: _Faulty(getattr(bundle, each.name), faults) for each in fields(bundle)}
        self.gateways = Gateways(**faulty)

    def worker(self, **changes: Any) -> Worker:
        """The worker of `worker.py` with these gateways; `changes` are options of `temporalio.worker.Worker`."""
        options = {"interceptors": [self], "graceful_shutdown_timeout": timedelta(), **changes}
        return build_shop_worker(self.shop, self.gateways, **options)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _AtTheReport(next, self.faults)


class _Faulty:
    """A gateway whose every method meets the fault of the activity that calls it."""

    def __init__(self, gateway: object, faults: dict[str, Fault]) -> None:
        self._gateway = gateway
        self._faults = faults

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._gateway, name)

        async def call(*arguments: Any) -> Any:
            fault = self._faults.get(activity.info().activity_type)
            return await (fault(lambda: method(*arguments)) if fault else method(*arguments))

        return call


class _AtTheReport(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, faults: dict[str, Fault]) -> None:  # noqa: A002
        super().__init__(next)
        self._faults = faults

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        name = activity.info().activity_type
        fault = self._faults.get(name) if name in WITHOUT_GATEWAY else None
        run = super().execute_activity
        return await (fault(lambda: run(input)) if fault else run(input))


class RestartableWorker:
    """The worker of some gateways, which can be lost and replaced."""

    def __init__(self, gateways: FaultyGateways) -> None:
        self._gateways = gateways
        self._running: list[tuple[Worker, asyncio.Task[None]]] = []

    def start(self, **options: Any) -> None:
        worker = self._gateways.worker(**options)
        self._running.append((worker, asyncio.create_task(worker.run())))

    async def stop(self) -> None:
        """Stop the worker that was started last; what it is at is cut off."""
        worker, running = self._running.pop()
        await worker.shutdown()
        await running

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._running:
            await self.stop()


async def at_the_end_of(
    step: str,
    gateways: FaultyGateways,
    worker: RestartableWorker,
    start: Start,
    then: Callable[[Handle], Awaitable[None]],
) -> Handle:
    """Start an order, and do something so that its workflow learns of it together with the end of a step."""
    pause = Pause(done=True)
    gateways.faults[step] = pause
    worker.start(workflows=[])
    worker.start(activities=[])
    handle = await start()
    await pause.reached.wait()
    await worker.stop()
    await then(handle)
    pause.go_on.set()
    await eventually(lambda: pending(handle), lambda activities: not activities)
    worker.start(activities=[])
    return handle


# --- resets


async def reset_points(handle: Handle) -> list[int]:
    """The events to which the workflow can be reset: each end of a workflow task."""
    history = await handle.fetch_history()
    ended = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    return [event.event_id for event in history.events if event.event_type == ended]


async def reset(handle: Handle, event_id: int) -> None:
    """As `temporal workflow reset`: signals that came later are applied again."""
    request = ResetWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=WorkflowExecution(workflow_id=handle.id),
        reason="a test",
        workflow_task_finish_event_id=event_id,
        request_id=secrets.token_hex(8),
    )
    await handle._client.workflow_service.reset_workflow_execution(request)


# --- Temporal's side of a pending activity


async def pending(handle: Handle) -> list[PendingActivityInfo]:
    description = await handle.describe()
    return list(description.raw_description.pending_activities)


async def waits_to_retry(handle: Handle) -> None:
    """Wait until an attempt has failed and the next one is waited for."""

    def between(activities: list[PendingActivityInfo]) -> bool:
        return any(
            each.attempt > 1 and each.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
            for each in activities
        )

    await eventually(lambda: pending(handle), between)


async def reconfigure(
    handle: Handle, name: str, *, attempt: timedelta | None = None, pause: timedelta | None = None
) -> None:
    """Change the timeout of a pending activity's attempts, or the pauses between them, as an operator can."""
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
