"""The ids in log lines, without any server. The lines of real processes: tests/e2e/test_tracing.py."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from app import logs, tracing
from app.activities.redaction import RedactErrors
from app.domain import Order
from app.messages import OrderRef
from app.names import WORKFLOW_ID_PREFIX as PREFIX
from tests.kit.orders import order_document

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def line(**extra: Any) -> dict[str, Any]:
    record = logging.getLogger("test").makeRecord("test", logging.INFO, "", 0, "text", (), None, extra=extra)
    entry: dict[str, Any] = json.loads(logs.JsonFormatter().format(record))
    return {name: entry[name] for name in ("request_id", "order_id", "trace_id") if name in entry}


def test_line_without_order_and_trace_has_no_ids() -> None:
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


def test_line_outside_of_a_trace_has_that_of_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracing._trace_ids, "ord_1", int(TRACE, 16))
    assert line(order_id="ord_1") == {"order_id": "ord_1", "trace_id": TRACE}
    assert line(order_id="ord_2") == {"order_id": "ord_2"}


@pytest.mark.parametrize(
    ("stored", "trace_id"),
    [
        (TRACEPARENT, TRACE),
        (None, None),
        ("", None),
        ("00-zz-1-01", None),
        (5, None),
        ([TRACEPARENT], None),
        ({}, None),
    ],
)
def test_stored_trace_is_continued_if_it_is_valid(stored: object, trace_id: str | None) -> None:
    """Another program may insert an order with anything in this field."""
    order = Order.from_document(order_document(traceparent=stored))
    with tracing.continued(order.traceparent):
        assert line().get("trace_id") == trace_id
        assert tracing.traceparent() == (TRACEPARENT if trace_id else None)
    assert line() == {}
    assert "traceparent" not in order.model_dump(mode="json")
