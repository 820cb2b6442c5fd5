"""Check that workflow histories replay and contain no personal data."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Container, Iterator, Mapping
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner

from app.names import WORKFLOW_ID_PREFIX, WORKFLOW_TYPE
from app.workflows.order import OrderWorkflow
from tests.kit.orders import ADDRESS, EMAIL, NAME, STREET
from worker import SANDBOX

# The personal data in the orders of the tests: contact, address and payment method.
PERSONAL = [EMAIL, NAME, STREET, ADDRESS["city"], ADDRESS["postal_code"], "pm_card"]

CAUSED_BY_CODE = {
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE,
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR,
}


# Fields and identifiers that differ between two orders on the same path.
VARYING_FIELDS = {"taskQueue", "fairnessKey", "identity", "taskId", "historySizeBytes", "workerVersion", "sdkVersion"}
ORDER_ID = rf"({WORKFLOW_ID_PREFIX})?ord_\w+"
IDENTIFIERS = re.compile(ORDER_ID + r"|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+Z")


def personal_data_in(history: Mapping[str, Any]) -> list[str]:
    """The personal values that occur in a history as JSON."""
    text = "\n".join(_texts(history)).lower()
    return [value for value in PERSONAL if value.lower() in text]


def shape_of(history: Mapping[str, Any]) -> str:
    """A text that is equal for all orders on the same path, from a history as JSON."""
    return IDENTIFIERS.sub("", "\n".join(_texts(history, without=VARYING_FIELDS)))


def _texts(part: Any, without: Container[str] = ()) -> Iterator[str]:
    """All strings of the history, with decoded payloads."""
    if isinstance(part, dict):
        for key, value in sorted(part.items()):  # maps are unordered
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


def failed_tasks_in(history: WorkflowHistory) -> list[str]:
    """The errors of failed workflow tasks. Temporal retries such tasks, so the failures do not show otherwise."""
    failed = [event.workflow_task_failed_event_attributes for event in history.events]
    return [task.failure.message for task in failed if task.cause in CAUSED_BY_CODE]


def skipped_time_in(history: WorkflowHistory) -> timedelta:
    """The total time that the workflow skipped."""
    skipped = timedelta()
    for event in history.events:
        skip = event.workflow_execution_time_skipping_transitioned_event_attributes
        if skip.HasField("target_time"):
            skipped += skip.target_time.ToDatetime() - event.event_time.ToDatetime()
    return skipped


def replayer(workflow_class: type = OrderWorkflow, runner: WorkflowRunner = SANDBOX) -> Replayer:
    return Replayer(workflows=[workflow_class], data_converter=pydantic_data_converter, workflow_runner=runner)


async def check_every_history(client: Client) -> dict[str, int]:
    """Replay the histories of a server, and check them for personal data and failed tasks. Returns numbers to report.

    Replays one history of each path, without the sandbox, in which every order ran already.
    """
    skipped, count = timedelta(), 0
    violations: list[str] = []
    replayed: set[str] = set()

    async def histories() -> AsyncIterator[WorkflowHistory]:
        nonlocal skipped, count
        async for history in client.list_workflows(f"WorkflowType = '{WORKFLOW_TYPE}'").map_histories():
            count += 1
            skipped += skipped_time_in(history)
            content = history.to_json_dict()
            violations.extend(f"{history.workflow_id} holds {value!r}" for value in personal_data_in(content))
            violations.extend(
                f"{history.workflow_id}: a workflow task failed: {error}" for error in failed_tasks_in(history)
            )
            if (shape := shape_of(content)) not in replayed:
                replayed.add(shape)
                yield history

    results = await replayer(runner=UnsandboxedWorkflowRunner()).replay_workflows(
        histories(), raise_on_replay_failure=False
    )
    violations += [f"run {run_id} does not replay: {error}" for run_id, error in results.replay_failures.items()]
    assert not violations, "\n".join(violations)
    return {"workflows run": count, "of these, replayed": len(replayed), "days of their time skipped": skipped.days}
