"""A new version of the code replays open orders (G10), and no history holds personal data (G11).

`tests/fixtures.py` makes the same checks for the orders of all other tests, when their Temporal server stops.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory

from app.names import WORKFLOW_ID_PREFIX
from app.workflows import steps
from tests.replay.histories import PERSONAL, personal_data_in, replayer, shape_of
from tests.replay.incompatible import OrderWorkflow as Incompatible
from tests.replay.record import HISTORIES, PATHS

RECORDED = sorted(HISTORIES.glob("**/*.json"))


def recorded(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(f"{WORKFLOW_ID_PREFIX}{path.stem}", path.read_text(encoding="utf-8"))


def test_every_path_is_recorded() -> None:
    assert {path.stem for path in HISTORIES.glob("*.json")} == set(PATHS), "run: make replay"


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(HISTORIES))[:-5])
async def test_recorded_history_replays(path: Path) -> None:
    await replayer().replay_workflow(recorded(path))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(HISTORIES))[:-5])
def test_recorded_history_holds_no_personal_data(path: Path) -> None:
    assert personal_data_in(recorded(path)) == []


async def test_changed_timeouts_and_retries_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: dict[str, Any] = {
        "start_to_close": timedelta(hours=1),
        "schedule_to_close": timedelta(days=2),
        "retry_policy": None,
    }
    for name in ("REVERSIBLE_STEPS", "FINAL_STEPS"):
        monkeypatch.setattr(steps, name, [replace(step, **changed) for step in getattr(steps, name)])
    await replayer().replay_workflow(recorded(HISTORIES / "declined.json"))
    monkeypatch.setattr(steps, "REVERSIBLE_STEPS", steps.REVERSIBLE_STEPS[::-1])  # so the replay does use the table
    with pytest.raises(workflow.NondeterminismError):
        await replayer().replay_workflow(recorded(HISTORIES / "declined.json"))


async def test_incompatible_workflow_code_fails_to_replay() -> None:
    history = recorded(HISTORIES / "completed.json")
    with pytest.raises(workflow.NondeterminismError):
        await replayer(Incompatible).replay_workflow(history)


@pytest.mark.parametrize("value", PERSONAL)
def test_personal_value_in_a_payload_is_found(value: str) -> None:
    history = recorded(HISTORIES / "completed.json")
    started = history.events[0].workflow_execution_started_event_attributes
    started.input.payloads[0].data = json.dumps({"note": f"for {value}"}).encode()
    assert personal_data_in(history) == [value]


def test_history_shape_depends_on_path_and_not_on_order() -> None:
    histories = {path.stem: recorded(path) for path in HISTORIES.glob("*.json")}
    assert len({shape_of(history) for history in histories.values()}) == len(histories)
    text = (HISTORIES / "completed.json").read_text(encoding="utf-8")
    (order_id,) = set(re.findall(r"(?<!\w)ord_[0-9a-f]+", text))
    other = WorkflowHistory.from_json(f"{WORKFLOW_ID_PREFIX}ord_2", text.replace(order_id, "ord_2"))
    assert shape_of(other) == shape_of(histories["completed"])
