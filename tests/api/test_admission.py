"""Under overload, requests are answered in time or refused early with Retry-After; health checks always answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from app.api import admission
from app.api.admission import MAX_IN_PROGRESS
from app.api.main import create_app
from app.api.route import ApiRoute
from app.settings import ApiSettings
from tests.kit.http import kind_of
from tests.kit.waiting import eventually


class Held:
    """An API with endpoints that answer when the test lets them."""

    def __init__(self) -> None:
        self.in_progress = 0
        self.released = asyncio.Event()
        app = create_app(ApiSettings(api_open=True))
        router = APIRouter(route_class=ApiRoute)
        router.get("/held", response_model=None)(self._hold)
        router.get("/stream", response_model=None)(self._stream)
        router.get("/held/events", response_model=None)(self._hold)
        app.include_router(router)
        self.api = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")
        self._requests: list[asyncio.Task[httpx.Response]] = []

    async def _hold(self) -> str:
        self.in_progress += 1
        await self.released.wait()
        return "answered"

    async def _stream(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            self.in_progress += 1
            yield b"begun"
            await self.released.wait()

        return StreamingResponse(chunks())

    async def hold(self, number: int, path: str = "/held") -> None:
        """Send as many requests, and wait until the endpoint has begun each."""
        expected = self.in_progress + number
        self._requests += [asyncio.create_task(self.api.get(path)) for _ in range(number)]
        await eventually(self._seen, lambda seen: seen == expected)

    async def _seen(self) -> int:
        return self.in_progress

    async def release(self) -> list[int]:
        """Let all held requests end. Returns their statuses."""
        self.released.set()
        return [answer.status_code for answer in await asyncio.gather(*self._requests)]


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    held = Held()
    async with held.api:
        yield held
        await held.release()


async def test_request_beyond_the_bound_answers_503_while_health_checks_answer(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "MAX_WAIT", 0)
    await held.hold(MAX_IN_PROGRESS)
    for _ in range(2):
        refused = await held.api.get("/held")
        assert (refused.status_code, kind_of(refused), refused.headers["Retry-After"]) == (503, "overloaded", "2")
        assert refused.headers["Content-Type"] == "application/problem+json"
    assert held.in_progress == MAX_IN_PROGRESS
    for path in ("/healthz", "/metrics"):
        assert (await held.api.get(path)).status_code == 200, path
    assert not caplog.messages  # a line for each would add to the load

    assert await held.release() == [200] * MAX_IN_PROGRESS
    assert (await held.api.get("/held")).status_code == 200


async def test_request_beyond_the_bound_is_answered_when_another_ends(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_WAIT", 60)
    await held.hold(MAX_IN_PROGRESS)
    waiting = asyncio.create_task(held.api.get("/held"))
    assert await held.release() == [200] * MAX_IN_PROGRESS
    assert (await waiting).status_code == 200


@pytest.mark.parametrize("path", ["/stream", "/held/events"])
async def test_answers_under_way_and_event_streams_leave_places_to_other_requests(
    held: Held, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(admission, "MAX_WAIT", 0)
    await held.hold(MAX_IN_PROGRESS, path)
    await held.hold(MAX_IN_PROGRESS)
    assert await held.release() == [200] * (2 * MAX_IN_PROGRESS)


async def test_client_that_leaves_leaves_its_place(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_WAIT", 0)
    for _ in range(2):
        await held.hold(MAX_IN_PROGRESS)
        for request in held._requests:
            request.cancel()
        await asyncio.wait(held._requests)
        held._requests.clear()
