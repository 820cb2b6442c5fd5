"""The worker's /healthz and /readyz: while it waits for its servers, works, and stops."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest

from app import temporal
from app.domain import OrderStatus
from app.settings import Settings
from app.worker_health import REQUEST_TIMEOUT, WorkerHealth
from dev.servers import Server, free_port, start_mongod, start_temporal
from dev.stack import ROOT
from tests.kit.http import NO_TLS
from tests.kit.orders import CHARGING
from tests.kit.shop import Shop, environment_of
from tests.kit.waiting import eventually

SLOW_CLIENTS = 100
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def running_worker(folder: Path, **environment: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    port = free_port()
    address = {"WORKER_HEALTH_ADDRESS": f"127.0.0.1:{port}"}
    worker = await Server.start(
        "worker", [sys.executable, "-m", "dev.worker"],
        address="", log=folder / "worker.log", cwd=ROOT, env={**address, **environment},
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, verify=NO_TLS) as http:
            yield worker, http
    finally:
        await worker.kill()


async def readiness(http: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
    try:
        answer = await http.get("/readyz")
    except httpx.TransportError as error:
        return 0, {"error": str(error)}
    return answer.status_code, answer.json()["checks"]


async def test_worker_without_servers_is_alive_and_says_what_it_waits_for(tmp_path: Path) -> None:
    environment = {
        "MONGODB_URI": f"mongodb://127.0.0.1:{free_port()}/?replicaSet=rs0",
        "TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    async with running_worker(tmp_path, **environment) as (worker, http):
        status, checks = await eventually(lambda: readiness(http), lambda seen: seen[0] != 0)
        assert status == 503
        assert checks == {
            "mongodb": "unavailable: connection refused",
            "temporal": "unavailable: connection refused",
            "worker": "unavailable: starting",
        }
        answer = await http.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert (await http.get("/nowhere")).status_code == 404
        await worker.stop(timeout=30)
        assert await worker.wait() == 0


async def test_worker_waits_for_temporal_again_if_it_left_while_the_worker_waited_for_mongodb(tmp_path: Path) -> None:
    """The SDK's worker would end, because it cannot describe its namespace."""
    mongodb_port, temporal_port = free_port(), free_port()
    environment = {
        "MONGODB_URI": f"mongodb://127.0.0.1:{mongodb_port}/?replicaSet=rs0",
        "TEMPORAL_ADDRESS": f"127.0.0.1:{temporal_port}",
    }
    servers = [await start_temporal(temporal_port, log_dir=tmp_path)]
    try:
        async with running_worker(tmp_path, **environment) as (worker, http):
            await eventually(lambda: waits_for("MongoDB", worker))
            await servers[0].stop()
            servers.append(await start_mongod(tmp_path / "mongod", mongodb_port, durable=False))
            await eventually(lambda: waits_for("Temporal", worker))
            servers.append(await start_temporal(temporal_port, log_dir=tmp_path))
            await eventually(lambda: readiness(http), lambda seen: seen[0] == 200)
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def test_worker_waits_for_its_namespace(settings: Settings, temporal_server: Server, tmp_path: Path) -> None:
    environment = {**environment_of(settings, temporal_server), "TEMPORAL_NAMESPACE": "late"}
    async with running_worker(tmp_path, **environment) as (worker, http):
        await eventually(lambda: waits_for("Temporal: Namespace late is not found", worker))
        assert (await readiness(http))[1]["temporal"] == "unavailable: unknown namespace"
        client = await temporal.connect(target_host=temporal_server.address, namespace="late")
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(namespace="late", workflow_execution_retention_period=Duration(seconds=86_400))
        )
        # The attribute is not registered: the worker says so, as for any other namespace.
        assert await worker.wait() == 1
        assert f"Temporal has no search attribute {temporal.ORDER_STATUS.name}" in worker.log_text()


async def waits_for(what: str, worker: Server) -> bool:
    assert not worker.exited, worker.log_text()
    return f"waiting for {what}" in worker.log_text()


async def slow_clients(http: httpx.AsyncClient) -> list[Connection]:
    """Connect clients that do not complete a request."""
    assert http.base_url.port
    opened = [await asyncio.open_connection("127.0.0.1", http.base_url.port) for _ in range(SLOW_CLIENTS)]
    for number, (_, writer) in enumerate(opened):
        writer.write([b"", b"GET /healthz HTTP/1.1\r\n", b"\x16\x03\x01", b"x" * 100_000][number % 4])
    return opened


async def test_worker_is_ready_while_it_polls_and_alive_until_it_has_stopped_despite_slow_clients(
    settings: Settings, temporal_server: Server, shop: Shop, tmp_path: Path
) -> None:
    await shop.stock()
    async with running_worker(tmp_path, **environment_of(settings, temporal_server)) as (worker, http):
        seen = await eventually(lambda: readiness(http), lambda seen: seen[0] == 200)
        assert seen == (200, {"mongodb": "ok", "temporal": "ok", "worker": "ok"})
        opened = await slow_clients(http)
        assert (await readiness(http))[0] == 200
        async with asyncio.timeout(REQUEST_TIMEOUT + 30):  # until the worker has disconnected them
            for reader, writer in opened:
                with suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        order = await shop.place(payment_method="pm_card_slow")  # its charge takes 5 s
        await shop.wait_for_status(order.order_id, CHARGING)
        await shop.wait_until_started(order.order_id, "ChargePayment")
        stopping = asyncio.create_task(worker.stop(timeout=30))
        status, checks = await eventually(lambda: readiness(http), lambda seen: seen[0] != 200)
        assert (status, checks) == (503, {"mongodb": "ok", "temporal": "ok", "worker": "unavailable: stopping"})
        assert (await http.get("/healthz")).status_code == 200
        await stopping
        assert await worker.wait() == 0
        assert "Traceback" not in worker.log_text()
    assert (await shop.order(order.order_id)).status is OrderStatus.CHARGED


@pytest.mark.parametrize("address", ["a..b:80", f"{'x' * 64}.com:80", "127.0.0.1:65536", "[::1:0:0"])
async def test_address_that_cannot_be_used_is_one_line_that_names_the_setting(address: str) -> None:
    async def ping() -> None: ...

    with pytest.raises(SystemExit, match=r"^wrong setting: WORKER_HEALTH_ADDRESS: .+$"):
        await WorkerHealth(ping, ping).serve(Settings(worker_health_address=address).worker_health_address)


async def test_client_connected_while_the_process_ends_causes_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def ping() -> None: ...

    async def process() -> None:
        port = free_port()
        health = WorkerHealth(ping, ping)
        await health.serve(f"127.0.0.1:{port}")
        client = cleanup.enter_context(socket.create_connection(("127.0.0.1", port)))
        client.sendall(b"GET /heal")
        await eventually(connected)
        health._server.close()  # the listening socket only

    async def connected() -> bool:
        return any("_answer" in repr(task) for task in asyncio.all_tasks())

    with ExitStack() as cleanup:
        await asyncio.to_thread(asyncio.run, process())
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_taken_port_is_one_line_that_names_the_setting() -> None:
    async def ping() -> None: ...

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit, match=r"^wrong setting: WORKER_HEALTH_ADDRESS: .* in use"):
            await WorkerHealth(ping, ping).serve(address)
        with pytest.raises(SystemExit, match=r"^wrong setting: WORKER_METRICS_ADDRESS: .* in use"):
            temporal.configure_core(address)
