"""How to change a workflow while workflows are running: one change, in four states of the same code.

The change: a reminder goes out by e-mail instead of by letter. Each state is a release:

    Before -> Patched -> Deprecated -> Removed

A release must replay the history of every open workflow, so each state waits until the histories that it cannot
replay are closed (and need no more queries or resets). tests/replay/test_patching.py runs all combinations.

The same table decides a rollback: back from Removed to Deprecated or from Deprecated to Patched, never two states,
and not from Patched to Before once a workflow took the new branch.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow

PATCH = "e-mail-instead-of-letter"  # identifies this change forever: never reuse it for another
TIMEOUT = timedelta(seconds=10)


@activity.defn
async def send_letter() -> None: ...


@activity.defn
async def send_email() -> None: ...


@workflow.defn(name="Reminder")
class Before:
    """The code before the change."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(send_letter, start_to_close_timeout=TIMEOUT)


@workflow.defn(name="Reminder")
class Patched:
    """Release the change: this can be done at any time.

    `patched` is true on the first execution and records a marker. In a replay it is true if the history has the marker:
    workflows that sent a letter replay the old branch, and those that have not come this far take the new one.
    """

    @workflow.run
    async def run(self) -> None:
        if workflow.patched(PATCH):
            await workflow.execute_activity(send_email, start_to_close_timeout=TIMEOUT)
        else:
            await workflow.execute_activity(send_letter, start_to_close_timeout=TIMEOUT)


@workflow.defn(name="Reminder")
class Deprecated:
    """Delete the old branch, once no workflow that took it is open.

    `ExecutionStatus = "Running" AND TemporalChangeVersion IS NULL` lists the candidates. The marker is still recorded,
    but from now on replays accept code without it.
    """

    @workflow.run
    async def run(self) -> None:
        workflow.deprecate_patch(PATCH)
        await workflow.execute_activity(send_email, start_to_close_timeout=TIMEOUT)


@workflow.defn(name="Reminder")
class Removed:
    """Delete the patch, once no workflow that recorded its marker on `Patched` is open."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(send_email, start_to_close_timeout=TIMEOUT)


STATES: list[type[object]] = [Before, Patched, Deprecated, Removed]
