"""`make demo`, `make bench` and `make chaos`: Ctrl-C, and requests that fail. test_stack.py has the whole tour."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from dev.bench import Client
from tests.kit.http import NO_TLS
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.tooling.dev_process import Dev


@pytest.fixture
async def api_with_stock(api: httpx.AsyncClient, shop: Shop) -> httpx.AsyncClient:
    await shop.stock("MUG-BLUE")
    return api


async def ctrl_c(dev: Dev, until: Callable[[], Awaitable[bool]], *command: str) -> None:
    """Start a command, and press Ctrl-C once `until` is true."""
    await dev.start(*command)
    try:
        await eventually(until)
        dev.send(signal.SIGINT)
        code, lines = await dev.wait_for_exit()
        assert (code, [line for line in lines if "Traceback" in line]) == (130, []), lines
        assert dev.processes() == {}
    finally:
        dev.kill()


@pytest.mark.parametrize(
    ("command", "number"),
    [("dev.demo", 5), ("dev.chaos", 2)],  # with a stack of four processes, with the first mongod
    ids=["demo", "chaos"],
)
async def test_ctrl_c_ends_command_whose_servers_start(tmp_path: Path, command: str, number: int) -> None:
    dev = Dev(tmp_path)

    async def have_begun() -> bool:
        return len(dev.processes()) >= number

    await ctrl_c(dev, have_begun, command)


async def test_ctrl_c_ends_benchmark_in_progress(tmp_path: Path, api_with_stock: httpx.AsyncClient, shop: Shop) -> None:
    async def has_begun() -> bool:
        return bool(await shop.mongo.orders.find_one())

    await ctrl_c(Dev(tmp_path), has_begun, "dev.bench", "--url", str(api_with_stock.base_url))


class LosesAnswers(httpx.AsyncHTTPTransport):
    """Sends each request, and loses the first answer to a POST and to a GET."""

    def __init__(self) -> None:
        super().__init__(verify=NO_TLS)
        self.lost: dict[str, httpx.Request] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if request.method not in self.lost:
            self.lost[request.method] = request
            await response.aread()
            raise httpx.ReadError("connection reset")
        return response


@pytest.mark.usefixtures("worker")
async def test_benchmark_repeats_requests_that_fail_and_ends_if_an_order_fails(
    api_with_stock: httpx.AsyncClient, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    network = LosesAnswers()
    async with httpx.AsyncClient(base_url=api_with_stock.base_url, transport=network, timeout=10) as http:
        client = Client(http)
        times, _ = await client.measure(2, in_flight=1)
        await shop.stock("MUG-BLUE", available=0)
        with pytest.raises(ExceptionGroup) as failed:  # `run` prints the first one
            await client.measure(1, in_flight=1)
    assert (len(times), client.repeats) == (2, 2)
    assert "failed: not enough in stock: MUG-BLUE" in str(failed.value.exceptions[0])
    assert await shop.mongo.orders.count_documents({"status": "completed"}) == 2  # no third one
    key = network.lost["POST"].headers["Idempotency-Key"]
    lines = capsys.readouterr().out.splitlines()
    assert f"POST /orders failed, repeated with Idempotency-Key {key}: ReadError connection reset" in lines
    assert "GET /orders failed, repeated: ReadError connection reset" in lines
