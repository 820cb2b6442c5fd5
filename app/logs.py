"""Logs: one JSON object per line, on stderr. They contain order ids, never the content of an order (G11)."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

from app import tracing
from app.names import WORKFLOW_ID_PREFIX

# Of the request that the API answers, and of the order that the request or the activity concerns.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
order_id: ContextVar[str | None] = ContextVar("order_id", default=None)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, str | None] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        order = _order_id(record)
        entry |= {"request_id": request_id.get(), "order_id": order}
        entry["trace_id"] = tracing.trace_id(order)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in entry.items() if value is not None})


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
    logging.getLogger("pymongo").setLevel(logging.INFO)  # at DEBUG it logs whole commands, with their data
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs whole URLs
    for logger in (logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")):
        if logger.handlers:  # its own text handlers; without any (--no-access-log) it stays silent
            logger.handlers.clear()
            logger.propagate = True
