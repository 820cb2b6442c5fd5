"""nginx with deploy/nginx.conf, in front of the API: TLS, limits against slow, large and greedy clients, events."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from app.api import hub, route
from app.api.guard import Guard
from app.settings import ApiSettings
from dev.servers import HOST, Server, free_port
from dev.stack import ROOT
from tests.kit.certificates import Authority
from tests.kit.http import closed, key_of, serve
from tests.kit.nginx import needs_nginx, running_nginx
from tests.kit.orders import order_body
from tests.kit.shop import Shop

pytestmark = needs_nginx

NAME = "shop.example"
KEY = f"Bearer {key_of('shop')}"


class Proxy:
    """The running proxy. `received` has the scope of each request that reached the API."""

    def __init__(self, port: int, trust: ssl.SSLContext, received: list[Any]) -> None:
        self._port = port
        self._trust = trust
        self.received = received

    async def open(
        self, *lines: str, name: str = NAME, client: str = HOST
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send the first lines of a request on a new connection from the loopback address `client`."""
        reader, writer = await asyncio.open_connection(
            HOST, self._port, ssl=self._trust, server_hostname=name, local_addr=(client, 0), ssl_shutdown_timeout=0.1
        )
        writer.write("".join(f"{line}\r\n" for line in lines).encode())
        return reader, writer

    async def status(self, path: str = "/healthz", *lines: str, client: str = HOST) -> int:
        """The status of a GET, whose body is not read."""
        first = (f"GET {path} HTTP/1.1", f"Host: {NAME}", f"Authorization: {KEY}")
        reader, writer = await self.open(*first, *lines, "", client=client)
        try:
            return int((await reader.readuntil(b"\r\n")).split()[1])
        finally:
            writer.close()


@pytest.fixture(scope="module")
def received() -> Iterator[list[Any]]:
    """The scopes of the requests that reach the API's middleware."""
    scopes: list[Any] = []
    call = Guard.__call__

    async def record(self: Guard, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scopes.append(scope)
        await call(self, scope, receive, send)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "__call__", record)
        yield scopes


@pytest.fixture
async def proxy(
    settings: ApiSettings, temporal_server: Server, received: list[Any], tmp_path: Path
) -> AsyncIterator[Proxy]:
    authority = Authority(tmp_path)
    own = authority.issue(NAME)
    port = free_port()
    site = (ROOT / "deploy/nginx.conf").read_text()
    async with serve(closed(settings, "shop"), temporal_server.address) as api:
        for written, here in {
            "127.0.0.1:8000": f"{HOST}:{api.base_url.port}",
            "listen 443 ssl": f"listen {HOST}:{port} ssl",
            f"/etc/ssl/{NAME}.pem": str(own.certificate),
            f"/etc/ssl/private/{NAME}.key": str(own.key),
            "client_header_timeout 10s": "client_header_timeout 3s",
            "client_body_timeout 10s": "client_body_timeout 3s",
            "rate=50r/s": "rate=1r/s",
        }.items():
            assert written in site
            site = site.replace(written, here)
        async with running_nginx(tmp_path / "nginx", site, port):
            received.clear()
            yield Proxy(port, ssl.create_default_context(cafile=authority.certificate), received)


async def test_order_is_placed_over_tls_and_its_events_arrive_at_once(proxy: Proxy, shop: Shop, worker: None) -> None:
    await shop.stock()
    body = json.dumps(order_body(payment_method="pm_card_outage"))  # stays in progress, so the stream does not end
    reader, writer = await proxy.open(
        "POST /orders HTTP/1.1", f"Host: {NAME}", f"Authorization: {KEY}", "Content-Type: application/json",
        f"Content-Length: {len(body)}", "X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: http",
        "X-Forwarded-Host: evil.example", "Forwarded: for=203.0.113.7", "", body,
    )  # fmt: skip
    answer = await reader.readuntil(b"\r\n\r\n")
    assert b" 202 " in answer.splitlines()[0]
    order_id = answer.split(b"/orders/")[1].split()[0].decode()

    (scope,) = proxy.received
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    assert headers["host"] == NAME
    assert headers["x-forwarded-for"] == HOST
    assert headers["x-forwarded-proto"] == scope["scheme"] == "https"
    assert not headers.keys() & {"x-forwarded-host", "forwarded"}
    assert scope["http_version"] == "1.1"
    assert "connection" not in headers  # so the connection to the API stays open
    writer.close()

    path = f"/orders/{order_id}/events"
    reader, writer = await proxy.open(f"GET {path} HTTP/1.1", f"Host: {NAME}", f"Authorization: {KEY}", "")
    async with asyncio.timeout(20):
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b'"reserved"')
    writer.close()


async def test_large_requests_and_internal_pages_do_not_reach_the_api(proxy: Proxy) -> None:
    assert await proxy.status("/orders", f"X-Filler: {'x' * 9_000}") == 400
    assert await proxy.status("/orders", *(f"X-Filler-{n}: {'x' * 7_000}" for n in range(5))) == 400
    assert await proxy.status(f"/orders?status={'x' * 9_000}") == 414
    assert await proxy.status("/orders", "Content-Length: 65537") == 413
    assert await proxy.status("/orders", "Transfer-Encoding: chunked", "Content-Length: 4") == 400
    hidden = ["/metrics", "/docs", "/openapi.json", "/source/order.py", "/readyz"]
    for path in (*hidden, "//metrics", "/x/../metrics", "/%6Detrics"):
        assert await proxy.status(path) == 404, path
    reader, writer = await proxy.open("GET /healthz HTTP/1.1", "Host: rebound.example", "")
    assert b" 421 " in await reader.readuntil(b"\r\n")
    writer.close()
    with pytest.raises(ssl.SSLError):
        await proxy.open(name="rebound.example")
    assert proxy.received == []
    assert await proxy.status() == 200  # so requests can be received


async def test_slow_clients_are_disconnected_while_others_are_served(proxy: Proxy) -> None:
    slow = [await proxy.open(*lines) for lines in [[], ["POST /orders HTTP/1.1", f"Host: {NAME}"]] * 100]
    head = ["POST /orders HTTP/1.1", f"Host: {NAME}", f"Authorization: {KEY}", "Content-Length: 1000", "", "{"]
    slow += [await proxy.open(*head) for _ in range(10)]
    assert await proxy.status() == 200
    async with asyncio.timeout(20):
        for reader, writer in slow:
            with suppress(ConnectionResetError):
                assert (await reader.read()).split(b" ")[0:2] in ([b""], [b"HTTP/1.1", b"408"])
            writer.close()
    assert [scope["path"] for scope in proxy.received] == ["/healthz"]


def test_proxy_waits_as_long_as_a_client_may_prefer_to() -> None:
    [seconds] = re.findall(r"location / {[^}]*proxy_read_timeout (\d+)s", (ROOT / "deploy/nginx.conf").read_text())
    assert int(seconds) >= hub.MAX_WAIT + route.DEADLINE + 1


async def test_greedy_client_is_limited_while_others_are_served(proxy: Proxy) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(20):
            reader, writer = await proxy.open(
                "GET /orders/events HTTP/1.1", f"Host: {NAME}", f"Authorization: {KEY}", ""
            )
            stack.callback(writer.close)
            assert b" 200 " in await reader.readuntil(b"\r\n")
        assert await proxy.status() == 429
        assert await proxy.status(client="127.0.0.2") == 200
    # Many requests at once, on one connection.
    reader, writer = await proxy.open(*["GET /healthz HTTP/1.1", f"Host: {NAME}", ""] * 300, client="127.0.0.3")
    async with asyncio.timeout(20):
        statuses = [int(await reader.readuntil(b"HTTP/1.1 ") and await reader.readuntil(b" ")) for _ in range(300)]
    writer.close()
    assert statuses.count(200) >= 100
    assert statuses.count(429) >= 100
    assert await proxy.status(client="127.0.0.2") == 200
