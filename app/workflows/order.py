"""The saga of an order, top to bottom.

    [approval] -> reserve inventory -> charge payment -> create shipment -> send confirmation

Until the shipment exists, a failure or a cancel compensates the steps in reverse. MongoDB decides every race, so a run
may start at any point: after a reset, or after Temporal's data was lost. The workflow sees only ids and decisions.
"""

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    # `from app import domain` would import a second copy into the sandbox, with enums of its own.
    import app.domain as domain
    import app.messages as messages
    import app.workflows.calls as calls
    from app.domain import CANCELLED, NOT_APPROVED, Failure, OrderStatus
    from app.names import WORKFLOW_TYPE
    from app.workflows.steps import COMPENSATABLE_STEPS, FINAL_STEPS, REVERSIBLE_STEPS, OrderStopped, Step


@workflow.defn(name=WORKFLOW_TYPE)
class OrderWorkflow:
    """One order, from placed to completed, failed or cancelled."""

    @workflow.init
    def __init__(self, order: messages.OrderInput) -> None:
        self._order = order
        self._progress = messages.OrderProgress(order_id=order.order_id, status=OrderStatus.PLACED)
        self._cancel: asyncio.Future[None] = asyncio.Future()
        self._decision: asyncio.Future[messages.ApprovalDecision] = asyncio.Future()

    @workflow.run
    async def run(self, order: messages.OrderInput) -> messages.OrderResult:
        """Run the order to completion or compensation. The workflow fails only if a person has to act."""
        saga, cancelled_by_temporal = asyncio.create_task(self._saga()), False
        while not (saga.done() and workflow.all_handlers_finished()):
            try:
                await workflow.wait_condition(lambda: saga.done() and workflow.all_handlers_finished())
            except asyncio.CancelledError:  # raised in this task only: cannot interrupt a compensation
                cancelled_by_temporal = not self._cancel.done()
                self.cancel()
        state = saga.result()
        if cancelled_by_temporal and state.status is OrderStatus.CANCELLED:
            raise asyncio.CancelledError
        return messages.OrderResult(order_id=order.order_id, status=state.status, failure_code=state.failure_code)

    async def _saga(self) -> messages.OrderState:
        # Use only `workflow.wait` here: `wait_condition` may raise Temporal's cancel in this task as well.
        try:
            if self._order.needs_approval:
                await self._wait_for_approval()
            for step in REVERSIBLE_STEPS:
                await self._run(step)
        except OrderStopped as stopped:
            state = await self._update(OrderStatus.COMPENSATING, stopped.failure, step=stopped.step)
            self._progress.cancel_requested = state.failure_code == CANCELLED
            if state.status not in domain.IRREVERSIBLE:
                return await self._compensate(state)
            self._cancel = asyncio.Future()  # the cancel is refused: the shipment exists
        try:
            for step in FINAL_STEPS:
                await self._run(step)
        except OrderStopped as stopped:
            await self._update(OrderStatus.COMPLETED, stopped.failure, step=stopped.step)
            raise ApplicationError(stopped.failure.message, type=stopped.failure.code) from stopped
        return messages.OrderState(status=OrderStatus.COMPLETED)

    async def _run(self, step: Step) -> None:
        if not calls.is_known(step):
            return
        activity = calls.start(step, self._progress)
        await self._wait_unless_cancelled(activity)
        try:
            await activity
        except ActivityError as error:
            raise OrderStopped(step.failure(error), step.name) from error
        calls.enter(step.status, self._progress)

    async def _wait_for_approval(self) -> None:
        """Wait for a decision; a timeout counts as a rejection. MongoDB may have the decision of an earlier run."""
        state = await self._update(OrderStatus.AWAITING_APPROVAL)
        if state.status is OrderStatus.AWAITING_APPROVAL and state.approved is None:
            timeout = self._order.approval_timeout
            self._progress.waiting_for, self._progress.waiting_until = "approval", workflow.now() + timeout
            calls.show(self._progress)
            await self._wait_unless_cancelled(self._decision, timeout.total_seconds())
            decision = self._decision.result() if self._decision.done() else calls.TIMED_OUT
            state = await self._update(OrderStatus.AWAITING_APPROVAL, approval=decision)
        self._progress.approved = state.approved
        if state.approved is False:
            raise OrderStopped(Failure(code=NOT_APPROVED, message="not approved"))
        calls.show(self._progress)

    async def _wait_unless_cancelled(self, future: asyncio.Future[Any], timeout: float | None = None) -> None:
        """Wait for a future, until the timeout. A cancel interrupts the wait, and wins if both come together."""
        await workflow.wait([future, self._cancel], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._cancel.done():
            future.cancel()
            raise OrderStopped(Failure(code=CANCELLED, message=CANCELLED))

    async def _compensate(self, state: messages.OrderState) -> messages.OrderState:
        """Compensate every step, in reverse; one that keeps failing does not hold up the others."""
        if state.status in domain.TERMINAL:  # compensated by an earlier run
            return state
        stuck = [step for step in reversed(COMPENSATABLE_STEPS) if not await calls.compensate(step, self._progress)]
        if stuck:
            await self._update(OrderStatus.NEEDS_ATTENTION)
            await asyncio.gather(*(calls.compensate(step, self._progress, forever=True) for step in stuck))
        return await self._update(OrderStatus.CANCELLED if state.failure_code == CANCELLED else OrderStatus.FAILED)

    async def _update(self, status: OrderStatus, failure: Failure | None = None, **more: Any) -> messages.OrderState:
        """Write a status that no step writes; return the state in MongoDB, from which to continue."""
        update = messages.StatusUpdate(order_id=self._order.order_id, status=status, failure=failure, **more)
        state = await calls.update_status(update)
        self._progress.failure_code = state.failure_code
        calls.enter(state.status, self._progress)
        return state

    @workflow.signal(description="Cancel the order; without effect once the shipment exists")
    def cancel(self, _: Any = None) -> None:
        """Cancel the order; has no effect once the shipment exists. A reason belongs in MongoDB."""
        if self._progress.status in domain.CANCELLABLE and not self._cancel.done():
            self._cancel.set_result(None)
            self._progress.cancel_requested = True

    @workflow.signal(description='Decide an order that awaits approval: {"approved": true}; the first decision counts')
    def approve(self, decision: messages.ApprovalDecision) -> None:
        """Approve or reject an order that awaits approval; the first decision counts."""
        if not self._decision.done():
            self._decision.set_result(decision)

    @calls.update("Apply an address proposed in MongoDB; refused once shipping has begun")
    async def change_shipping_address(self, change: messages.AddressChange) -> bool:
        """Apply an address that was proposed in MongoDB; return False if shipping began first."""
        return await calls.change_address(change)

    @change_shipping_address.validator
    def _validate_address_change(self, change: messages.AddressChange) -> None:
        if self._progress.status not in domain.ADDRESS_CHANGEABLE or self._cancel.done():
            raise ApplicationError(f"cannot change the address: the order is {self._progress.status}", type="too_late")

    @workflow.query(description="The status, the step, a wait and its end, and the compensated steps")
    def status(self) -> messages.OrderProgress:
        """Return the progress of the order. Only the server knows the attempt: `temporal workflow describe`."""
        return self._progress
