"""A new version of the code does not break an order that is under way (G10), and no history tells of a person (G11)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from app.workflows.order import OrderWorkflow
from tests.replay.histories import PERSONAL, personal_in, skipped_in, stumbles_in
from tests.replay.incompatible import OrderWorkflow as Incompatible
from tests.replay.record import HISTORIES, PATHS
from tests.support import SUMMARY
from worker import SANDBOX

RECORDED = sorted(HISTORIES.glob("**/*.json"))


def replayer(workflow_class: type = OrderWorkflow) -> Replayer:
    return Replayer(workflows=[workflow_class], data_converter=pydantic_data_converter, workflow_runner=SANDBOX)


def recorded(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(f"order-{path.stem}", path.read_text(encoding="utf-8"))


def test_every_path_is_recorded() -> None:
    assert {path.stem for path in HISTORIES.glob("*.json")} == set(PATHS), "run: make replay"


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(HISTORIES))[:-5])
async def test_a_recorded_history_replays(path: Path) -> None:
    await replayer().replay_workflow(recorded(path))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(HISTORIES))[:-5])
def test_nothing_personal_is_recorded(path: Path) -> None:
    assert personal_in(recorded(path)) == []


async def test_an_incompatible_change_is_noticed() -> None:
    history = recorded(HISTORIES / "completed.json")
    with pytest.raises(workflow.NondeterminismError):
        await replayer(Incompatible).replay_workflow(history)


@pytest.mark.parametrize("value", PERSONAL)
def test_something_personal_would_be_noticed(value: str) -> None:
    history = recorded(HISTORIES / "completed.json")
    started = history.events[0].workflow_execution_started_event_attributes
    started.input.payloads[0].data = json.dumps({"note": f"for {value}"}).encode()
    assert personal_in(history) == [value]


@pytest.mark.last
async def test_every_history_of_these_tests_replays_and_tells_of_nobody(
    client: Client, pytestconfig: pytest.Config
) -> None:
    skipped, personal, stumbles, count = timedelta(), [], [], 0

    async def histories() -> AsyncIterator[WorkflowHistory]:
        nonlocal skipped, count
        async for history in client.list_workflows("WorkflowType = 'OrderWorkflow'").map_histories():
            count += 1
            skipped += skipped_in(history)
            personal.extend(personal_in(history))
            stumbles.extend(stumbles_in(history))
            yield history

    results = await replayer().replay_workflows(histories(), raise_on_replay_failure=False)
    assert results.replay_failures == {}
    assert personal == []
    assert stumbles == []
    pytestconfig.stash[SUMMARY].append(
        f"workflows: {count} run and replayed, {skipped.days} days of their time skipped"
    )
