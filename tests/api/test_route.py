"""The API's route class and middleware, tested with endpoints that misbehave on purpose (G8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import StreamingResponse
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from app.api import route
from app.api.guard import Guard
from app.api.main import create_app
from app.api.problems import Problem
from app.domain import Model
from app.settings import ApiSettings
from tests.kit.http import kind_of

DEADLINE = 0.05
Endpoint = Callable[..., Awaitable[object]]


@pytest.fixture(autouse=True)
def deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "DEADLINE", DEADLINE)


def api_with(endpoint: Endpoint) -> FastAPI:
    app = create_app(ApiSettings(api_open=True))
    router = APIRouter(route_class=route.ApiRoute)
    router.post("/", response_model=None)(endpoint)
    app.include_router(router)
    return app


async def post(endpoint: Endpoint, body: bytes = b"") -> httpx.Response:
    transport = httpx.ASGITransport(app=api_with(endpoint))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post("/", content=body, headers={"Content-Type": "application/json"})


def measured(status: int) -> float:
    labels = {"method": "POST", "route": "/", "status": str(status)}
    return REGISTRY.get_sample_value("http_request_seconds_count", labels) or 0


def assert_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status


# --- the deadline


async def wait_forever() -> None:
    await asyncio.Event().wait()


async def raise_other_error_when_cancelled() -> None:
    try:
        await wait_forever()
    except asyncio.CancelledError as error:
        raise ConnectionError from error


async def cancel_child_when_cancelled() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_forever())


async def raise_http_problem_when_cancelled() -> None:
    try:
        await wait_forever()
    except asyncio.CancelledError as error:
        raise Problem("not-found", "there is no order") from error


@pytest.mark.parametrize(
    "endpoint",
    [wait_forever, raise_other_error_when_cancelled, cancel_child_when_cancelled, raise_http_problem_when_cancelled],
)
async def test_endpoint_that_misses_the_deadline_answers_503(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    before = measured(503)
    answer = await post(endpoint)
    assert_problem(answer, 503)
    assert (kind_of(answer), answer.headers["Retry-After"]) == ("deadline-exceeded", "2")
    assert measured(503) == before + 1
    assert caplog.messages == ["503: deadline-exceeded"]  # the error that came late is none


async def test_endpoint_that_ignores_its_cancellation_answers_late() -> None:
    """The deadline covers only the endpoint, so it cannot discard a finished answer."""

    async def answer_when_cancelled() -> str:
        try:
            await wait_forever()
        except asyncio.CancelledError:
            return "late"
        return "never"

    answer = await post(answer_when_cancelled)
    assert (answer.status_code, answer.json()) == (200, "late")


async def test_response_begun_in_time_may_outlast_the_deadline() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(3 * DEADLINE)
        yield b", last"

    async def stream() -> Response:
        return StreamingResponse(chunks())

    answer = await post(stream)
    assert (answer.status_code, answer.text) == (200, "first, last")


async def test_body_that_misses_the_deadline_answers_503() -> None:
    async def read(body: Model) -> None: ...

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(3 * DEADLINE)
        yield b"}"

    read.__annotations__["body"] = Model
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=api_with(read)), base_url="http://localhost"
    ) as client:
        assert_problem(await client.post("/", content=slow(), headers={"Content-Type": "application/json"}), 503)


async def test_request_cancelled_from_outside_stays_cancelled() -> None:
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await wait_forever()

    request = asyncio.create_task(post(wait))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


# --- errors


async def test_unexpected_error_is_a_problem_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise KeyError("a secret")

    before = measured(500)
    answer = await post(fail)
    assert_problem(answer, 500)
    assert "secret" not in answer.text
    assert [record.message for record in caplog.records] == ["unexpected error"]
    assert measured(500) == before + 1


async def test_unexpected_error_outside_a_route_is_a_problem() -> None:
    app = create_app(ApiSettings(api_open=True))

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("a secret")

    app.mount("/broken", fail)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert_problem(await client.get("/broken/page"), 500)


async def test_error_after_response_began_is_raised() -> None:
    """The server then closes the connection: the client sees a truncated response, not two responses."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        raise KeyError("late")

    async def stream() -> Response:
        return StreamingResponse(chunks())

    with pytest.raises(KeyError, match="late"):
        await post(stream)


# --- bodies, metrics, other scopes


@pytest.mark.parametrize(("size", "status"), [(64 * 1024, 200), (64 * 1024 + 1, 413)])
async def test_body_is_limited_to_64_kib(size: int, status: int) -> None:
    async def read(body: dict[str, str]) -> int:
        return len(body)

    read.__annotations__["body"] = dict[str, str]
    answer = await post(read, b"{}" + b" " * (size - 2))
    assert answer.status_code == status
    if status != 200:
        assert_problem(answer, status)


async def test_metrics_count_each_request_once() -> None:
    async def stream() -> Response:
        return StreamingResponse(iter([b"a", b"b", b"c"]))

    before = measured(200)
    await post(stream)
    assert measured(200) == before + 1


async def test_other_scopes_pass_unchanged() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await send({"type": "lifespan.startup.complete"})

    async def nothing(*_: object) -> None: ...

    await Guard(app, open=False)({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]
