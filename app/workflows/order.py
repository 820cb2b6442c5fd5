"""The order saga, top to bottom.

    approval (of a large order) -> reserve -> charge -> ship -> confirm

Until the shipment exists, a failure or a cancel undoes what took effect, or may have. Temporal owns the progress,
MongoDB owns the order: through here come only its id and decisions, nothing personal.
"""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from app.activities.shipping import Shipping
    from app.activities.tracking import Tracking
    from app.models import (
        CANCELLABLE,
        AddressChange,
        ApprovalDecision,
        CancelRequest,
        Failure,
        OrderInput,
        OrderMark,
        OrderProgress,
        OrderRef,
        OrderResult,
        OrderStatus,
    )
    from app.temporal import ORDER_STATUS
    from app.workflows.saga import Saga, uninterrupted
    from app.workflows.steps import (
        ADDRESS_CHANGE_IN_ALL,
        CHARGE_PAYMENT,
        CREATE_SHIPMENT,
        ENDLESS,
        RESERVE_INVENTORY,
        SEND_CONFIRMATION,
        SHIPMENT_STEPS,
        SHORT_ATTEMPT,
        Step,
    )


@workflow.defn
class OrderWorkflow:
    """One order, from placed to completed, failed or cancelled."""

    @workflow.init
    def __init__(self, order: OrderInput) -> None:
        self._order = order
        self._saga = Saga(OrderRef(order_id=order.order_id), begun=SHIPMENT_STEPS if order.under_way else [])
        self._status = OrderStatus.PLACED
        self._step: Step | None = None
        self._waiting_for: str | None = None
        self._main: asyncio.Task[OrderResult] | None = None
        self._cancel: CancelRequest | None = None
        self._decision: ApprovalDecision | None = None
        self._address_changes_running = 0

    @workflow.run
    async def run(self, order: OrderInput) -> OrderResult:
        """Take the order to its end, whatever happens on the way.

        Outcomes of business (declined, out of stock, cancelled, not approved) are results. Only what needs a person
        fails the workflow, and only Temporal's own cancel ends it as Canceled.
        """
        self._main = asyncio.current_task()
        try:
            if self._cancel:  # the signal was faster than the first line of this method
                raise asyncio.CancelledError
            if order.needs_approval:
                await self._approved()
            await self._run(RESERVE_INVENTORY, OrderStatus.RESERVED)
            await self._run(CHARGE_PAYMENT, OrderStatus.CHARGED)
            await self._address_is_settled()
            await self._run(CREATE_SHIPMENT, OrderStatus.SHIPPED)
        except (ActivityError, ApplicationError, asyncio.CancelledError) as error:
            cancelled_by_temporal = workflow.cancellation_reason() is not None
            result = await uninterrupted(self._undo(error))
            if cancelled_by_temporal and result.status is OrderStatus.CANCELLED:
                raise asyncio.CancelledError from error
            return result
        return await uninterrupted(self._confirm())

    async def _approved(self) -> None:
        """Wait for a person; no answer in time is a no.

        Raises:
            ApplicationError: not approved.
        """
        await self._mark(OrderStatus.AWAITING_APPROVAL)
        self._give_way_to_cancel()
        self._waiting_for = "approval"
        try:
            await workflow.wait_condition(
                lambda: self._decision is not None,
                timeout=self._order.approval_timeout,
                timeout_summary="approval",
            )
        except TimeoutError:
            self._decision = ApprovalDecision(approved=False, reason="nobody answered in time")
        self._waiting_for = None
        assert self._decision is not None
        if not self._decision.approved:
            raise ApplicationError(self._decision.reason or "not approved", type="not_approved")

    async def _run(self, step: Step, then: OrderStatus) -> None:
        self._step = step
        await self._saga.run(step)
        self._step = None
        self._give_way_to_cancel()
        self._status = then

    def _give_way_to_cancel(self) -> None:
        """Raises: asyncio.CancelledError: a cancel came in the same workflow task as the end of what was awaited.

        There was nothing left to interrupt then, so nothing was raised where it was awaited.
        """
        # Orders placed before this was noticed went on, and their histories have to replay as they are: hence
        # `patched`. Make it `workflow.deprecate_patch` when none of those orders runs any more, and delete it and
        # tests/replay/histories/before-cancel-as-a-step-completes when Temporal's retention has passed as well.
        if self._is_cancelled() and workflow.patched("cancel-as-a-step-completes"):
            raise asyncio.CancelledError

    def _is_cancelled(self) -> bool:
        """Whether the order was cancelled, by signal or by Temporal, while it could be."""
        cancelled = self._cancel is not None or workflow.cancellation_reason() is not None
        return cancelled and self._status in CANCELLABLE

    async def _address_is_settled(self) -> None:
        """A change that was accepted must be in MongoDB before the carrier is told."""
        while self._address_changes_running:
            await workflow.wait_condition(lambda: not self._address_changes_running)

    async def _confirm(self) -> OrderResult:
        """The order is shipped and paid: from here on nothing undoes it, and no cancel stops it."""
        try:
            await self._run(SEND_CONFIRMATION, OrderStatus.COMPLETED)
        except ActivityError as error:
            failure = self._why(error)
            await self._mark(OrderStatus.COMPLETED, failure)
            raise ApplicationError(failure.message, type=failure.code) from error
        return await self._end(OrderStatus.COMPLETED, None)

    async def _undo(self, error: BaseException) -> OrderResult:
        failure = self._why(error)
        self._step = self._waiting_for = None
        await self._mark(OrderStatus.COMPENSATING, failure)
        await self._saga.compensate(lambda: self._mark(OrderStatus.NEEDS_ATTENTION))
        ending = OrderStatus.CANCELLED if failure.code == "cancelled" else OrderStatus.FAILED
        await self._mark(ending, failure)
        return await self._end(ending, failure)

    async def _end(self, status: OrderStatus, failure: Failure | None) -> OrderResult:
        workflow.upsert_search_attributes([ORDER_STATUS.value_set(status.value)])
        await workflow.wait_condition(workflow.all_handlers_finished)
        return OrderResult(order_id=self._order.order_id, status=status, failure=failure)

    async def _mark(self, status: OrderStatus, failure: Failure | None = None) -> None:
        """Write a status that no step writes by itself."""
        self._status = status
        workflow.upsert_search_attributes([ORDER_STATUS.value_set(status.value)])
        await workflow.execute_activity_method(
            Tracking.mark,
            OrderMark(order_id=self._order.order_id, status=status, failure=failure),
            start_to_close_timeout=SHORT_ATTEMPT,
            retry_policy=ENDLESS,
            summary=status,
        )

    def _why(self, error: BaseException) -> Failure:
        """What went wrong, in words for the customer: never an exception's own text, unless it was made for that."""
        if is_cancelled_exception(error) or self._is_cancelled():  # what was accepted is what happened
            self._cancel = self._cancel or CancelRequest(reason=workflow.cancellation_reason())
            return Failure(code="cancelled", message=self._cancel.reason or "cancelled")
        final = error.cause if isinstance(error, ActivityError) else error
        if isinstance(final, ApplicationError) and final.type and (final.non_retryable or final is error):
            return Failure(code=final.type, message=final.message)
        assert self._step is not None  # only a step runs out of time
        return self._step.in_vain

    # --- signals, updates, queries

    @workflow.signal
    def cancel(self, request: CancelRequest | str | None = None) -> None:
        """Cancel the order. Refused, which `status` then tells, once it is shipped or being undone.

        The step in flight is interrupted just as by Temporal's own cancel, so that there is one way of cancelling.
        """
        if self._cancel is None and self._status in CANCELLABLE:
            self._cancel = CancelRequest(reason=request) if isinstance(request, str) else request or CancelRequest()
            if self._main:
                self._main.cancel()

    @workflow.signal
    def approve(self, decision: ApprovalDecision) -> None:
        """Approve or decline a large order; the first answer counts, and none after a cancel."""
        if self._order.needs_approval and self._decision is None and not self._is_cancelled():
            self._decision = decision

    @workflow.update
    async def change_shipping_address(self, change: AddressChange) -> None:
        """Take over a new address that waits in MongoDB."""
        self._address_changes_running += 1
        try:
            await workflow.execute_activity_method(
                Shipping.change_address,
                change,
                start_to_close_timeout=SHORT_ATTEMPT,
                schedule_to_close_timeout=ADDRESS_CHANGE_IN_ALL,
                summary="change address",
            )
        finally:
            self._address_changes_running -= 1

    @change_shipping_address.validator
    def _may_change_address(self, change: AddressChange) -> None:
        if self._status not in CANCELLABLE or self._is_cancelled() or self._step is CREATE_SHIPMENT:
            raise ApplicationError("shipping has begun, or the order has ended", type="too_late")

    @workflow.query
    def status(self) -> OrderProgress:
        """Where the order is. The attempt of its step only the server knows: `temporal workflow describe`."""
        return OrderProgress(
            order_id=self._order.order_id,
            status=self._status,
            step=self._step.name if self._step else None,
            waiting_for=self._waiting_for,
            undone=self._saga.undone,
            cancel_requested=self._cancel is not None,
            approved=self._decision.approved if self._decision else None,
        )
