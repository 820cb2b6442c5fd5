"""deploy/prometheus and deploy/grafana: checked by promtool, and run by a real Prometheus against worker and API.

The scenario also shows a worker with the wrong code: how an operator sees it, and that the old code is the way out.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from app import temporal
from app.domain import OrderStatus
from app.mongo import Mongo
from app.order_workflows import workflow_id
from app.settings import Settings
from dev.servers import Server, free_port, start_temporal
from dev.stack import ROOT
from tests.kit.http import NO_TLS
from tests.kit.orders import CHARGING, UNSERVICEABLE, order_body
from tests.kit.shop import Shop, environment_of
from tests.kit.waiting import eventually

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DASHBOARD_QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
# What an alert compares; the comparison itself returns nothing while all is well.
RULE_QUERIES = [re.sub(r"\s*(>|<|==) [\d.]+$", "", rule["expr"].strip()) for rule in RULES]

SKIPPED = not (shutil.which("prometheus") and shutil.which("promtool")) and not os.environ.get("CI")
pytestmark = pytest.mark.skipif(SKIPPED, reason="no prometheus; `make test-tools` installs it")


# --- the files


@pytest.mark.parametrize(
    "command", [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]], ids=" ".join
)
def test_promtool_accepts(command: list[str]) -> None:
    ran = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True)  # noqa: PLW1510, S607
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = sorted(rule["alert"] for rule in RULES)
    assert sorted({case["alertname"] for case in cases if case.get("exp_alerts")}) == names
    assert sorted({case["alertname"] for case in cases if not case.get("exp_alerts")}) == names
    assert all(query != rule["expr"].strip() for query, rule in zip(RULE_QUERIES, RULES, strict=True))


def test_compose_mounts_the_files_where_both_programs_read_them() -> None:
    (mount,) = COMPOSE["prometheus"]["volumes"]
    assert mount == "./deploy/prometheus:/etc/prometheus:ro"  # the image's default for --config.file
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in COMPOSE["grafana"]["volumes"])
    assert {str(ROOT / source) for source in mounted} == {str(file) for file in GRAFANA.iterdir()}
    (provider,) = yaml.safe_load((GRAFANA / "dashboards.yml").read_text())["providers"]
    assert Path(mounted["./deploy/grafana/dashboard.json"]).parent == Path(provider["options"]["path"])
    (source,) = yaml.safe_load((GRAFANA / "datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    targets = [
        job["static_configs"] for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    ]
    assert targets == [[{"targets": ["worker:9464"]}], [{"targets": ["localhost:8000"]}]]
    assert COMPOSE["worker"]["environment"]["WORKER_METRICS_ADDRESS"].endswith(":9464")
    assert {COMPOSE[name]["profiles"][0] for name in ("prometheus", "grafana")} == {"observability"}


# --- the running programs

# A worker with a payment service that cannot refund an order whose id begins with `stuck`, and that needs attention at
# once, not after a minute.
WORKER = """
import asyncio, os
from datetime import timedelta
from app.gateways.sandbox import SandboxPayments, sandbox
from app.workflows import steps
import worker

refund = SandboxPayments.refund

async def refund_unless_stuck(self, idempotency_key):
    if idempotency_key.startswith("stuck"):
        raise ConnectionError
    return await refund(self, idempotency_key)

SandboxPayments.refund = refund_unless_stuck
steps.RETRY_BEFORE_ATTENTION = steps.retry(timedelta(seconds=1), maximum_attempts=1)
os.environ["SANDBOX_GATEWAYS"] = "true"
asyncio.run(worker.main(sandbox))
"""


class Watched:
    """A worker, an API, and a Prometheus that scrapes both each second."""

    def __init__(self, shop: Shop, temporal_server: Server, folder: Path) -> None:
        self.shop = shop
        self._folder = folder
        self._metrics, self._api, self._prometheus = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self._environment = {
            **environment_of(shop.settings, temporal_server),
            "WORKER_METRICS_ADDRESS": self._metrics,
            "API_OPEN": "true",
        }
        self.processes: list[Server] = []
        self.api = httpx.AsyncClient(base_url=f"http://{self._api}", timeout=20, verify=NO_TLS)
        self.prometheus = httpx.AsyncClient(base_url=f"http://{self._prometheus}/api/v1", timeout=20, verify=NO_TLS)

    async def _start(self, name: str, command: list[str], root: Path = ROOT) -> Server:
        log = self._folder / f"{name}.log"
        server = await Server.start(name, command, address="", log=log, cwd=root, env=self._environment)
        self.processes.append(server)
        return server

    async def start_worker(self, root: Path = ROOT) -> Server:
        worker = await self._start("worker", [sys.executable, "-c", WORKER], root)

        async def ready() -> bool:
            return "worker ready" in worker.log_text()

        return await worker.wait_until(ready)

    async def start(self) -> None:
        host, port = self._api.split(":")
        options = ["--host", host, "--port", port]
        await self._start("api", [sys.executable, "-m", "uvicorn", "app.api.main:app", *options])
        config = self._folder / "prometheus"
        shutil.copytree(PROMETHEUS, config)
        text = (config / "prometheus.yml").read_text()
        here = {"worker:9464": self._metrics, "api:8000": self._api, "localhost:8000": f"localhost:{port}", "15s": "1s"}
        for there, replacement in here.items():
            assert there in text
            text = text.replace(there, replacement)
        (config / "prometheus.yml").write_text(text)
        options = [f"--config.file={config}/prometheus.yml", f"--storage.tsdb.path={self._folder}/data"]
        program = shutil.which("prometheus")
        assert program
        await self._start("prometheus", [program, *options, f"--web.listen-address={self._prometheus}"])

        async def up() -> bool:
            try:
                return (await self.api.get("/healthz")).is_success and len(await self.query("up == 1")) == 2
            except httpx.TransportError:
                return False

        await eventually(up)

    async def stop(self) -> None:
        await self.api.aclose()
        await self.prometheus.aclose()
        for process in self.processes:
            await process.kill()

    async def query(self, expression: str) -> list[float]:
        """The values, without those that are not a number."""
        answer = (await self.prometheus.get("/query", params={"query": expression})).raise_for_status().json()
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if not math.isnan(value)]

    async def total(self, expression: str) -> float:
        return sum(await self.query(expression))

    async def wait_for_data(self, expression: str) -> None:
        async def look() -> tuple[str, list[float]]:
            return expression, await self.query(expression)

        await eventually(look, lambda seen: bool(seen[1]))


@pytest.fixture
async def watched(settings: Settings, mongo: Mongo, tmp_path: Path) -> AsyncIterator[Watched]:
    """With a Temporal server of its own: after all tests, no history on the shared one may have a failed task."""
    # By default, the view of workflows that cannot be replayed lists one after five attempts, which take a minute.
    at_once = {"system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute": "1"}
    server = await start_temporal(free_port(), log_dir=tmp_path, config=at_once)
    shop = Shop(mongo, settings, await temporal.connect(target_host=server.address))
    watched = Watched(shop, server, tmp_path)
    try:
        await watched.shop.stock(available=10_000)
        yield watched
    finally:
        await watched.stop()
        await server.stop()


def wrong_code(folder: Path) -> Path:
    """A copy of the program that does not wait for approval, so it cannot replay an order that does."""
    shutil.copytree(ROOT / "app", folder / "app")
    shutil.copy(ROOT / "worker.py", folder)
    code = folder / "app" / "workflows" / "order.py"
    before = "if self._order.needs_approval:"
    assert before in code.read_text()
    code.write_text(code.read_text().replace(before, "if False:"))
    return folder


async def place(watched: Watched, **changes: Any) -> str:
    answer = await watched.api.post("/orders", json=order_body(**changes))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["order_id"])


async def run_orders(watched: Watched) -> None:
    """One that completes, one that fails, one that is cancelled."""
    shop = watched.shop
    completed, declined = await place(watched), await place(watched, shipping_address=UNSERVICEABLE)
    cancelled = await place(watched, payment_method="pm_card_outage")
    await shop.wait_for_status(cancelled, CHARGING)
    await watched.api.post(f"/orders/{cancelled}/cancel")
    endings = {completed: "completed", declined: "failed", cancelled: "cancelled"}
    for order_id, status in endings.items():
        await shop.wait_for_status(order_id, OrderStatus(status))


async def listed(shop: Shop, query: str) -> set[str]:
    return {workflow.id async for workflow in shop.client.list_workflows(query)}


async def test_every_query_returns_data_and_wrong_code_is_seen_until_the_old_code_runs(
    watched: Watched, tmp_path: Path
) -> None:
    shop = watched.shop
    worker = await watched.start_worker()
    await watched.start()
    await run_orders(watched)
    ended = "sum by (status) (order_duration_seconds_count)"
    await eventually(lambda: watched.query(ended), lambda counts: counts == [1, 1, 1])
    await run_orders(watched)  # again: a rate needs a series that grows
    stuck = await shop.place(_id="stuck", shipping_address=UNSERVICEABLE)  # and the relay starts it
    await shop.wait_for_status(stuck.order_id, OrderStatus.NEEDS_ATTENTION)
    await eventually(lambda: watched.total('orders_open{status="needs_attention"}'), lambda orders: orders == 1)
    await eventually(lambda: watched.query(ended), lambda counts: counts == [2, 2, 2])
    assert await watched.total('order_steps_compensated_total{step="charge_payment"}') == 2

    waiting = await place(watched, lines=[{"sku": "MUG", "quantity": 60}])
    await shop.wait_for_status(waiting, OrderStatus.AWAITING_APPROVAL)
    await worker.stop(timeout=30)
    assert (await watched.api.get(f"/orders/{waiting}/status")).status_code == 503
    wrong = await watched.start_worker(wrong_code(tmp_path / "wrong"))
    failed = 'temporal_workflow_task_execution_failed_total{failure_reason="NonDeterminismError"}'
    assert (await watched.api.post(f"/orders/{waiting}/approval", json={"approved": True})).status_code == 202
    await eventually(lambda: watched.total(failed), lambda tasks: tasks >= 1)
    assert "Nondeterminism error" in wrong.log_text()
    for query in [*DASHBOARD_QUERIES, *RULE_QUERIES]:
        await watched.wait_for_data(query)
    await watched.wait_for_data('ALERTS{alertname="WorkflowTasksFail", alertstate="firing"}')
    [view] = re.findall(r"\| Cannot be replayed \| `(.*)` \|", (ROOT / "docs/operations.md").read_text())
    await eventually(lambda: listed(shop, view), lambda ids: ids == {workflow_id(waiting)})
    await wrong.stop(timeout=30)

    await watched.start_worker()
    await shop.wait_for_status(waiting, OrderStatus.COMPLETED)
    rules = (await watched.prometheus.get("/rules")).json()["data"]["groups"]
    assert [rule["lastError"] for group in rules for rule in group["rules"] if rule["health"] == "err"] == []
