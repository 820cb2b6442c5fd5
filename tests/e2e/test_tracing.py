"""Traces, as a collector receives them from worker and API processes, and the ids in their logs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain import OrderStatus
from app.messages import ApprovalDecision
from app.names import NAME as PROJECT
from app.names import WORKFLOW_TYPE
from app.settings import ApiSettings
from dev.servers import Server, free_port
from dev.stack import ROOT, Config, Stack
from tests.kit.collector import Collector, ReceivedSpan, collector
from tests.kit.orders import CHARGING, EMAIL, NAME, STREET, order_body
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import ACTIVITIES

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RUN, START = f"RunWorkflow:{WORKFLOW_TYPE}", f"StartWorkflow:{WORKFLOW_TYPE}"
TRACED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
AT_ONCE = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # milliseconds until spans are exported
AT_THE_END = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
ALONE = {"RECONCILIATION_INTERVAL": "0"}
API = ("-m", "uvicorn", "app.api.main:app", "--no-access-log", "--timeout-graceful-shutdown", "2", "--port")


@asynccontextmanager
async def program(name: str, shop: Shop, log: Path, *command: str, **environment: str) -> AsyncIterator[Server]:
    """A worker or API process on this test's database and task queue."""
    common = {
        "MONGODB_URI": shop.settings.mongodb_uri,
        "MONGODB_DATABASE": shop.settings.mongodb_database,
        "TASK_QUEUE": shop.settings.task_queue,
        "TEMPORAL_ADDRESS": shop.client.service_client.config.target_host,
        "API_OPEN": "true",
        **ALONE,
    }
    command = command or ("-m", "dev.worker")
    server = await Server.start(
        name, [sys.executable, *command], address="", log=log, cwd=ROOT, env={**common, **environment}
    )
    try:
        yield server
    finally:
        await server.kill()


@asynccontextmanager
async def api(shop: Shop, log: Path, **environment: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    port = free_port()
    async with (
        program("api", shop, log, *API, str(port), **environment) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http,
    ):

        async def answers() -> bool:
            with suppress(httpx.TransportError):
                return (await http.get("/healthz")).is_success
            return False

        await eventually(answers)
        yield server, http


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log_text().splitlines()]


def names(spans: dict[str, ReceivedSpan]) -> set[str]:
    return {span.name for span in spans.values()}


def below(spans: dict[str, ReceivedSpan], name: str) -> list[str]:
    """The names of the children of all spans of this name."""
    return [span.name for span in spans.values() if span.parent_id in spans and spans[span.parent_id].name == name]


@pytest.fixture
async def traced(
    settings: ApiSettings, shop: Shop, temporal_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Stack, httpx.AsyncClient, Collector]]:
    """Worker and API as `make dev` starts them, with OTEL_EXPORTER_OTLP_ENDPOINT set."""
    mine = {"MONGODB_DATABASE": settings.mongodb_database, "TASK_QUEUE": settings.task_queue, **ALONE}
    config = Config.on_free_ports(tmp_path, {**mine, **AT_ONCE}, mongodb_uri=settings.mongodb_uri)
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        async with (
            Stack(replace(config, temporal_address=temporal_server.address)) as stack,
            httpx.AsyncClient(base_url=stack.api_url, timeout=20) as http,
        ):
            await shop.stock()
            yield stack, http, received


async def test_traced_orders_span_all_processes_without_personal_data(
    traced: tuple[Stack, httpx.AsyncClient, Collector], shop: Shop
) -> None:
    """One stack for all of it, because processes are slow to start."""
    stack, http, received = traced
    personal = {
        "baggage": "user=lovelace",
        "tracestate": "user=lovelace",
        "user-agent": "lovelace",
        "prefer": "wait=20",
    }
    body = order_body(payment_method="pm_card_flaky")
    answer = await http.post("/orders", json=body, headers={**TRACED, **personal})
    order_id = answer.json()["order_id"]
    assert answer.json()["status"] == "completed"

    # What else a client may write somewhere, and errors.
    outage = (await http.post("/orders", json=order_body(payment_method="pm_card_outage"))).json()["order_id"]
    await shop.wait_for_status(outage, CHARGING)
    await http.post(f"/orders/{outage}/cancel", json={"reason": f"{NAME} moved"})
    await shop.mongo.orders.insert_one({"_id": "strange", "email": EMAIL})
    for path in (f"/orders/{EMAIL}", f"/{EMAIL}", f"/orders?customer_id=lovelace&note={EMAIL}"):
        await http.get(path, headers={"Host": "lovelace.localhost"})
    await shop.wait_for_status(outage, OrderStatus.CANCELLED)
    await eventually(lambda: shop.mongo.orders.find_one({"_id": "strange", "status": "failed"}))

    spans = await eventually(lambda: received.trace(TRACE), lambda spans: {RUN, "POST /orders"} <= names(spans))
    check_tree_of_completed_order(spans)
    await check_shared_transaction(http, received, shop)

    # Change streams, relay and health checks make no traces, nor do the clients of event streams.
    roots = {span.name for span in received.spans() if not span.parent_id}
    assert {"POST /orders", "GroupCommit"} <= roots
    assert {name for name in roots if not name.startswith(("GET", "POST", "PUT"))} == {"GroupCommit"}
    assert not {name for name in roots if "events" in name or "/readyz" in name}

    worker, served = stack.processes["worker"], stack.processes["api"]
    started = (await shop.handle(order_id).fetch_history()).events[0].workflow_execution_started_event_attributes
    assert json.loads(started.header.fields["_tracer-data"].data).keys() == {"traceparent"}
    exported = b"".join(received.bodies).decode(errors="replace")
    assert "its text is not recorded" not in exported  # texts of errors are left out altogether
    for secret in (EMAIL, NAME, STREET, "lovelace", "Lovelace", "pm_card"):
        assert secret not in exported
        assert secret not in worker.log_text() + served.log_text()

    failed = [line for line in lines(worker) if line["message"] == "Completing activity as failed"]
    assert [
        (line["activity"], line["attempt"], line["trace_id"]) for line in failed if line["order_id"] == order_id
    ] == [("ChargePayment", 1, TRACE), ("ChargePayment", 2, TRACE)]
    raised = r"ApplicationError\('Unavailable: its text is not recorded'\) at \S+/app/gateways/sandbox\.py:\d+"
    assert all(re.fullmatch(raised, line["exception"]) for line in failed)
    assert [line["order_id"] for line in lines(worker) if "is malformed" in line["message"]] == ["strange"]
    ready = next(line for line in lines(worker) if line["message"].startswith("worker ready"))
    assert not {"order_id", "trace_id"} & ready.keys()


def check_tree_of_completed_order(spans: dict[str, ReceivedSpan]) -> None:
    assert [span.name for span in spans.values() if span.parent_id not in spans] == ["POST /orders"]
    assert next(span for span in spans.values() if span.name == "POST /orders").parent_id == CALLER
    assert {"insert orders", START} <= set(below(spans, "POST /orders"))
    assert below(spans, START) == [RUN]
    assert sorted(below(spans, RUN)) == sorted(f"StartActivity:{step}" for step in ACTIVITIES)
    for step in ACTIVITIES:
        attempts = 3 if step == "ChargePayment" else 1
        assert below(spans, f"StartActivity:{step}") == [f"RunActivity:{step}"] * attempts
        calls = {"GroupCommit"} if step == "ReserveInventory" else {"find orders", "findAndModify orders"}
        assert calls <= set(below(spans, f"RunActivity:{step}"))
    # The transaction of a single order belongs to that order.
    transaction = ["commitTransaction", "find inventory", "find orders", "update inventory", "update orders"]
    assert sorted(below(spans, "GroupCommit")) == sorted(transaction)
    assert [span.failed for span in spans.values() if span.name == "RunActivity:ChargePayment"].count(True) == 2
    services = {span.name: span.service for span in spans.values()}
    assert services["POST /orders"] == services["insert orders"] == f"{PROJECT}-api"
    assert services[RUN] == services["commitTransaction"] == f"{PROJECT}-worker"


async def check_shared_transaction(http: httpx.AsyncClient, received: Collector, shop: Shop) -> None:
    """Another transaction delays the batch of the first order, until all others wait for the next one."""
    before = len(received.spans())

    async with await shop.mongo.client.start_session() as session, session.start_transaction():
        await shop.mongo.inventory.update_one({"_id": "MUG"}, {"$inc": {"available": 1}}, session=session)
        answers = await asyncio.gather(*(http.post("/orders", json=order_body()) for _ in range(6)))
        for answer in answers:
            await shop.wait_until_started(answer.json()["order_id"], "ReserveInventory")
    for answer in answers:
        await shop.wait_for_status(answer.json()["order_id"], OrderStatus.COMPLETED)

    async def shared() -> list[ReceivedSpan]:
        return [span for span in received.spans()[before:] if span.name == "GroupCommit" and span.links]

    (batch, *_) = await eventually(shared)
    assert len(batch.links) > 1
    assert (batch.parent_id, batch.trace_id in batch.links) == ("", False)
    assert "commitTransaction" in below(await received.trace(batch.trace_id), "GroupCommit")
    for trace_id in batch.links:
        spans = await received.trace(trace_id)
        (reservation,) = [span for span in spans.values() if span.name == "RunActivity:ReserveInventory"]
        assert reservation.links == [batch.trace_id]
        assert "GroupCommit" not in names(spans)


async def test_order_started_by_relay_and_continued_after_sigkill_keeps_the_trace_of_its_post(
    shop: Shop, tmp_path: Path
) -> None:
    """The API cannot reach Temporal, the first worker is killed, and the second one replays the workflow."""
    await shop.stock(price=shop.settings.approval_threshold)
    with collector() as received:
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.url}
        log = tmp_path / "api.log"
        unreachable = f"127.0.0.1:{free_port()}"
        async with api(shop, log, **on, **AT_THE_END, TEMPORAL_ADDRESS=unreachable) as (served, http):
            answer = await http.post("/orders", json=order_body(), headers=TRACED)
            assert answer.status_code == 202
            order_id = answer.json()["order_id"]
            refused = await http.post(f"/orders/{order_id}/approval", json={"approved": True})
            assert refused.status_code == 409
            assert "traceparent" not in answer.text
            async with program("worker", shop, tmp_path / "1.log", **on, **AT_ONCE):
                await shop.wait_for_status(order_id, OrderStatus.AWAITING_APPROVAL)
                await eventually(
                    lambda: received.trace(TRACE), lambda spans: "RunActivity:UpdateOrderStatus" in names(spans)
                )
            late = await http.post(f"/orders/{order_id}/approval", json={"approved": True})
            assert late.status_code == 503
            await served.stop()
        assert [line["message"][:15] for line in lines(served)].count("the API is open") == 1  # set up once
        line = next(line for line in lines(served) if line["message"] == "503: temporal-unavailable")
        assert line["order_id"] == order_id
        assert line["trace_id"] in {span.trace_id for span in received.spans()} - {TRACE}
        async with program("worker", shop, tmp_path / "2.log", **on, **AT_THE_END) as worker:
            await shop.handle(order_id).signal("approve", ApprovalDecision(approved=True))
            await shop.wait_for_status(order_id, OrderStatus.COMPLETED)
            await shop.handle(order_id).result()
            await worker.stop()
            assert await worker.wait() == 0
        spans = await received.trace(TRACE)
        counts = Counter(span.name for span in received.spans() if span.trace_id == TRACE)
        ids = [span.span_id for span in received.spans()]
    assert below(spans, START) == [RUN]
    assert [span.name for span in spans.values() if span.parent_id == CALLER] == ["POST /orders"]
    assert [span.name for span in spans.values() if span.parent_id not in spans] == ["POST /orders"]
    # A replay repeats none of them.
    once = [RUN, *(f"{kind}Activity:{step}" for step in ACTIVITIES for kind in ("Start", "Run"))]
    assert {name: counts[name] for name in once} == dict.fromkeys(once, 1)
    assert len(set(ids)) == len(ids)


async def test_unavailable_collector_delays_neither_orders_nor_the_exit(
    shop: Shop, tmp_path: Path, exhaustive: bool
) -> None:
    """It hangs for the worker, and refuses the connections of the API.

    In an exhaustive run, it also hangs for a second API, and the address of a third is none.
    """
    await shop.stock()
    async with AsyncExitStack() as stack:
        hanging = stack.enter_context(collector(hangs=True))
        hung = {"OTEL_EXPORTER_OTLP_ENDPOINT": hanging.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "60", **AT_ONCE}
        port = free_port()
        refused = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        wrong = {"OTEL_EXPORTER_OTLP_ENDPOINT": "no-url"}
        worker = await stack.enter_async_context(program("worker", shop, tmp_path / "worker.log", **hung))
        apis = [
            await stack.enter_async_context(api(shop, tmp_path / f"{number}.log", **{**AT_ONCE, **settings}))
            for number, settings in enumerate([refused, *[hung, wrong] * exhaustive])
        ]
        (lonely, lonely_http), *others = apis
        warning = [lonely, *(lost for lost, _ in others[1:])]
        for _, http in apis * 2:
            answer = await http.post("/orders", json=order_body(), headers={"Prefer": "wait=20"})
            assert answer.json()["status"] == "completed"

        async def warned() -> bool:
            return all("traces are lost" in server.log_text() for server in warning)

        await eventually(warned)
        assert len(hanging.bodies) == 1 + exhaustive  # one export of each process is still waiting
        with collector(port) as started:
            await lonely_http.get("/orders")

            async def works() -> bool:
                exported = {span.name for span in started.spans()}
                return "traces are exported again" in lonely.log_text() and "GET /orders" in exported

            await eventually(works)
        served = [server for server, _ in apis]
        await asyncio.gather(*(server.stop(timeout=30) for server in [worker, *served]))
        assert [await server.wait() for server in [worker, *served]] == [0, *[-signal.SIGTERM] * len(served)]
    for server in warning:
        assert server.log_text().count("traces are lost") == 1
        assert not [line for line in lines(server) if line["logger"].startswith(("opentelemetry", "urllib3"))]


async def test_without_endpoint_sdk_is_not_imported() -> None:
    code = (
        "import sys, app.api.main, worker; from app import tracing; "
        "tracing.configure('x'); tracing.shutdown(); "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert output.decode() == "[]\n"
