"""Logs: one JSON object per line, on stderr. They contain order ids, never the content of an order (G11)."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that the API answers


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            entry["request_id"] = current
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


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
