"""The reconciliation: a schedule that compares orders with their steps and payments, and repairs what is safe.

An extra: docs/make-it-yours.md ("What you can delete") says how to remove it.
"""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import temporalio.client as temporal
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.service import RPCError

with workflow.unsafe.imports_passed_through():
    from pydantic import AwareDatetime

    import app.workflows.steps as steps
    from app.activities.reconciliation import Finding, Reconciliation, Window
    from app.messages import OrderRef
    from app.workflows.calls import call

logger = logging.getLogger(__name__)

GRACE = timedelta(minutes=5)  # since the last change of an order: a late attempt has reversed its effect by then
DAY = timedelta(days=1)
CHECK_INTERVAL = 600.0  # seconds, also until a failed attempt is repeated
# An order that has ended does not change, so a repair may follow what was read a while ago; but not days later.
REPAIR: dict[str, Any] = {"schedule_to_close_timeout": GRACE, "retry_policy": steps.RETRY_BEFORE_ATTENTION}
COMPARE: dict[str, Any] = {"start_to_close_timeout": DAY, "heartbeat_timeout": timedelta(minutes=1)}


@workflow.defn
class ReconciliationWorkflow:
    @workflow.run
    async def run(self, since: AwareDatetime | None = None) -> AwareDatetime:
        """Compare what changed since then, by default since the last run that succeeded; return until when.

        The first run compares a day. If a repair fails, the run fails, and the next one compares the same again.
        """
        end = workflow.now() - GRACE
        begin, failed = since or workflow.get_last_completion_result(AwareDatetime) or end - DAY, 0
        if begin > end:  # the clock was ahead in that run: what changed since then is not known
            begin = end - DAY
        while begin < end:
            window = Window(begin=begin, end=min(begin + DAY, end))
            repairs: list[Finding] = await call(
                Reconciliation.compare, window, f"since {begin:%Y-%m-%d %H:%M}", **COMPARE
            )
            results = await asyncio.gather(*map(_repair, repairs), return_exceptions=True)
            failed += sum(isinstance(result, ActivityError) for result in results)
            begin = window.end
        if failed:
            raise ApplicationError(f"repairs that failed: {failed}", type="NotRepaired")
        return end


async def _repair(finding: Finding) -> None:
    [compensation] = [step.compensation for step in steps.COMPENSATABLE_STEPS if step.name is finding.step]
    summary = f"{finding.order_id}: {finding.kind}"
    await call(compensation, OrderRef(order_id=finding.order_id), summary, **REPAIR)


async def keep_schedule(client: temporal.Client, task_queue: str, interval: timedelta) -> None:
    """Create or update the schedule, again and again, because Temporal's data may be lost; return if `interval` is 0.

    There is one schedule per task queue, however many workers there are. What a person paused stays paused.
    """
    name = f"{task_queue}-reconciliation"
    run = ReconciliationWorkflow.run
    action = temporal.ScheduleActionStartWorkflow(run, id=name, task_queue=task_queue, execution_timeout=DAY)
    spec = temporal.ScheduleSpec(intervals=[temporal.ScheduleIntervalSpec(every=interval)])
    schedule = temporal.Schedule(action=action, spec=spec)

    def update(existing: temporal.ScheduleUpdateInput) -> temporal.ScheduleUpdate:
        return temporal.ScheduleUpdate(replace(schedule, state=existing.description.schedule.state))

    while interval:
        try:
            try:
                await client.create_schedule(name, schedule)
            except temporal.ScheduleAlreadyRunningError:
                await client.get_schedule_handle(name).update(update)
        except RPCError as error:
            logger.warning("cannot create the schedule %s yet: %s", name, error.status.name)
        await asyncio.sleep(CHECK_INTERVAL)
