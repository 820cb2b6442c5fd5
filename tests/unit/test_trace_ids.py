"""The trace ids of orders, without any server. Those of real processes: tests/e2e/test_tracing.py."""

from __future__ import annotations

import json
import logging
from contextvars import copy_context
from typing import Any

import pytest

from app import logs, tracing
from app.domain import Order
from tests.kit.orders import order_document

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def trace_id(**extra: Any) -> str | None:
    """The trace that a log line names."""
    record = logging.getLogger("test").makeRecord("test", logging.INFO, "", 0, "text", (), None, extra=extra)
    entry: dict[str, str] = json.loads(logs.JsonFormatter().format(record))
    return entry.get("trace_id")


def test_line_outside_of_a_trace_has_that_of_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracing._trace_ids, "ord_1", int(TRACE, 16))
    assert trace_id(order_id="ord_1") == TRACE
    assert trace_id(order_id="ord_2") is None


@pytest.mark.parametrize(
    ("stored", "resumed"),
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
def test_stored_trace_is_resumed_if_it_is_valid(stored: object, resumed: str | None) -> None:
    """Another program may insert an order with anything in this field."""
    order = Order.from_document(order_document(traceparent=stored))

    def resume() -> tuple[str | None, str | None]:
        tracing.resume(TRACEPARENT.replace("0a", "0b"))  # of the order before: nothing of it remains
        tracing.resume(order.traceparent)
        return trace_id(), tracing.traceparent()

    assert copy_context().run(resume) == (resumed, TRACEPARENT if resumed else None)
    assert trace_id() is None
    assert "traceparent" not in order.model_dump(mode="json")
