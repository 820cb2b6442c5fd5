"""Group commit: callers that come at the same time share one transaction.

Transactions on one hot document conflict with each other and are tried again; measured, 32 callers on one article made
52 reservations a second that way. Here the callers of a process queue up, and whoever is queued when a transaction ends
is in the next one, so a caller waits for at most one transaction before its own, whatever the others want.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class GroupCommit(Generic[Request, Result]):
    """`commit` gets the requests in the order they came, and returns a result for each."""

    def __init__(self, commit: Callable[[Sequence[Request]], Awaitable[Sequence[Result]]]) -> None:
        self._commit = commit
        self._waiting: list[tuple[Request, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, request: Request) -> Result:
        """Raises: whatever `commit` raises, for every caller whose request was in it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await self._commit([request for request, _ in batch])
            except Exception as error:  # noqa: BLE001  (not ours to judge: it goes to every caller)
                for _, future in batch:
                    if not future.done():  # a caller that was cancelled does not wait any more
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        self._running = None
