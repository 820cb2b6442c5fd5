"""The running sagas, as the API and the relay see them: start one, signal it, ask it.

Every call has an end: Temporal that does not answer within `CALL_TIMEOUT` seconds counts as away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError, TemporalError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from app.models import (
    AddressChange,
    ApprovalDecision,
    CancelRequest,
    Order,
    OrderInput,
    OrderProgress,
    OrderResult,
    OrderStatus,
)
from app.temporal import ORDER_STATUS
from app.workflows.order import OrderWorkflow

if TYPE_CHECKING:
    from app.settings import Settings

# Seconds.
START_TIMEOUT = 0.8  # a POST answers within a second; what was not started by then, the relay starts
CALL_TIMEOUT = 1.8  # an endpoint that asks Temporal answers within two
OUTCOME_TIMEOUT = 1.5  # for a worker to tell what came of a signal that Temporal has taken already


class SagaEnded(Exception):
    """The order's workflow has ended: it takes no signal any more."""


class SagaRefused(Exception):
    """The workflow's validator said no; the message says why."""


class TemporalUnavailable(Exception):
    """Temporal, or a worker that is needed for the answer, did not answer in time."""


def workflow_id(order_id: str) -> str:
    return f"order-{order_id}"


class Sagas:
    """Temporal, as far as orders go."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    async def start(self, order: Order, patience: float = START_TIMEOUT) -> None:
        """Start the order's saga. Starting it again does nothing, whether it runs or has ended.

        Raises:
            TemporalUnavailable
        """
        with suppress(SagaEnded):
            async with _answered_within(patience):
                await self._client.start_workflow(
                    OrderWorkflow.run,
                    self._input(order),
                    **self._options(order),
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                )

    async def cancel(self, order: Order, reason: str | None) -> OrderProgress | None:
        """Signal `cancel` and ask what came of it; None when there is no worker to tell.

        The signal starts the saga where it has not been started yet, so no accepted cancel is lost.

        Raises:
            SagaEnded, TemporalUnavailable
        """
        return await self._signal(order, "cancel", CancelRequest(reason=reason))

    async def approve(self, order: Order, decision: ApprovalDecision) -> OrderProgress | None:
        """Signal `approve` and ask what came of it; None when there is no worker to tell.

        Raises:
            SagaEnded, TemporalUnavailable
        """
        return await self._signal(order, "approve", decision)

    async def change_address(self, order: Order, change: AddressChange) -> None:
        """Update `change_shipping_address`; starts the saga where it has not been started yet.

        Raises:
            SagaRefused: too late.
            SagaEnded, TemporalUnavailable
        """
        async with _answered_within(CALL_TIMEOUT):
            await self.start(order)
            try:
                await self._handle(order.order_id).execute_update(
                    OrderWorkflow.change_shipping_address, change, id=change.change_id
                )
            except WorkflowUpdateFailedError as error:
                if isinstance(error.cause, ApplicationError):
                    raise SagaRefused(error.cause.message) from error
                raise
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    raise SagaEnded from error
                raise

    def workflow_url(self, order_id: str) -> str | None:
        """The workflow's page in Temporal's Web UI, where there is one."""
        if not self._settings.temporal_ui_url:
            return None
        namespace = f"{self._settings.temporal_ui_url.rstrip('/')}/namespaces/{self._client.namespace}"
        return f"{namespace}/workflows/{workflow_id(order_id)}"

    async def ping(self) -> None:
        """Raises: TemporalUnavailable."""
        async with _answered_within(CALL_TIMEOUT):
            await self._client.service_client.check_health()

    async def progress(self, order_id: str, patience: float = CALL_TIMEOUT) -> OrderProgress:
        """The workflow's own answer (query `status`).

        Raises:
            TemporalUnavailable: also where no workflow is known any more, or yet.
        """
        async with _answered_within(patience):
            return await self._handle(order_id).query(OrderWorkflow.status)

    async def attempt(self, order_id: str) -> int | None:
        """Which attempt of its step is running or waited for: the server counts them, the workflow does not know.

        Raises:
            TemporalUnavailable
        """
        async with _answered_within(CALL_TIMEOUT):
            description = await self._handle(order_id).describe()
        return max((activity.attempt for activity in description.raw_description.pending_activities), default=None)

    async def _signal(self, order: Order, signal: str, argument: object) -> OrderProgress | None:
        async with _answered_within(CALL_TIMEOUT):
            await self._client.start_workflow(
                OrderWorkflow.run,
                self._input(order),
                **self._options(order),
                start_signal=signal,
                start_signal_args=[argument],
            )
        try:
            return await self.progress(order.order_id, OUTCOME_TIMEOUT)
        except TemporalUnavailable:
            return None

    def _input(self, order: Order) -> OrderInput:
        not_approved_yet = order.status in {OrderStatus.PLACED, OrderStatus.AWAITING_APPROVAL}
        return OrderInput(
            order_id=order.order_id,
            needs_approval=not_approved_yet and order.total.amount >= self._settings.approval_threshold,
            approval_timeout=self._settings.approval_timeout,
            under_way=order.status is not OrderStatus.PLACED,
        )

    def _options(self, order: Order) -> dict[str, Any]:
        return {
            "id": workflow_id(order.order_id),
            "task_queue": self._settings.task_queue,
            "id_reuse_policy": WorkflowIDReusePolicy.REJECT_DUPLICATE,
            "search_attributes": TypedSearchAttributes([SearchAttributePair(ORDER_STATUS, OrderStatus.PLACED.value)]),
        }

    def _handle(self, order_id: str) -> WorkflowHandle[OrderWorkflow, OrderResult]:
        return self._client.get_workflow_handle_for(OrderWorkflow.run, workflow_id(order_id))


@asynccontextmanager
async def _answered_within(seconds: float) -> AsyncIterator[None]:
    """Puts an end to calls, and turns what the SDK raises into errors of ours.

    `rpc_timeout` would not do: it bounds each try of a call, neither their sum nor the first connection.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except WorkflowAlreadyStartedError as error:
        raise SagaEnded from error
    except (TemporalError, RuntimeError, TimeoutError) as error:  # RuntimeError: it was never reached yet
        raise TemporalUnavailable from error
