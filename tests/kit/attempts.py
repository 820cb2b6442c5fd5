"""Run activities as a worker does, with an attempt number and its times."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from app.messages import OrderRef

Input = TypeVar("Input")
Output = TypeVar("Output")

SCHEDULED = datetime(2026, 1, 1, tzinfo=UTC)
STARTED = SCHEDULED + timedelta(seconds=1)  # of the first attempt; each retry starts a second later


async def attempt(activity: Callable[[Input], Awaitable[Output]], argument: Input, number: int = 1) -> Output:
    environment = ActivityEnvironment()
    started = STARTED + timedelta(seconds=number - 1)
    environment.info = dataclasses.replace(
        environment.info, attempt=number, scheduled_time=SCHEDULED, started_time=started
    )
    return await environment.run(activity, argument)


async def outcome(activity: Callable[[OrderRef], Awaitable[None]], order_id: str, number: int = 1) -> str:
    """Run one attempt. Returns `done`, the code of a non-retryable failure, or `retried`."""
    try:
        await attempt(activity, OrderRef(order_id=order_id), number)
    except ApplicationError as error:
        return f"{error.type}" if error.non_retryable else "retried"
    return "done"
