"""Readiness, in the same words for the API and the worker."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel
from pymongo.errors import PyMongoError

from app.order_workflows import TemporalUnavailable

CHECK_TIMEOUT = 2.7  # seconds: the driver takes 2.5 to report why MongoDB is unavailable
REASONS = {  # by a pattern in the driver's or the SDK's message; the first match counts
    "refused|connect error": "connection refused",
    "no primary": "no primary, so nothing can be written",
    "namespace .*not found": "unknown namespace",
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
