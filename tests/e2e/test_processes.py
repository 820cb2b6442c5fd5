"""Run worker.py and the API as processes, and check their error messages and logs (G11)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest

from app import temporal
from app.domain import OrderStatus
from app.names import SEARCH_ATTRIBUTE
from app.settings import ApiSettings, Scope
from dev.servers import Server, free_port
from tests.kit.http import key_of
from tests.kit.orders import ADDRESS, CHARGING, EMAIL, NAME, STREET, order_body
from tests.kit.pairs import case
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "worker": ["-m", "dev.worker"],
    "api": ["-m", "uvicorn", "app.api.main:app", "--host", "127.0.0.1", "--timeout-graceful-shutdown", "2"],
}
SECRET = key_of("shop")
CARD = "pm_card_4242424242424242"


OTEL_WITHOUT_QUEUE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_MAX_QUEUE_SIZE": "0"}
REFUSALS = [  # which settings are wrong: tests/unit/test_settings.py
    ("worker.py", {}, "payments, carrier, mailer: only a sandbox.* SANDBOX_GATEWAYS=true to try it"),
    ("api", {"API_KEYS": '{"shop": "with space"}'}, "wrong setting: API_KEYS.SHOP: .*"),
    case(
        "api",
        {"API_OPEN": "true", "TEMPORAL_TLS_SERVER_CA_CERT_PATH": "/no.pem"},
        "wrong setting: TEMPORAL_TLS_.*/no.pem.*",
        chosen=False,
    ),
    case("worker", OTEL_WITHOUT_QUEUE, "wrong setting: OTEL_.*: max_queue_size .*", chosen=False),
]


@pytest.mark.parametrize(("program", "environment", "line"), REFUSALS)
async def test_process_that_must_not_start_says_why_in_one_line(
    program: str, environment: dict[str, str], line: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *COMMANDS.get(program, [program]),
        cwd=ROOT, env={**os.environ, **environment}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 1, output
    assert re.fullmatch(f"{line}\n", output.decode())


async def test_debug_logs_contain_no_personal_data(
    settings: ApiSettings, temporal_server: Server, shop: Shop, tmp_path: Path
) -> None:
    port = free_port()
    environment = {
        "MONGODB_URI": settings.mongodb_uri,
        "MONGODB_DATABASE": settings.mongodb_database,
        "TASK_QUEUE": settings.task_queue,
        "TEMPORAL_ADDRESS": temporal_server.address,
        "API_KEYS": json.dumps({"shop": {"key": SECRET, "scopes": list(Scope)}}),
        "LOG_LEVEL": "DEBUG",
    }
    processes = [
        await Server.start(
            name, [sys.executable, *command, *(["--port", str(port)] if name == "api" else [])],
            address="", log=tmp_path / f"{name}.log", cwd=ROOT, env=environment,
        )
        for name, command in COMMANDS.items()
    ]  # fmt: skip
    worker, served = processes
    try:
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10) as api:

            async def ready() -> bool:
                try:
                    return (await api.get("/readyz")).is_success and "worker ready" in worker.log_text()
                except httpx.TransportError:
                    return False

            await eventually(ready)
            await shop.stock()
            await api.get("/orders", headers={"Authorization": "Bearer wrong-secret"})
            endings = {
                OrderStatus.COMPLETED: order_body(payment_method=CARD),
                OrderStatus.FAILED: order_body(
                    payment_method=CARD, shipping_address={**ADDRESS, "postal_code": "00000"}
                ),
                OrderStatus.CANCELLED: order_body(payment_method="pm_card_outage"),
            }
            for ending, body in endings.items():
                answer = await api.post("/orders", json=body)
                order_id = answer.json()["order_id"]
                if ending is OrderStatus.CANCELLED:
                    await shop.wait_for_status(order_id, CHARGING)
                    await api.put(f"/orders/{order_id}/shipping-address", json=ADDRESS)
                    await api.post(f"/orders/{order_id}/cancel", json={"reason": "found it cheaper"})
                await shop.wait_for_status(order_id, ending)
            # Documents that cause errors in the relay, in an activity and in the API.
            await shop.mongo.orders.insert_one({"_id": "strange", "email": EMAIL, "shipping_address": NAME})
            await eventually(
                lambda: shop.mongo.orders.find_one({"_id": "strange"}), lambda o: bool(o and o.get("status"))
            )
            spoilt = await api.post("/orders", json=order_body(payment_method="pm_card_outage"))
            order_id = spoilt.json()["order_id"]
            await shop.wait_for_status(order_id, CHARGING)
            await shop.mongo.orders.update_one({"_id": order_id}, {"$set": {"email": [EMAIL], "lines": [NAME]}})
            assert (await api.get(f"/orders/{order_id}")).json()["status"] == "failed"

            async def logged() -> bool:
                return "ValidationError" in worker.log_text()

            await eventually(logged)
            history = (await shop.handle(order_id).fetch_history()).to_json()
    finally:
        for process in processes:
            await process.stop()
    logs = worker.log_text() + served.log_text()
    assert "worker ready" in logs
    assert "a sandbox, which charges no card" in logs
    assert "strange" in logs
    for personal in (EMAIL, NAME, STREET, CARD, SECRET, "wrong-secret"):
        assert personal not in logs
        assert personal not in history
    lines = [line for line in logs.splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith("{")] == []
    assert all({"time", "level", "logger", "message"} <= json.loads(line).keys() for line in lines)


async def test_worker_without_search_attribute_names_the_remedy(temporal_server: Server, settings: ApiSettings) -> None:
    """Search attributes are registered per namespace, so a new namespace has none."""
    client = await temporal.connect(target_host=temporal_server.address)
    request = RegisterNamespaceRequest(namespace="bare", workflow_execution_retention_period=Duration(seconds=86_400))
    await client.workflow_service.register_namespace(request)
    environment = {
        **os.environ,
        "MONGODB_URI": settings.mongodb_uri,
        "MONGODB_DATABASE": settings.mongodb_database,
        "TEMPORAL_ADDRESS": temporal_server.address,
        "TEMPORAL_NAMESPACE": "bare",
    }

    async def start() -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *COMMANDS["worker"], cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(20):
                _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 1
        return errors.decode()

    remedy = f"temporal operator search-attribute create --name {SEARCH_ATTRIBUTE} --type Keyword\n"
    output = await eventually(start, lambda output: output.endswith(remedy))
    assert f"Temporal has no search attribute {SEARCH_ATTRIBUTE}" in output
