"""The guard refuses requests of other sites' pages and sets the security headers of every response."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse

from app.api.guard import METHODS, Guard
from tests.kit.http import assert_secure, kind_of
from tests.kit.shop import Shop

Headers = list[tuple[bytes, bytes]]

LOOPBACK = [
    *("localhost", "localhost:8000", "LocalHost:8000", "desk.localhost", "a.b-1.localhost:80"),
    *("127.0.0.1", "127.0.0.1:8000", "127.1.2.3:65535", "[::1]", "[::1]:8000"),
]
ELSEWHERE = [
    *("evil.test", "evil.test:8000", "192.168.0.1", "10.0.0.1", "[::]", "[::ffff:127.0.0.1]", "api"),
    *("127.0.0.1.evil.test", "localhost.evil.test", "evil-localhost", "notlocalhost", ".localhost", "a..localhost"),
    *("127.1", "127.0.0", "2130706433", "0x7f.0.0.1", "127.0.0.1.", "localhost.", "[::1", "::1", "[::1%25lo]"),
    *("", " ", "localhost:", "localhost:x", "localhost:999999", "localhost/", "localhost\n", "localhost, evil.test"),
    *("user@localhost", "localhost@evil.test", "evil.test#localhost", "evil.test\\.localhost", "l\u00f6calhost"),
]
HOST = (b"host", b"desk.example:8000")


async def request(method: str, headers: Headers, *, open: bool = False) -> httpx.Response:  # noqa: A002
    """Send these very headers through the guard to an app that answers 200 `passed`."""
    app = Guard(PlainTextResponse("passed"), open=open)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport) as client:
        made = httpx.Request(method, "http://unused/orders")
        made.method, made.headers = method, httpx.Headers(headers)  # as they are: not in capitals, without a Host
        answer = await client.send(made)
    if answer.status_code != 200:
        assert answer.headers["Content-Type"] == "application/problem+json"
    return answer


async def statuses(method: str, cases: Iterable[Headers], *, open: bool = False) -> list[int]:  # noqa: A002
    return [(await request(method, headers, open=open)).status_code for headers in cases]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_open_api_answers_loopback_host_names_only(method: str) -> None:
    loopback = [[(b"host", host.encode())] for host in LOOPBACK]
    elsewhere: list[Headers] = [[(b"host", host.encode("latin-1"))] for host in ELSEWHERE]
    elsewhere += [[], [(b"host", b"localhost"), (b"host", b"localhost")], [(b"x-forwarded-host", b"localhost")]]
    assert await statuses(method, loopback, open=True) == [200] * len(loopback)
    assert await statuses(method, elsewhere, open=True) == [421] * len(elsewhere)
    assert await statuses(method, elsewhere, open=False) == [200] * len(elsewhere)
    problem = (await request(method, [HOST], open=True)).json()
    assert "API_KEYS" in problem["detail"]
    assert "desk.example" not in problem["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW", "get"])
async def test_unsafe_request_of_another_origin_is_refused(method: str) -> None:
    same: list[Headers] = [
        [HOST, (b"sec-fetch-site", b"same-origin"), (b"origin", b"http://rewritten.example")],
        [HOST, (b"sec-fetch-site", b"none")],
        [HOST, (b"origin", b"http://desk.example:8000")],
        [HOST, (b"origin", b"https://DESK.example:8000")],
        [HOST],
    ]
    other: list[Headers] = [
        [HOST, (b"sec-fetch-site", b"cross-site")],
        [HOST, (b"sec-fetch-site", b"same-site"), (b"origin", b"http://desk.example:8000")],
        [HOST, (b"sec-fetch-site", b"")],
        [HOST, (b"sec-fetch-site", b"same-origin"), (b"sec-fetch-site", b"cross-site")],
        [HOST, (b"origin", b"http://desk.example")],
        [HOST, (b"origin", b"http://desk.example:8001")],
        [HOST, (b"origin", b"http://evil.test")],
        [HOST, (b"origin", b"null")],
        [HOST, (b"origin", b"")],
        [HOST, (b"origin", b"desk.example:8000")],
        [HOST, (b"origin", b"http://desk.example:8000"), (b"origin", b"http://evil.test")],
        [HOST, HOST, (b"origin", b"http://desk.example:8000")],
        [(b"origin", b"http://desk.example:8000")],
    ]
    assert await statuses(method, same) == [200] * len(same)
    assert await statuses(method, other) == [403] * len(other)


async def test_safe_request_of_another_origin_passes_the_guard() -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        headers = [HOST, (b"sec-fetch-site", b"cross-site"), (b"origin", b"http://evil.test")]
        assert await statuses(method, [headers]) == [200]


async def test_every_response_has_security_headers(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock()
    paths = ["/orders", "/healthz", "/metrics", "/nowhere", "/orders/*"]
    answers = [await api.get(path) for path in paths]
    answers += [await api.post("/inventory/MUG/restock", json={"quantity": 1}), await api.delete("/orders")]
    answers += [await api.get("/orders", headers={"Host": "evil.test"})]
    answers += [await api.post("/orders", headers={"Sec-Fetch-Site": "cross-site"})]
    assert [answer.status_code for answer in answers] == [200] * 3 + [404, 422, 200, 405, 421, 403]
    kinds = [kind_of(answer) for answer in answers if answer.is_error]
    assert kinds == ["not-found", "invalid-request", "method-not-allowed", "wrong-host-name", "foreign-origin"]
    for answer in answers:
        assert_secure(answer)
        assert answer.headers.get_list("Cache-Control") == ["no-store"], answer.url


async def test_unknown_methods_share_one_label_of_the_metrics() -> None:
    """uvicorn accepts about 40 methods or, with its other HTTP parser, any word."""
    transport = httpx.ASGITransport(Guard(PlainTextResponse("answered"), open=False))
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        for method in ("GET", "PATCH", "JUNK", "PROPFIND", "TRACE"):
            await client.request(method, "/")
    methods = {
        sample.labels["method"]
        for metric in REGISTRY.collect()
        if metric.name == "http_request_seconds"
        for sample in metric.samples
    }
    assert {"GET", "PATCH", "other"} <= methods <= METHODS | {"other"}
