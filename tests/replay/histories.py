"""Check that workflow histories replay and contain no personal data."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
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
VARYING_FIELDS = {"task_queue", "fairness_key", "identity", "task_id", "history_size_bytes", "worker_version"}
VARYING_FIELDS |= {"sdk_metadata", "request_id", "attempt"}
ORDER_ID = rf"({WORKFLOW_ID_PREFIX})?ord_\w+"
IDENTIFIERS = re.compile(ORDER_ID + r"|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+Z")


def personal_data_in(history: WorkflowHistory) -> list[str]:
    """The personal values that occur in a history. Its binary form has all texts and payloads as they are."""
    content = b"".join(event.SerializeToString() for event in history.events).lower()
    return [value for value in PERSONAL if value.lower().encode() in content]


def shape_of(history: WorkflowHistory) -> str:
    """A text that is equal for all orders on the same path."""
    return IDENTIFIERS.sub("", "\n".join(text for event in history.events for text in _texts(event)))


def _texts(part: Any) -> Iterator[str]:
    """All values of a message but times and those that vary. Faster than JSON, since each history is looked through."""
    if isinstance(part, Message):
        if isinstance(part, Timestamp):
            return
        for field, value in part.ListFields():
            if field.name not in VARYING_FIELDS:
                yield from _texts(value)
    elif isinstance(part, Mapping):
        for key in sorted(part):  # maps are unordered
            yield from _texts(part[key])
    elif isinstance(part, bytes):
        yield part.decode(errors="replace")
    elif isinstance(part, Iterable) and not isinstance(part, str):
        for item in part:
            yield from _texts(item)
    else:
        yield str(part)


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
            violations.extend(f"{history.workflow_id} holds {value!r}" for value in personal_data_in(history))
            violations.extend(
                f"{history.workflow_id}: a workflow task failed: {error}" for error in failed_tasks_in(history)
            )
            if (shape := shape_of(history)) not in replayed:
                replayed.add(shape)
                yield history

    results = await replayer(runner=UnsandboxedWorkflowRunner()).replay_workflows(
        histories(), raise_on_replay_failure=False
    )
    violations += [f"run {run_id} does not replay: {error}" for run_id, error in results.replay_failures.items()]
    assert not violations, "\n".join(violations)
    return {"workflows run": count, "of these, replayed": len(replayed), "days of their time skipped": skipped.days}
