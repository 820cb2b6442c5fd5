"""Logs: one JSON object per line, on stderr. They contain order ids, never the content of an order (G11)."""

import json
import logging
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from app import tracing
from app.names import WORKFLOW_ID_PREFIX

# Of the request that the API answers, and of the order that the request or the activity concerns.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
order_id: ContextVar[str | None] = ContextVar("order_id", default=None)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields, order = vars(record), _order_id(record)
        entry |= {"request_id": request_id.get(), "order_id": order}
        entry["trace_id"] = tracing.trace_id(order)
        details = fields.get("temporal_activity") or {}
        entry |= {"activity": details.get("activity_type"), "attempt": details.get("attempt")}
        if record.exc_info:
            is_failed_attempt = fields.get("__temporal_error_identifier") == "ActivityFailure"
            entry["exception"] = (_brief if is_failed_attempt else self.formatException)(record.exc_info)
        return json.dumps({name: value for name, value in entry.items() if value is not None})


def _brief(exc_info: Any) -> str:
    """Return what was raised and where. The stack trace of a failed attempt is in the workflow's history."""
    *_, (frame, line) = traceback.walk_tb(exc_info[2])
    return f"{exc_info[1]!r} at {frame.f_code.co_filename}:{line}"


def _order_id(record: logging.LogRecord) -> str | None:
    """Return the order that a line concerns, by its own field, its context, or the workflow that the SDK names."""
    fields = vars(record)
    details = fields.get("temporal_activity") or fields.get("temporal_workflow") or {}
    prefix, _, found = (details.get("workflow_id") or "").partition(WORKFLOW_ID_PREFIX)
    return fields.get("order_id") or order_id.get() or (None if prefix else found or None)


def configure(level: str) -> None:
    handler = logging.StreamHandler()  # stderr
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    activity.logger.activity_info_on_message = False  # the formatter has fields for it
    logging.getLogger("pymongo").setLevel(logging.INFO)  # at DEBUG it logs whole commands, with their data
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs whole URLs
    for logger in (logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")):
        if logger.handlers:  # its own text handlers; without any (--no-access-log) it stays silent
            logger.handlers.clear()
            logger.propagate = True
