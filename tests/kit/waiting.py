"""Wait for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], until: Callable[[T], bool] = bool, *, within: float = 60) -> T:
    """Call `look` until `until` accepts its result, and return that. On a timeout, fail with the last result.

    It looks less and less often, down to ten times a second: each look costs the servers and this process time.
    """
    seen: T
    pause = 0.02
    try:
        async with asyncio.timeout(within):
            while True:
                seen = await look()
                if until(seen):
                    return seen
                await asyncio.sleep(pause)
                pause = min(1.3 * pause, 0.1)
    except TimeoutError:
        raise AssertionError(f"not within {within} s; last seen: {seen!r}") from None
