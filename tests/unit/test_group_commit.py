"""Group commit: how requests are batched, ordered and isolated, with a scripted commit function."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from app.activities.group_commit import MAX_BATCH, GroupCommit
from tests.kit.waiting import eventually


class Outage(Exception):
    """An error that affects the whole batch."""


class ScriptedCommit:
    """Records batches. Blocks until `running` is set. Fails on a poisoned request, or while `unavailable` is True."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.submitted = 0
        self.concurrent = self.max_concurrent = 0
        self.running = asyncio.Event()
        self.unavailable = False
        self.group = GroupCommit(self.commit, affects_batch=lambda error: isinstance(error, Outage))

    async def commit(self, requests: Sequence[str]) -> list[str]:
        self.batches.append(list(requests))
        self.concurrent += 1
        self.max_concurrent = max(self.concurrent, self.max_concurrent)
        await self.running.wait()
        self.concurrent -= 1
        if self.unavailable:
            raise Outage
        if poison := [request for request in requests if request.startswith("poison")]:
            raise ValueError(poison[0])
        return [request.upper() for request in requests]

    def submit(self, *requests: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self._submit(request)) for request in requests]

    async def _submit(self, request: str) -> str:
        async with asyncio.timeout(10):
            self.submitted += 1
            return await self.group.submit(request)

    async def wait_for_counts(self, *, batches: int, submitted: int) -> None:
        async def look() -> tuple[int, int]:
            return len(self.batches), self.submitted

        await eventually(look, lambda seen: seen == (batches, submitted))


@pytest.fixture
async def scripted() -> ScriptedCommit:
    return ScriptedCommit()


async def test_waiting_requests_join_the_next_batch(scripted: ScriptedCommit) -> None:
    first = scripted.submit("hot0")
    await scripted.wait_for_counts(batches=1, submitted=1)
    crowd = scripted.submit(*(f"hot{number}" for number in range(1, 200)))
    other = scripted.submit("cold")
    await scripted.wait_for_counts(batches=1, submitted=201)  # one commit at a time
    scripted.running.set()
    assert await asyncio.gather(*first, *crowd, *other) == [f"HOT{n}" for n in range(200)] + ["COLD"]
    assert [len(batch) for batch in scripted.batches] == [1, 200]
    assert scripted.batches[1][-1] == "cold"
    assert scripted.max_concurrent == 1


async def test_lone_request_is_committed_at_once(scripted: ScriptedCommit) -> None:
    scripted.running.set()
    for request in ("a", "b"):
        (answer,) = scripted.submit(request)
        assert await answer == request.upper()
    assert scripted.batches == [["a"], ["b"]]


async def test_batches_are_bounded_and_ordered(scripted: ScriptedCommit) -> None:
    scripted.running.set()
    requests = [f"r{number}" for number in range(2 * MAX_BATCH + 5)]
    await asyncio.gather(*scripted.submit(*requests))
    assert [request for batch in scripted.batches for request in batch] == requests
    assert [len(batch) for batch in scripted.batches] == [MAX_BATCH, MAX_BATCH, 5]


async def test_poisoned_request_fails_alone(scripted: ScriptedCommit) -> None:
    scripted.running.set()
    requests = [*(f"r{number}" for number in range(63)), "poison"]
    results = await asyncio.gather(*scripted.submit(*requests), return_exceptions=True)
    assert isinstance(results.pop(), ValueError)
    assert results == [request.upper() for request in requests[:-1]]
    assert len(scripted.batches) == 1 + 2 * 6  # found by halving the batch six times


async def test_poisoned_requests_fail_each_with_its_own_error(scripted: ScriptedCommit) -> None:
    scripted.running.set()
    requests = ["poison0", "a", "b", "poison1", "poison2", "c"]
    results = await asyncio.gather(*scripted.submit(*requests), return_exceptions=True)
    assert [str(result) for result in results] == ["poison0", "A", "B", "poison1", "poison2", "C"]


async def test_outage_fails_the_whole_batch_at_once(scripted: ScriptedCommit) -> None:
    """Retrying each request alone would multiply the time of the outage."""
    scripted.running.set()
    scripted.unavailable = True
    results = await asyncio.gather(*scripted.submit("a", "b", "c"), return_exceptions=True)
    assert [type(result) for result in results] == [Outage] * 3
    assert len(scripted.batches) == 1
    scripted.unavailable = False
    (answer,) = scripted.submit("d")
    assert await answer == "D"


async def test_cancelled_caller_does_not_affect_the_others(scripted: ScriptedCommit) -> None:
    (running,) = scripted.submit("a")
    await scripted.wait_for_counts(batches=1, submitted=1)
    cancelled, waiting = scripted.submit("b", "c")
    await scripted.wait_for_counts(batches=1, submitted=3)
    running.cancel()
    cancelled.cancel()
    scripted.running.set()
    assert await waiting == "C"
    assert scripted.batches == [["a"], ["b", "c"]]  # a submitted request is committed even if its caller is cancelled


async def test_commit_with_too_few_results_fails_the_batch_only(scripted: ScriptedCommit) -> None:
    async def return_too_few(requests: Sequence[str]) -> list[str]:
        return []

    group = GroupCommit(return_too_few, affects_batch=lambda _: True)
    for _ in range(2):
        with pytest.raises(ValueError, match="shorter"):
            await asyncio.wait_for(group.submit("a"), 5)


async def test_batch_is_committed_outside_of_the_context_of_its_first_caller() -> None:
    """Log lines of a batch must not name the order that came first."""
    caller: ContextVar[str] = ContextVar("caller", default="none")

    async def commit(requests: list[str]) -> list[str]:
        return [caller.get()] * len(requests)

    group = GroupCommit(commit, affects_batch=lambda _: False)
    caller.set("first")
    assert await group.submit("request") == "none"
