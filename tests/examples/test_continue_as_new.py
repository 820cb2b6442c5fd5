"""A workflow that continues as new keeps its history short, and loses neither signals nor running handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowHandle, WorkflowHistory

from app import temporal
from dev.servers import free_port, start_temporal
from examples.continue_as_new import Dock, DockWorkflow, Trucks, build_worker
from tests.kit.waiting import eventually
from tests.replay.histories import replayer

SUGGESTED = 60  # events
PARCELS = [f"parcel-{number}" for number in range(200)]
Handle = WorkflowHandle[DockWorkflow, int]


@pytest.fixture
async def suggesting_client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server that suggests to continue as new after 60 events instead of 4,096."""
    config = {"limit.historyCount.suggestContinueAsNew": str(SUGGESTED)}
    server = await start_temporal(free_port(), log_dir=tmp_path, config=config)
    yield await temporal.connect(target_host=server.address)
    await server.stop()


async def histories(client: Client, handle: Handle) -> list[WorkflowHistory]:
    """The history of each run."""
    histories, run_id = [], handle.first_execution_run_id
    while run_id:
        histories.append(await client.get_workflow_handle(handle.id, run_id=run_id).fetch_history())
        last = histories[-1].events[-1]
        run_id = last.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    return histories


async def test_200_signals_over_several_runs_are_all_handled_in_short_histories(
    suggesting_client: Client, task_queue: str
) -> None:
    client, trucks = suggesting_client, Trucks()
    async with build_worker(client, trucks, task_queue):
        handle = await client.start_workflow(DockWorkflow.run, Dock(), id=task_queue, task_queue=task_queue)
        for first in range(0, len(PARCELS), 20):
            await asyncio.gather(*(handle.signal(DockWorkflow.arrive, p) for p in PARCELS[first : first + 20]))
            assert await handle.execute_update(DockWorkflow.wait_until_loaded) == first + 20
        await handle.signal(DockWorkflow.close)
        assert await handle.result() == len(PARCELS)
        runs = await histories(client, handle)
    await replayer(DockWorkflow).replay_workflow(runs[0])
    lengths = [len(history.events) for history in runs]
    assert sorted(trucks.loaded) == sorted(PARCELS)
    assert len(lengths) >= 4, lengths
    # A run ends once it is too long. Until then, 20 parcels may come at once, each with a task and a batch of its own.
    assert max(lengths) < SUGGESTED + 20 * 10, lengths


async def test_signals_that_race_new_runs_are_all_handled(client: Client, task_queue: str) -> None:
    trucks = Trucks()
    async with build_worker(client, trucks, task_queue):
        handle = await client.start_workflow(
            DockWorkflow.run, Dock(events_per_run=15), id=task_queue, task_queue=task_queue
        )

        async def send(parcels: list[str]) -> None:
            for parcel in parcels:
                await handle.signal(DockWorkflow.arrive, parcel)

        await asyncio.gather(*(send(PARCELS[n:40:4]) for n in range(4)))
        await handle.signal(DockWorkflow.close)
        assert await handle.result() == 40
    assert sorted(trucks.loaded) == sorted(PARCELS[:40])
    assert len(set(trucks.loaded.values())) > 1, "one run"


async def test_new_run_waits_for_handler_that_waits_for_the_loop(client: Client, task_queue: str) -> None:
    """All signals and the update come in the first workflow task, so the run is too long from its start."""
    trucks = Trucks()
    handle = await client.start_workflow(
        DockWorkflow.run, Dock(events_per_run=20), id=task_queue, task_queue=task_queue
    )
    for parcel in PARCELS[:40]:
        await handle.signal(DockWorkflow.arrive, parcel)
    waiting = asyncio.create_task(handle.execute_update(DockWorkflow.wait_until_loaded))
    async with build_worker(client, trucks, task_queue):
        assert await waiting == 40
        await eventually(lambda: histories(client, handle), lambda runs: len(runs) == 2)
        await handle.signal(DockWorkflow.close)
        assert await handle.result() == 40


async def test_close_before_new_run_is_carried_over(client: Client, task_queue: str) -> None:
    trucks = Trucks()
    handle = await client.start_workflow(
        DockWorkflow.run, Dock(events_per_run=20), id=task_queue, task_queue=task_queue
    )
    for parcel in PARCELS[:30]:
        await handle.signal(DockWorkflow.arrive, parcel)
    await handle.signal(DockWorkflow.close)
    async with build_worker(client, trucks, task_queue):
        assert await handle.result() == 30
    assert len(set(trucks.loaded.values())) > 1, "one run"
