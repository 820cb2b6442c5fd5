"""A history kept short by continue-as-new, its signals carried over: the dock, where trucks are loaded all year.

Problem: a workflow that never ends collects events until Temporal terminates it (51,200 events, or 50 MB), and each
worker that takes it over replays them all.

Traps: a signal that was received but not dealt with is lost with its run, and so is a handler that still runs. But a
handler may wait for the main loop: to stop the loop and then wait for the handlers would be a deadlock.

Solution: all state is one value, the workflow's input, and handlers only change that value. The loop continues to work
until Temporal suggests a new run AND all handlers have finished; there is no `await` between that check and
`continue_as_new`. A signal that arrives meanwhile is safe: Temporal repeats the workflow task with it.

    python -m examples.continue_as_new    # 75 parcels, in runs of about 100 events
"""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from app.temporal import connect
    from worker import SANDBOX

TASK_QUEUE = "example-continue-as-new"
TRUCK = 10  # parcels


@dataclass
class Dock:
    """All state of the workflow. Its size is bounded, too: parcels that were loaded are only counted."""

    waiting: list[str] = field(default_factory=list)
    loaded: int = 0
    closing: bool = False
    events_per_run: int = 10_000  # a new run begins then, or earlier if Temporal suggests it


class Trucks:
    """Where the parcels go, in memory."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}  # by parcel: the run that loaded it

    @activity.defn
    async def load(self, parcels: list[str]) -> None:
        run_id = activity.info().workflow_run_id or ""
        print(f"run {run_id[-8:]} loads {len(parcels)} parcels")
        for parcel in parcels:
            self.loaded.setdefault(parcel, run_id)  # a retry loads nothing twice


@workflow.defn
class DockWorkflow:
    @workflow.init  # before any handler: a signal can arrive before `run` starts
    def __init__(self, dock: Dock) -> None:
        self._dock = dock

    @workflow.run
    async def run(self, _: Dock) -> int:
        """Load what arrives, until the dock is closed and empty; return how many parcels were loaded in all runs."""
        dock = self._dock
        while not self._has_ended():
            await workflow.wait_condition(lambda: bool(dock.waiting) or self._has_ended() or self._must_continue())
            if parcels := dock.waiting[:TRUCK]:
                await workflow.execute_activity_method(
                    Trucks.load, parcels, start_to_close_timeout=timedelta(seconds=10)
                )
                del dock.waiting[: len(parcels)]
                dock.loaded += len(parcels)
            if self._must_continue():
                workflow.continue_as_new(dock)
        return dock.loaded

    def _has_ended(self) -> bool:
        return self._dock.closing and not self._dock.waiting and workflow.all_handlers_finished()

    def _must_continue(self) -> bool:
        info = workflow.info()
        is_long = info.is_continue_as_new_suggested() or info.get_current_history_length() >= self._dock.events_per_run
        return is_long and workflow.all_handlers_finished()

    @workflow.signal
    def arrive(self, parcel: str) -> None:
        self._dock.waiting.append(parcel)

    @workflow.signal
    def close(self) -> None:
        self._dock.closing = True

    @workflow.update
    async def wait_until_loaded(self) -> int:
        """Wait until all parcels that have arrived are loaded; return how many were loaded in all runs."""
        arrived = self._dock.loaded + len(self._dock.waiting)
        await workflow.wait_condition(lambda: self._dock.loaded >= arrived)
        return self._dock.loaded


def build_worker(client: Client, trucks: Trucks, task_queue: str = TASK_QUEUE) -> Worker:
    workflows, activities = [DockWorkflow], [trucks.load]
    return Worker(client, task_queue=task_queue, workflows=workflows, activities=activities, workflow_runner=SANDBOX)


async def main() -> None:
    client, trucks = await connect(), Trucks()
    async with build_worker(client, trucks):
        handle = await client.start_workflow(
            DockWorkflow.run, Dock(events_per_run=100), id=f"dock-{uuid4().hex[:8]}", task_queue=TASK_QUEUE
        )
        for number in range(1, 76):
            await handle.signal(DockWorkflow.arrive, f"parcel-{number}")
            if number % 25 == 0:
                print(f"loaded: {await handle.execute_update(DockWorkflow.wait_until_loaded)} of {number}")
        await handle.signal(DockWorkflow.close)
        print(f"{handle.id}: {await handle.result()} parcels loaded in {len(set(trucks.loaded.values()))} runs")
    await asyncio.sleep(0.1)  # the SDK's threads end: see main() in worker.py


if __name__ == "__main__":
    asyncio.run(main())
