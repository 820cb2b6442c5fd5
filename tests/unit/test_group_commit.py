"""The order in which requests are served, with a commit that ends on cue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from app.activities.group_commit import MAX_BATCH, GroupCommit
from tests.kit.waiting import eventually


class Outage(Exception):
    """Concerns the whole batch."""


class Commits:
    """Records its batches. Held while `running` is not set; fails on a poisoned request, or while `away`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.asked = 0
        self.at_once = self.most_at_once = 0
        self.running = asyncio.Event()
        self.away = False
        self.group = GroupCommit(self.commit, affects_batch=lambda error: isinstance(error, Outage))

    async def commit(self, requests: Sequence[str]) -> list[str]:
        self.batches.append(list(requests))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await self.running.wait()
        self.at_once -= 1
        if self.away:
            raise Outage
        if poison := [request for request in requests if request.startswith("poison")]:
            raise ValueError(poison[0])
        return [request.upper() for request in requests]

    def submit(self, *requests: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self._submit(request)) for request in requests]

    async def _submit(self, request: str) -> str:
        async with asyncio.timeout(10):
            self.asked += 1
            return await self.group.submit(request)

    async def until(self, *, batches: int, asked: int) -> None:
        async def look() -> tuple[int, int]:
            return len(self.batches), self.asked

        await eventually(look, lambda seen: seen == (batches, asked))


@pytest.fixture
async def commits() -> Commits:
    return Commits()


async def test_waiting_requests_join_the_next_batch(commits: Commits) -> None:
    first = commits.submit("hot0")
    await commits.until(batches=1, asked=1)
    crowd = commits.submit(*(f"hot{number}" for number in range(1, 200)))
    other = commits.submit("cold")
    await commits.until(batches=1, asked=201)  # one commit at a time
    commits.running.set()
    assert await asyncio.gather(*first, *crowd, *other) == [f"HOT{n}" for n in range(200)] + ["COLD"]
    assert [len(batch) for batch in commits.batches] == [1, 200]
    assert commits.batches[1][-1] == "cold"
    assert commits.most_at_once == 1


async def test_lone_request_is_committed_at_once(commits: Commits) -> None:
    commits.running.set()
    for request in ("a", "b"):
        (answer,) = commits.submit(request)
        assert await answer == request.upper()
    assert commits.batches == [["a"], ["b"]]


async def test_batches_are_bounded_and_ordered(commits: Commits) -> None:
    commits.running.set()
    requests = [f"r{number}" for number in range(2 * MAX_BATCH + 5)]
    await asyncio.gather(*commits.submit(*requests))
    assert [request for batch in commits.batches for request in batch] == requests
    assert [len(batch) for batch in commits.batches] == [MAX_BATCH, MAX_BATCH, 5]


async def test_poisoned_request_fails_alone(commits: Commits) -> None:
    commits.running.set()
    requests = [*(f"r{number}" for number in range(63)), "poison"]
    results = await asyncio.gather(*commits.submit(*requests), return_exceptions=True)
    assert isinstance(results.pop(), ValueError)
    assert results == [request.upper() for request in requests[:-1]]
    assert len(commits.batches) == 1 + 2 * 6  # halved six times, not tried one by one


async def test_poisoned_requests_fail_each_with_its_own_error(commits: Commits) -> None:
    commits.running.set()
    requests = ["poison0", "a", "b", "poison1", "poison2", "c"]
    results = await asyncio.gather(*commits.submit(*requests), return_exceptions=True)
    assert [str(result) for result in results] == ["poison0", "A", "B", "poison1", "poison2", "C"]


async def test_outage_fails_the_whole_batch_at_once(commits: Commits) -> None:
    """Retrying each request alone would take as many times as long."""
    commits.running.set()
    commits.away = True
    results = await asyncio.gather(*commits.submit("a", "b", "c"), return_exceptions=True)
    assert [type(result) for result in results] == [Outage] * 3
    assert len(commits.batches) == 1
    commits.away = False
    (answer,) = commits.submit("d")
    assert await answer == "D"


async def test_cancelled_caller_does_not_affect_the_others(commits: Commits) -> None:
    (running,) = commits.submit("a")
    await commits.until(batches=1, asked=1)
    leaves, stays = commits.submit("b", "c")
    await commits.until(batches=1, asked=3)
    running.cancel()
    leaves.cancel()
    commits.running.set()
    assert await stays == "C"
    assert commits.batches == [["a"], ["b", "c"]]  # it was submitted, so it is committed


async def test_commit_with_too_few_results_fails_the_batch_only(commits: Commits) -> None:
    async def forgetful(requests: Sequence[str]) -> list[str]:
        return []

    group = GroupCommit(forgetful, affects_batch=lambda _: True)
    for _ in range(2):
        with pytest.raises(ValueError, match="shorter"):
            await asyncio.wait_for(group.submit("a"), 5)
