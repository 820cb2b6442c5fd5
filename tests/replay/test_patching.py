"""Check which state of the workflow in tests/replay/patching.py can replay the histories of which other state."""

from __future__ import annotations

import secrets

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer, Worker

from tests.kit.waiting import eventually
from tests.replay.patching import PATCH, STATES, Before, Deprecated, Patched, Removed, send_email, send_letter

Histories = dict[type[object], WorkflowHistory]

REPLAYED_BY = {
    Before: {Before, Patched},
    Patched: {Patched, Deprecated},
    Deprecated: {Patched, Deprecated, Removed},
    Removed: {Deprecated, Removed},
}
"""For the histories that each state records: the states that replay them."""

CASES = [
    pytest.param(recorded, code, code in REPLAYED_BY[recorded], id=f"{recorded.__name__}-by-{code.__name__}")
    for recorded in STATES
    for code in STATES
]


@pytest.fixture(scope="module")
async def histories(client: Client) -> Histories:
    """One history of each state, recorded on the real server."""
    return {state: await record(client, state) for state in STATES}


async def record(client: Client, state: type[object]) -> WorkflowHistory:
    workflow_id = f"{state.__name__}-{secrets.token_hex(6)}"
    async with Worker(client, task_queue=workflow_id, workflows=[state], activities=[send_letter, send_email]):
        handle = await client.start_workflow("Reminder", id=workflow_id, task_queue=workflow_id)
        await handle.result()
    return await handle.fetch_history()


@pytest.mark.parametrize(("recorded", "code", "replays"), CASES)
async def test_replay_follows_table(
    histories: Histories, recorded: type[object], code: type[object], *, replays: bool
) -> None:
    replayer = Replayer(workflows=[code])
    if replays:
        await replayer.replay_workflow(histories[recorded])
    else:
        with pytest.raises(workflow.NondeterminismError):
            await replayer.replay_workflow(histories[recorded])


async def test_query_marker_separates_old_and_new_branch(client: Client, histories: Histories) -> None:
    async def listed(query: str) -> set[type[object]]:
        ids = {found.id async for found in client.list_workflows(f"WorkflowType = 'Reminder' AND {query}")}
        return {state for state, history in histories.items() if history.workflow_id in ids}

    await eventually(lambda: listed("TemporalChangeVersion IS NULL"), lambda found: found == {Before, Removed})
    await eventually(lambda: listed(f"TemporalChangeVersion = '{PATCH}'"), lambda found: found == {Patched, Deprecated})
