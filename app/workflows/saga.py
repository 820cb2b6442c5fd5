"""The saga pattern: run steps, remember how to undo them, undo them in reverse.

Nothing here knows of orders but the reference that is handed to each activity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from app.models import OrderRef, StepName
    from app.workflows.steps import BEFORE_ATTENTION, ENDLESS, SHORT_ATTEMPT, Step

T = TypeVar("T")


class Saga:
    """The steps of one order that were begun, and how to undo them.

    Args:
        begun: steps that an earlier run may have begun, and that are undone as well.
    """

    def __init__(self, ref: OrderRef, begun: Sequence[Step] = ()) -> None:
        self._ref = ref
        self._begun = list(begun)
        self.undone: list[StepName] = []

    async def run(self, step: Step) -> None:
        """Run a step. Its undo is registered before it starts, because a step that timed out may have happened.

        Raises:
            ActivityError: the step failed for good, or the workflow was cancelled while it ran. The attempt in flight
                is not waited for (TRY_CANCEL): if it takes effect later, it runs into the undo's fence.
        """
        if step.undo is not None and step not in self._begun:
            self._begun.append(step)
        await workflow.execute_activity_method(
            step.do,
            self._ref,
            start_to_close_timeout=step.attempt,
            schedule_to_close_timeout=step.in_all,
            retry_policy=step.retries,
            summary=step.name,
        )

    async def compensate(self, needs_attention: Callable[[], Awaitable[None]]) -> None:
        """Undo what was begun, in reverse, each to the end.

        An undo that keeps failing does not keep the others from running: it is put aside, `needs_attention` is called
        when the others are done, and then it is tried until it works.
        """
        stuck: list[Step] = []
        for step in reversed(self._begun):
            try:
                await self._undo(step, BEFORE_ATTENTION)
            except ActivityError:
                stuck.append(step)
        if stuck:
            await needs_attention()
            await asyncio.gather(*(self._undo(step, ENDLESS) for step in stuck))

    async def _undo(self, step: Step, retries: RetryPolicy) -> None:
        assert step.undo is not None  # only steps with an undo are remembered
        await workflow.execute_activity_method(
            step.undo,
            self._ref,
            start_to_close_timeout=SHORT_ATTEMPT,
            retry_policy=retries,
            summary=f"undo {step.name}",
        )
        self.undone.append(step.name)


async def uninterrupted(work: Awaitable[T]) -> T:
    """Await to the end, whatever cancels the caller meanwhile.

    One `asyncio.shield` is not enough: a cancel would still end the await, and the workflow with it, and lose what is
    left to do. So the waiting begins again until the work is done.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await workflow.wait([task])
    return task.result()
