"""The running sagas, as the API and the relay see them: start one, signal it, ask it.

Every call has an end: Temporal that does not answer within `CALL_TIMEOUT` counts as away.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

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

START_TIMEOUT = timedelta(
    seconds=0.8
)  # a POST answers within a second; what was not started by then, the relay starts
CALL_TIMEOUT = timedelta(seconds=2)

_ID_POLICIES: dict[str, Any] = {
    "id_reuse_policy": WorkflowIDReusePolicy.REJECT_DUPLICATE,
    "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
}


class SagaEnded(Exception):
    """The order's workflow has ended: it takes no signal any more."""


class SagaRefused(Exception):
    """The workflow's validator said no; the message says why."""


class TemporalUnavailable(Exception):
    """Temporal, or a worker that is needed for the answer, did not answer in time."""


def workflow_id(order_id: str) -> str:
    return f"order-{order_id}"


def workflow_url(temporal_ui_url: str, order_id: str) -> str | None:
    """The workflow's page in Temporal's Web UI, where there is one."""
    if not temporal_ui_url:
        return None
    return f"{temporal_ui_url.rstrip('/')}/namespaces/default/workflows/{workflow_id(order_id)}"


class Sagas:
    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    async def start(self, order: Order, patience: timedelta = START_TIMEOUT) -> None:
        """Start the order's saga. Starting it again does nothing, whether it runs or has ended.

        Raises:
            TemporalUnavailable
        """
        try:
            await self._client.start_workflow(
                OrderWorkflow.run,
                self._input(order),
                **self._options(order),
                **_ID_POLICIES,
                rpc_timeout=patience,
            )
        except WorkflowAlreadyStartedError:
            return  # it has ended
        except RPCError as error:
            raise TemporalUnavailable from error

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
        """Raises: SagaRefused (too late), TemporalUnavailable."""
        start: WithStartWorkflowOperation[OrderWorkflow, OrderResult] = WithStartWorkflowOperation(
            OrderWorkflow.run, self._input(order), **self._options(order), **_ID_POLICIES
        )
        try:
            await self._client.execute_update_with_start_workflow(
                OrderWorkflow.change_shipping_address,
                change,
                start_workflow_operation=start,
                id=change.change_id,
                rpc_timeout=CALL_TIMEOUT,
            )
        except WorkflowUpdateFailedError as error:
            raise SagaRefused(str(error.cause)) from error
        except WorkflowAlreadyStartedError as error:
            raise SagaRefused("the order has ended") from error
        except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
            raise TemporalUnavailable from error

    async def ping(self) -> None:
        """Raises: temporalio.service.RPCError, RuntimeError: Temporal cannot be reached."""
        await self._client.service_client.check_health(timeout=CALL_TIMEOUT)

    async def progress(self, order_id: str) -> OrderProgress:
        """The workflow's own answer (query `status`).

        Raises:
            TemporalUnavailable: also where no workflow is known any more, or yet.
        """
        try:
            return await self._handle(order_id).query(OrderWorkflow.status, rpc_timeout=CALL_TIMEOUT)
        except RPCError as error:
            raise TemporalUnavailable from error

    async def attempt(self, order_id: str) -> int | None:
        """Which attempt of its step is running or waited for: the server counts them, the workflow does not know."""
        try:
            description = await self._handle(order_id).describe(rpc_timeout=CALL_TIMEOUT)
        except RPCError as error:
            raise TemporalUnavailable from error
        return max(
            (activity.attempt for activity in description.raw_description.pending_activities), default=None
        )

    async def _signal(self, order: Order, signal: str, argument: object) -> OrderProgress | None:
        try:
            await self._client.start_workflow(
                OrderWorkflow.run,
                self._input(order),
                **self._options(order),
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                start_signal=signal,
                start_signal_args=[argument],
                rpc_timeout=CALL_TIMEOUT,
            )
        except WorkflowAlreadyStartedError as error:
            raise SagaEnded from error
        except RPCError as error:
            raise TemporalUnavailable from error
        try:
            return await self.progress(order.order_id)
        except TemporalUnavailable:
            return None

    def _input(self, order: Order) -> OrderInput:
        return OrderInput(
            order_id=order.order_id,
            needs_approval=order.total.amount >= self._settings.approval_threshold,
            approval_timeout=self._settings.approval_timeout,
        )

    def _options(self, order: Order) -> dict[str, Any]:
        return {
            "id": workflow_id(order.order_id),
            "task_queue": self._settings.task_queue,
            "search_attributes": TypedSearchAttributes(
                [SearchAttributePair(ORDER_STATUS, OrderStatus.PLACED.value)]
            ),
        }

    def _handle(self, order_id: str) -> WorkflowHandle[OrderWorkflow, OrderResult]:
        return self._client.get_workflow_handle_for(OrderWorkflow.run, workflow_id(order_id))
