"""The order workflows, as the API and the relay see them: start, signal, update, query.

Every call has a deadline: Temporal that does not answer by then counts as unavailable.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from temporalio import common
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, TemporalError
from temporalio.service import RPCError, RPCStatusCode

from app.domain import Order
from app.messages import AddressChange, ApprovalDecision, CancelRequest, OrderInput, OrderProgress, OrderResult
from app.settings import Settings
from app.temporal import IN_PROGRESS, ORDER_STATUS
from app.validation import IDENTIFIER
from app.workflows.order import OrderWorkflow

# Seconds.
START_TIMEOUT = 0.8  # a POST answers within a second; the relay starts what was not started by then
CALL_TIMEOUT = 1.8  # an endpoint that asks Temporal answers within two
LIST_TIMEOUT = 10.0
WORKFLOW_ID_PREFIX = "order-"


class TemporalUnavailable(Exception):
    """Temporal, or a worker that is needed for the answer, did not answer in time."""


def workflow_id(order_id: str) -> str:
    return f"{WORKFLOW_ID_PREFIX}{order_id}"


class OrderWorkflows:
    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    async def start(self, order: Order, timeout: float = CALL_TIMEOUT) -> None:
        """Start the order's workflow where it does not run, and signal it a cancel or an approval that is recorded.

        A workflow that was terminated, or whose order was removed and placed again, is started anew: MongoDB knows
        which steps took effect. Repeated signals do no harm.

        Raises:
            TemporalUnavailable
        """
        signal: dict[str, Any] = {}
        if order.cancellation:
            signal = {"start_signal": "cancel", "start_signal_args": [CancelRequest()]}
        elif order.approval:
            decision = ApprovalDecision(approved=order.approval.approved)
            signal = {"start_signal": "approve", "start_signal_args": [decision]}
        needs_approval = order.total.amount >= self._settings.approval_threshold
        timer = self._settings.approval_timeout
        async with _answered_within(timeout):
            await self._client.start_workflow(
                OrderWorkflow.run,
                OrderInput(order_id=order.order_id, needs_approval=needs_approval, approval_timeout=timer),
                id=workflow_id(order.order_id),
                task_queue=self._settings.task_queue,
                id_conflict_policy=common.WorkflowIDConflictPolicy.USE_EXISTING,
                search_attributes=common.TypedSearchAttributes([common.SearchAttributePair(ORDER_STATUS, IN_PROGRESS)]),
                **signal,
            )

    async def change_address(self, order: Order, change: AddressChange) -> bool:
        """Update `change_shipping_address`; False when shipping began first, or the workflow has closed.

        Raises:
            TemporalUnavailable
        """
        async with _answered_within(CALL_TIMEOUT):
            await self.start(order)
            try:
                return await self._handle(order.order_id).execute_update(
                    OrderWorkflow.change_shipping_address, change, id=f"address-{change.number}"
                )
            except WorkflowUpdateFailedError as error:
                if not isinstance(error.cause, ApplicationError):  # that of the validator
                    raise
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
            return False

    async def progress(self, order_id: str) -> tuple[OrderProgress, int | None]:
        """The workflow's own answer (query `status`), and the attempt that runs or is waited for.

        The server counts the attempts, the workflow does not know them.

        Raises:
            TemporalUnavailable: also where no workflow is known any more, or yet.
        """
        handle = self._handle(order_id)
        async with _answered_within(CALL_TIMEOUT):
            progress, description = await asyncio.gather(handle.query(OrderWorkflow.status), handle.describe())
        pending = description.raw_description.pending_activities
        return progress, max((activity.attempt for activity in pending), default=None)

    async def running(self, order_ids: Sequence[str] | None = None) -> set[str]:
        """The orders, or those among a few hundred, whose workflow runs. From Temporal's visibility, a moment late.

        Raises:
            TemporalUnavailable
        """
        query = f"ExecutionStatus = 'Running' AND TaskQueue = '{self._settings.task_queue}'"
        if order_ids is not None:
            # One that is no identifier has no workflow, and could say anything within the query.
            ids = [f"'{workflow_id(order_id)}'" for order_id in order_ids if re.fullmatch(IDENTIFIER, order_id)]
            if not ids:
                return set()
            query += f" AND WorkflowId IN ({', '.join(ids)})"
        async with _answered_within(LIST_TIMEOUT):
            found = self._client.list_workflows(query, page_size=1_000)
            return {execution.id.removeprefix(WORKFLOW_ID_PREFIX) async for execution in found}

    def workflow_url(self, order_id: str) -> str | None:
        """The workflow's page in Temporal's Web UI, where there is one."""
        ui, namespace = self._settings.temporal_ui_url.rstrip("/"), self._client.namespace
        return f"{ui}/namespaces/{namespace}/workflows/{workflow_id(order_id)}" if ui else None

    async def ping(self) -> None:
        """Raises: TemporalUnavailable."""
        async with _answered_within(CALL_TIMEOUT):
            await self._client.service_client.check_health()

    def _handle(self, order_id: str) -> WorkflowHandle[OrderWorkflow, OrderResult]:
        return self._client.get_workflow_handle_for(OrderWorkflow.run, workflow_id(order_id))


@asynccontextmanager
async def _answered_within(seconds: float) -> AsyncIterator[None]:
    """A deadline over all calls; turns the SDK's errors into `TemporalUnavailable`.

    `rpc_timeout` would not do: it bounds each try of a call, neither their sum nor the first connection.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (TemporalError, RuntimeError, TimeoutError) as error:  # RuntimeError: never connected yet
        raise TemporalUnavailable from error
