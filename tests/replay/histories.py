"""Checks of workflow histories: they replay, and hold no personal data."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Container, Iterator
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from app.workflows.order import OrderWorkflow
from tests.kit.orders import ADDRESS, EMAIL, NAME, STREET
from worker import SANDBOX

# What is personal in the orders of the tests: whom they are for, where they go, and what pays for them.
PERSONAL = [EMAIL, NAME, STREET, ADDRESS["city"], ADDRESS["postal_code"], "pm_card"]

OUR_FAULT = {
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE,
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR,
}


# What differs between two orders that went the same way: where and when they ran, and identifiers.
CIRCUMSTANCES = {"taskQueue", "identity", "taskId", "historySizeBytes", "workerVersion"}
IDENTIFIERS = re.compile(r"(order-)?ord_\w+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+Z")


def personal_in(history: WorkflowHistory) -> list[str]:
    """Personal values that occur anywhere in the history."""
    text = "\n".join(_texts(history.to_json_dict())).lower()
    return [value for value in PERSONAL if value.lower() in text]


def shape_of(history: WorkflowHistory) -> str:
    """The same for orders that went the same way."""
    return IDENTIFIERS.sub("", "\n".join(_texts(history.to_json_dict(), without=CIRCUMSTANCES)))


def _texts(part: Any, without: Container[str] = ()) -> Iterator[str]:
    """All strings, payloads decoded."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in without:
                continue
            if key == "data" and isinstance(value, str):
                yield base64.b64decode(value).decode(errors="replace")
            else:
                yield from _texts(value, without)
    elif isinstance(part, list):
        for item in part:
            yield from _texts(item, without)
    elif isinstance(part, str):
        yield part


def stumbles_in(history: WorkflowHistory) -> list[str]:
    """Why workflow tasks failed in the workflow's own code: Temporal hides that by trying them again."""
    failed = [event.workflow_task_failed_event_attributes for event in history.events]
    return [task.failure.message for task in failed if task.cause in OUR_FAULT]


def skipped_in(history: WorkflowHistory) -> timedelta:
    """How much time the workflow skipped."""
    skipped = timedelta()
    for event in history.events:
        leap = event.workflow_execution_time_skipping_transitioned_event_attributes
        if leap.HasField("target_time"):
            skipped += leap.target_time.ToDatetime() - event.event_time.ToDatetime()
    return skipped


def replayer(workflow_class: type = OrderWorkflow) -> Replayer:
    return Replayer(workflows=[workflow_class], data_converter=pydantic_data_converter, workflow_runner=SANDBOX)


async def check_every_history(client: Client) -> dict[str, int]:
    """Replay all orders of a server, and look for personal data and failed workflow tasks. Returns what to report.

    Of orders that went the same way, one is replayed.
    """
    skipped, count = timedelta(), 0
    wrong: list[str] = []
    replayed: set[str] = set()

    async def histories() -> AsyncIterator[WorkflowHistory]:
        nonlocal skipped, count
        async for history in client.list_workflows("WorkflowType = 'OrderWorkflow'").map_histories():
            count += 1
            skipped += skipped_in(history)
            wrong.extend(f"{history.workflow_id} holds {value!r}" for value in personal_in(history))
            wrong.extend(f"{history.workflow_id}: a workflow task failed: {why}" for why in stumbles_in(history))
            if (shape := shape_of(history)) not in replayed:
                replayed.add(shape)
                yield history

    results = await replayer().replay_workflows(histories(), raise_on_replay_failure=False)
    wrong += [f"run {run_id} does not replay: {error}" for run_id, error in results.replay_failures.items()]
    assert not wrong, "\n".join(wrong)
    return {"workflows run": count, "of these, replayed": len(replayed), "days of their time skipped": skipped.days}
