"""Access to the order workflows for the API and the relay: start, signal, update, query.

Every call has a deadline. If Temporal does not answer by then, it counts as unavailable.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from temporalio import common
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, TemporalError
from temporalio.service import RPCError, RPCStatusCode

from app import tracing
from app.attempts import PendingActivity
from app.domain import TERMINAL, Order
from app.messages import AddressChange, ApprovalDecision, OrderInput, OrderProgress, OrderResult
from app.names import WORKFLOW_ID_PREFIX
from app.settings import Settings
from app.temporal import IN_PROGRESS, ORDER_STATUS
from app.validation import IDENTIFIER
from app.workflows.order import OrderWorkflow

# Seconds.
START_TIMEOUT = 0.8  # a POST that waits for it answers within 1 s; the relay starts what was not started by then
CALL_TIMEOUT = 1.8  # an endpoint that calls Temporal answers within 2 s
LIST_TIMEOUT = 10.0  # of a page: listing all running workflows may take longer
LIST_PAGE = 1_000


class TemporalUnavailable(Exception):
    """Temporal did not answer in time."""


class NoWorker(TemporalUnavailable):
    """Temporal answered, but no worker did, which is needed for the answer."""


def workflow_id(order_id: str) -> str:
    return f"{WORKFLOW_ID_PREFIX}{order_id}"


class OrderWorkflows:
    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    async def start(self, order: Order, timeout: float = CALL_TIMEOUT) -> None:
        """Start the order's workflow unless it runs, and signal a cancel or an approval that is recorded.

        A workflow that was terminated, or whose order was removed and placed again, is started again: MongoDB knows
        which steps took effect. Repeated signals are harmless.

        Raises:
            TemporalUnavailable
        """
        tracing.resume(order.traceparent)
        signal: dict[str, Any] = {}
        if order.cancellation:
            signal = {"start_signal": "cancel"}
        elif order.approval:
            decision = ApprovalDecision(approved=order.approval.approved)
            signal = {"start_signal": "approve", "start_signal_args": [decision]}
        needs_approval = order.total.amount >= self._settings.approval_threshold
        timer = self._settings.approval_timeout
        desk = self._settings.order_desk_url.rstrip("/")
        async with _deadline(timeout):
            await self._client.start_workflow(
                OrderWorkflow.run,
                OrderInput(order_id=order.order_id, needs_approval=needs_approval, approval_timeout=timer),
                id=workflow_id(order.order_id),
                task_queue=self._settings.task_queue,
                id_conflict_policy=common.WorkflowIDConflictPolicy.USE_EXISTING,
                search_attributes=common.TypedSearchAttributes([common.SearchAttributePair(ORDER_STATUS, IN_PROGRESS)]),
                priority=common.Priority(fairness_key=_fairness_key(order.customer_id)),
                static_summary=f"{order.order_id}: products: {len(order.lines)}" + ", needs approval" * needs_approval,
                static_details=f"[Open the order]({desk}/#/orders/{order.order_id})" if desk else None,
                **signal,
            )

    async def change_address(self, order: Order, change: AddressChange) -> bool:
        """Send the update `change_shipping_address`; return False if shipping began first.

        Raises:
            TemporalUnavailable: also if the workflow closed meanwhile: the change may be applied all the same.
        """
        await self.start(order)
        async with _deadline(CALL_TIMEOUT, NoWorker):
            try:
                return await self._handle(order.order_id).execute_update(
                    OrderWorkflow.change_shipping_address, change, id=f"address-{change.number}"
                )
            except WorkflowUpdateFailedError as error:
                if not isinstance(error.cause, ApplicationError) or error.cause.type != "too_late":
                    raise  # not the validator's: for example, the workflow was terminated
            return False

    async def progress(self, order: Order) -> tuple[OrderProgress, list[PendingActivity]]:
        """Start a missing workflow; return its answer to the query `status`, and its pending activities.

        Raises:
            TemporalUnavailable
            NoWorker: also if the order is final, and Temporal does not know its workflow any more.
        """
        handle = self._handle(order.order_id)
        try:
            async with _deadline(CALL_TIMEOUT):
                description = await handle.describe()
        except NoWorker:
            if order.status in TERMINAL:
                raise
            await self.start(order)  # the API, or the relay, is about to
            async with _deadline(CALL_TIMEOUT):
                description = await handle.describe()
        async with _deadline(CALL_TIMEOUT, NoWorker):
            progress = await handle.query(OrderWorkflow.status)
        return progress, [PendingActivity.from_info(info) for info in description.raw_description.pending_activities]

    async def running(self, order_ids: Sequence[str] | None = None) -> set[str]:
        """Return the ids, among a few hundred or of all orders, whose workflow runs. Visibility lags a moment.

        Raises:
            TemporalUnavailable
        """
        query = f"ExecutionStatus = 'Running' AND TaskQueue = '{self._settings.task_queue}'"
        if order_ids is not None:
            # An id that is not an identifier has no workflow, and could change the meaning of the query.
            ids = [f"'{workflow_id(order_id)}'" for order_id in order_ids if re.fullmatch(IDENTIFIER, order_id)]
            if not ids:
                return set()
            query += f" AND WorkflowId IN ({', '.join(ids)})"
        found, running = self._client.list_workflows(query, page_size=LIST_PAGE), set[str]()
        while found.current_page is None or found.next_page_token:
            async with _deadline(LIST_TIMEOUT):
                await found.fetch_next_page()
            running |= {execution.id.removeprefix(WORKFLOW_ID_PREFIX) for execution in found.current_page or ()}
        return running

    def workflow_url(self, order_id: str) -> str | None:
        """Return the URL of the workflow in Temporal's Web UI, or None if that is not configured."""
        ui, namespace = self._settings.temporal_ui_url.rstrip("/"), self._client.namespace
        return f"{ui}/namespaces/{namespace}/workflows/{quote(workflow_id(order_id), safe='')}" if ui else None

    async def ping(self) -> None:
        """Raises: TemporalUnavailable: also if Temporal does not have the namespace."""
        request = DescribeNamespaceRequest(namespace=self._client.namespace)
        async with _deadline(CALL_TIMEOUT):
            await self._client.workflow_service.describe_namespace(request)

    def _handle(self, order_id: str) -> WorkflowHandle[OrderWorkflow, OrderResult]:
        return self._client.get_workflow_handle_for(OrderWorkflow.run, workflow_id(order_id))


def _fairness_key(customer_id: str) -> str:
    """Return one of 256 groups of customers, which take turns: those of one with many orders do not hold up the rest.

    The key is part of the history. So it must not identify the customer, as a hash of a guessable id would.
    """
    return sha256(customer_id.encode()).hexdigest()[:2]


@asynccontextmanager
async def _deadline(
    seconds: float, unavailable: type[TemporalUnavailable] = TemporalUnavailable
) -> AsyncIterator[None]:
    """Set a deadline for all calls in the block, and turn the SDK's errors into `unavailable`.

    `rpc_timeout` is not enough: it limits each attempt of a call, but neither their sum nor the first connection.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (TemporalError, RuntimeError, TimeoutError) as error:  # RuntimeError: never connected yet
        # A workflow that does not exist has yet to be started by the relay, which runs in the worker.
        is_missing = isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND
        raise (NoWorker if is_missing else unavailable) from error
