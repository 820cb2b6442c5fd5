"""The middleware of the API, in its own order, around applications that misbehave on purpose (G8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import middleware
from app.api.main import create_app
from app.settings import Settings

OK = JSONResponse({"answer": "late"})


@pytest.fixture(autouse=True)
def deadline(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(middleware, "DEADLINE", 0.05)
    return middleware.DEADLINE


def behind_middleware(app: ASGIApp) -> ASGIApp:
    for layer in reversed(create_app(Settings()).user_middleware):
        app = layer.cls(app, *layer.args, **layer.kwargs)
    return app


async def post(app: ASGIApp, body: bytes = b"") -> httpx.Response:
    """One request through the middleware."""
    transport = httpx.ASGITransport(app=behind_middleware(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        return await client.post("/", content=body)


def measured(status: int) -> float:
    return REGISTRY.get_sample_value("http_request_seconds_count", {"method": "POST", "status": str(status)}) or 0


def assert_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status


# --- what an application may do when the deadline cancels it


async def respond_when_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
    """The call that was cancelled is reported as an error of its own, which has a response."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await OK(scope, receive, send)


async def respond_in_child_task(scope: Scope, receive: Receive, send: Send) -> None:
    """The response begins in a child task, as an event stream's does, while the parent is being cancelled."""
    parent_cancelled = asyncio.Event()

    async def respond() -> None:
        await parent_cancelled.wait()
        await OK(scope, receive, send)

    async with asyncio.TaskGroup() as group:
        child = group.create_task(respond())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            parent_cancelled.set()
            await child
            raise


async def raise_other_error_when_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        raise ConnectionError from error


async def return_when_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


async def wait_forever(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "app",
    [
        respond_when_cancelled,
        respond_in_child_task,
        raise_other_error_when_cancelled,
        return_when_cancelled,
        wait_forever,
    ],
)
async def test_deadline_whatever_the_application_does_answers_503(
    app: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    before = measured(503)
    answer = await post(app)
    assert_problem(answer, 503)
    assert answer.headers["Retry-After"] == "2"
    assert measured(503) == before + 1
    assert caplog.records == []


async def test_response_that_begins_in_time_may_outlast_the_deadline(deadline: float) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.sleep(3 * deadline)
            yield b", last"

        await StreamingResponse(chunks())(scope, receive, send)

    answer = await post(stream)
    assert (answer.status_code, answer.text) == (200, "first, last")


async def test_request_cancelled_from_outside_stays_cancelled() -> None:
    request = asyncio.create_task(post(wait_forever))
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


# --- errors


async def test_unexpected_error_is_a_problem_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("a secret")

    before = measured(500)
    answer = await post(fail)
    assert_problem(answer, 500)
    assert "secret" not in answer.text
    assert [record.message for record in caplog.records] == ["unexpected error"]
    assert measured(500) == before + 1


async def test_unexpected_error_after_the_response_began_is_raised() -> None:
    """The server then closes the connection, so that the client sees a response cut short, not two in one."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("late")

    with pytest.raises(KeyError, match="late"):
        await post(fail)


# --- bodies, metrics, other scopes


@pytest.mark.parametrize(("size", "status"), [(64 * 1024, 200), (64 * 1024 + 1, 413)])
async def test_body_limit(size: int, status: int) -> None:
    app = create_app(Settings())

    @app.post("/")
    async def read(request: Request) -> int:
        return len(await request.body())

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api") as client:
        answer = await client.post("/", content=b" " * size)
    assert answer.status_code == status
    if status != 200:
        assert_problem(answer, status)


async def test_metrics_count_each_request_once() -> None:
    before = measured(200)
    await post(StreamingResponse(iter([b"a", b"b", b"c"])))
    assert measured(200) == before + 1


async def test_other_scopes_pass_unchanged() -> None:
    seen: list[tuple[Scope, Callable[..., object], Callable[..., object]]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def nothing(*_: object) -> None: ...

    await behind_middleware(app)({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]
    assert seen == [({"type": "lifespan"}, nothing, nothing)]
