"""Services that go wrong on cue, and the worker that uses them.

A fault is made where it would happen. Payment, carrier and mail: a call has its effect in the sandbox's books or has
not, and then its answer comes, comes late, or never. The reservation is our own transaction, so there it is the report
of it to Temporal that is lost or late. Nothing of this is known to the workflow or the activities.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from temporalio import activity
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import UpdateActivityOptionsRequest
from temporalio.client import WorkflowHandle
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    Worker,
)

from app.gateways.sandbox import GatewayUnavailable, SandboxCarrier, SandboxMailer, SandboxPayments
from app.models import Address, Money, Order, OrderResult
from tests.support import Shop, build_shop_worker, eventually

T = TypeVar("T")
Call = Callable[[], Awaitable[T]]
Handle = WorkflowHandle[Any, OrderResult]
Start = Callable[[], Awaitable[Handle]]

RESERVE, CHARGE, SHIP, CONFIRM = "ReserveInventory", "ChargePayment", "CreateShipment", "SendConfirmation"
RELEASE, REFUND, UNSHIP = "ReleaseInventory", "RefundPayment", "CancelShipment"


class Fault(Protocol):
    """Stands between an activity and what it calls."""

    async def __call__(self, call: Call[T]) -> T: ...


class Unavailable(GatewayUnavailable):
    """Nothing happened, or nobody knows: the call is made again."""


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
            result = await call()
            await self._wait()
            return result
        await self._wait()
        return await call()

    async def _wait(self) -> None:
        self.reached.set()
        await self.go_on.wait()


class Services(Interceptor):
    """Payment, carrier and mail for one worker; `faults` by the name of the activity that they befall."""

    def __init__(self, shop: Shop, **faults: Fault) -> None:
        self.shop = shop
        self.faults = faults
        self._payments = SandboxPayments(shop.mongo.sandbox)
        self._carrier = SandboxCarrier(shop.mongo.sandbox)
        self._mailer = SandboxMailer(shop.mongo.sandbox)

    def worker(self, **changes: Any) -> Worker:
        """The worker of `worker.py` with these services; `changes` are options of `temporalio.worker.Worker`."""
        options = {"interceptors": [self], "graceful_shutdown_timeout": timedelta(), **changes}
        return build_shop_worker(self.shop, payments=self, carrier=_Carrier(self), mailer=self, **options)

    async def _call(self, name: str, call: Call[T]) -> T:
        fault = self.faults.get(name)
        return await (fault(call) if fault else call())

    async def charge(self, key: str, amount: Money, payment_method: str) -> str:
        return await self._call(CHARGE, lambda: self._payments.charge(key, amount, payment_method))

    async def refund(self, key: str) -> bool:
        return await self._call(REFUND, lambda: self._payments.refund(key))

    async def ship(self, key: str, address: Address) -> str:
        return await self._call(SHIP, lambda: self._carrier.ship(key, address))

    async def unship(self, key: str) -> bool:
        return await self._call(UNSHIP, lambda: self._carrier.cancel(key))

    async def send_confirmation(self, key: str, order: Order) -> None:
        await self._call(CONFIRM, lambda: self._mailer.send_confirmation(key, order))

    # As the worker's interceptor, for the activities that call no service.

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _AtTheReport(next, self)


class _Carrier:
    def __init__(self, services: Services) -> None:
        self._services = services
        self.ship = services.ship
        self.cancel = services.unship


class _AtTheReport(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, services: Services) -> None:  # noqa: A002
        super().__init__(next)
        self._faults = services.faults

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        name = activity.info().activity_type
        fault = self._faults.get(name) if name in {RESERVE, RELEASE} else None
        run = super().execute_activity
        return await (fault(lambda: run(input)) if fault else run(input))


class Hands:
    """The worker of some services, which can be lost and replaced."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: list[tuple[Worker, asyncio.Task[None]]] = []

    def start(self, **options: Any) -> None:
        worker = self._services.worker(**options)
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
    step: str, services: Services, hands: Hands, start: Start, then: Callable[[Handle], Awaitable[None]]
) -> Handle:
    """Start an order, and do something so that its workflow learns of it together with the end of a step."""
    pause = Pause()
    services.faults[step] = pause
    hands.start(workflows=[])
    hands.start(activities=[])
    handle = await start()
    await pause.reached.wait()
    await hands.stop()
    await then(handle)
    pause.go_on.set()
    await eventually(lambda: pending(handle), lambda activities: not activities)
    hands.start(activities=[])
    return handle


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
    handle: Handle,
    name: str,
    *,
    attempt: timedelta | None = None,
    pause: timedelta | None = None,
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
