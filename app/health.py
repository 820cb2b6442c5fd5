"""Liveness and readiness, in the same words for the API and the worker; and the worker's own endpoint for both."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel
from pymongo.errors import PyMongoError

from app.order_workflows import TemporalUnavailable

CHECK_TIMEOUT = 2.7  # seconds: the driver takes 2.5 to report why MongoDB is unavailable
REQUEST_TIMEOUT = 4.0  # seconds for one request to the worker, so that slow clients do not add up
REASONS = {  # by a pattern in the driver's or the SDK's message; the first match counts
    "refused|connect error": "connection refused",
    "no primary": "no primary, so nothing can be written",
    "authentication|unauthenticated|could not find user": "credentials rejected",
    "certificate": "untrusted certificate",
    "name or service|dns": "unknown host name",
    "": "no answer in time",
}

Ping = Callable[[], Awaitable[object]]


class Readiness(BaseModel):
    """`checks` has `ok` for each dependency, or the reason why it is unavailable."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]

    @classmethod
    async def of(cls, mongodb: Ping, temporal: Ping, **others: str) -> "Readiness":
        """Call MongoDB and Temporal; `others` are the results of other checks."""
        mongodb_result, temporal_result = await asyncio.gather(_check(mongodb), _check(temporal))
        checks = {"mongodb": mongodb_result, "temporal": temporal_result, **others}
        return cls(status="ready" if {*checks.values()} == {"ok"} else "not_ready", checks=checks)


async def _check(ping: Ping) -> str:
    """`ok`, or a readable reason that leaks no hosts or credentials."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await ping()
    except (PyMongoError, TimeoutError, TemporalUnavailable) as error:
        message = str(error.__cause__ or error).lower()
        return next(f"unavailable: {reason}" for pattern, reason in REASONS.items() if re.search(pattern, message))
    return "ok"


class WorkerHealth:
    """Answers GET /healthz while the event loop runs, and GET /readyz: 200 while the worker takes orders, else 503."""

    worker = "unavailable: starting"

    def __init__(self, mongodb: Ping, temporal: Ping) -> None:
        self._mongodb, self._temporal = mongodb, temporal

    async def serve(self, address: str) -> None:
        """Start to serve at host:port; it ends with the event loop, after the worker has stopped.

        Raises:
            SystemExit: the address cannot be used.
        """
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.start_server(self._answer, host.strip("[]"), int(port))
        except (OSError, OverflowError, UnicodeError) as error:
            raise SystemExit(f"wrong setting: WORKER_HEALTH_ADDRESS: {error}") from None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Suppressed: the client has left, is slow, or sends no HTTP, or the process ends.
        with closing(writer), suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request = await reader.readuntil(b"\r\n\r\n")
                status, body = 404, "{}"
                if request.startswith(b"GET /healthz "):
                    status, body = 200, '{"status":"ok"}'
                elif request.startswith(b"GET /readyz "):
                    readiness = await Readiness.of(self._mongodb, self._temporal, worker=self.worker)
                    status, body = 200 if readiness.status == "ready" else 503, readiness.model_dump_json()
                headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
                writer.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}\r\n\r\n{body}".encode())
                await writer.drain()
