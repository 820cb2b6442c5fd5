"""The ids in log lines, without any server. Those of traces: test_trace_ids.py."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from app import logs
from app.activities.redaction import RedactErrors
from app.messages import OrderRef
from app.names import WORKFLOW_ID_PREFIX as PREFIX


def line(**extra: Any) -> dict[str, Any]:
    record = logging.getLogger("test").makeRecord("test", logging.INFO, "", 0, "text", (), None, extra=extra)
    entry: dict[str, Any] = json.loads(logs.JsonFormatter().format(record))
    return {name: entry[name] for name in ("request_id", "order_id") if name in entry}


def test_line_without_order_has_no_ids() -> None:
    assert line() == {}


@pytest.mark.parametrize(
    ("workflow_id", "ids"),
    [
        (f"{PREFIX}ord_1", {"order_id": "ord_1"}),
        (f"{PREFIX}{PREFIX}1", {"order_id": f"{PREFIX}1"}),
        (f"re{PREFIX}1", {}),
        ("", {}),
    ],
)
def test_line_of_workflow_names_its_order_if_it_has_one(workflow_id: str, ids: dict[str, str]) -> None:
    """The SDK logs the failure of a workflow task with this field, outside of any context."""
    assert line(temporal_workflow={"workflow_id": workflow_id}) == ids


async def test_line_of_activity_names_the_order_of_its_argument() -> None:
    """Whichever workflow calls it: a reconciliation compensates the steps of many orders."""

    class Activity(ActivityInboundInterceptor):
        async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
            return line(temporal_activity={"workflow_id": "reconciliation"})

    call = ExecuteActivityInput(fn=line, args=[OrderRef(order_id="ord_1")], executor=None, headers={})
    interceptor = RedactErrors().intercept_activity(object.__new__(Activity))
    assert await asyncio.create_task(interceptor.execute_activity(call)) == {"order_id": "ord_1"}
    assert line() == {}
