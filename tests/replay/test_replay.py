"""A new version of the code does not break an order that is under way (G10)."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from app.workflows.order import OrderWorkflow
from tests.replay.record import HISTORIES

RECORDED = sorted(HISTORIES.glob("**/*.json"))


def replayer(workflow_class: type = OrderWorkflow) -> Replayer:
    return Replayer(workflows=[workflow_class], data_converter=pydantic_data_converter)


def recorded(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(f"order-{path.stem}", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(HISTORIES))[:-5])
async def test_a_recorded_history_replays(path: Path) -> None:
    await replayer().replay_workflow(recorded(path))
