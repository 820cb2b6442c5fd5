"""Worker versions: roll them out, and move orders between them, with the commands of docs/operations.md."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import pytest
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client
from temporalio.service import RPCError

from app import temporal
from app.domain import OrderStatus
from app.names import NAME
from app.order_workflows import NoWorker
from app.settings import ApiSettings
from app.workflows.order import OrderWorkflow
from dev.servers import Server, find_temporal, free_port, start_temporal
from dev.stack import ROOT
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.next_version import NextOrderWorkflow
from tests.kit.relay import running_relay
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import Handle, RestartableWorker
from worker import deployment_config

PAGE = (ROOT / "docs" / "operations.md").read_text().split("### A new version")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^ {4,}temporal (?:.*\\\n)*.*", PAGE, re.MULTILINE)
RAMP, MAKE_CURRENT, COUNT, RESET, AUTO_UPGRADE = map(textwrap.dedent, COMMANDS)


@pytest.fixture(scope="module")
async def own_temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A separate server, because the other tests replay every history of theirs on one version."""
    server = await start_temporal(free_port(), log_dir=tmp_path_factory.mktemp("temporal"))
    yield server
    await server.stop()


@pytest.fixture(scope="module")
async def client(own_temporal: Server) -> Client:
    return await temporal.connect(target_host=own_temporal.address)


class Deployment:
    """Workers of several versions. The first charge on each of them waits for `charging.resume`."""

    def __init__(self, shop: Shop, settings: ApiSettings, server: Server) -> None:
        self.name = settings.task_queue
        self.charging = Pause()
        self._shop = shop
        self._settings = settings
        self._gateways = FaultyGateways(shop, ChargePayment=self.charging)
        self._workers: dict[str, RestartableWorker] = {}
        self._environment = {
            **os.environ,
            "PATH": f"{find_temporal().parent}:{os.environ['PATH']}",
            "TEMPORAL_ADDRESS": server.address,
        }

    async def start(self, build_id: str, workflow: type = OrderWorkflow) -> None:
        """Start a worker of this version; without one if `build_id` is empty."""
        version = {"temporal_deployment_name": self.name, "temporal_worker_build_id": build_id} if build_id else {}
        config = await deployment_config(self._shop.client, self._settings.model_copy(update=version))
        self._workers[build_id] = RestartableWorker(self._gateways)
        self._workers[build_id].start(workflows=[workflow], deployment_config=config)

    async def stop(self, build_id: str) -> None:
        await self._workers.pop(build_id).stop()

    async def stop_all(self) -> None:
        for build_id in [*self._workers]:
            await self.stop(build_id)

    def command(self, documented: str, build_id: str) -> str:
        """A command of the page, for a version of this deployment."""
        return re.sub(r"\b[12]\.0\b", build_id, documented).replace(NAME, self.name)

    async def run(self, documented: str, build_id: str) -> str:
        """Run a command of the page for a version of this deployment. Returns what it prints."""
        command = self.command(documented, build_id)
        process = await asyncio.create_subprocess_shell(command, env=self._environment, stdout=PIPE, stderr=STDOUT)
        printed = (await process.communicate())[0].decode()
        assert process.returncode == 0, f"{command}\n{printed}"
        return printed

    async def make_current(self, build_id: str) -> None:
        """Do what the documented command does, without a process: each takes a quarter of a second of CPU time."""
        service = self._shop.client.workflow_service
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace="default", deployment_name=self.name, build_id=build_id
        )
        await self._route(lambda: service.set_worker_deployment_current_version(request), build_id)

    async def make_current_as_documented(self, build_id: str) -> None:
        await self.route(MAKE_CURRENT, build_id)

    async def route(self, documented: str, build_id: str) -> None:
        """Run a command that routes new orders."""
        await self._route(lambda: self.run(documented, build_id), build_id)

    async def _route(self, command: Callable[[], Awaitable[Any]], build_id: str) -> None:
        """Repeat the command until Temporal accepts it: it refuses until a worker of the version has polled."""

        async def is_accepted() -> bool:
            try:
                await command()
            except (AssertionError, RPCError):
                return False
            return True

        async def is_in_effect() -> bool:
            """Ask the task queues: the deployment itself may say for minutes that an update is in progress."""
            queue, service = TaskQueue(name=self.name), self._shop.client.workflow_service
            kinds = (TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)
            for kind in kinds:
                request = DescribeTaskQueueRequest(namespace="default", task_queue=queue, task_queue_type=kind)
                routing = (await service.describe_task_queue(request)).versioning_info
                if build_id not in {
                    routing.current_deployment_version.build_id,
                    routing.ramping_deployment_version.build_id,
                }:
                    return False
            return True

        await eventually(is_accepted)
        await eventually(is_in_effect)

    async def begin(self, build_id: str, workflow: type = OrderWorkflow) -> Handle:
        """Make the version current, and start an order on it, which is being charged."""
        await self.start(build_id, workflow)
        if build_id:
            await self.make_current(build_id)
        handle = await self._shop.start()
        await self.charging.reached.wait()
        return handle

    async def running(self, build_id: str, expected: int) -> None:
        """Wait until this number of orders runs on the version, by the query of the page."""
        query = self.command(COUNT, build_id).split("'")[1]
        await eventually(lambda: self._shop.client.count_workflows(query), lambda found: found.count == expected)


async def version_of(handle: Handle) -> str:
    info = (await handle.describe()).raw_description.workflow_execution_info
    return info.versioning_info.deployment_version.build_id


@pytest.fixture
async def deployment(shop: Shop, settings: ApiSettings, own_temporal: Server) -> AsyncIterator[Deployment]:
    await shop.stock()
    deployment = Deployment(shop, settings, own_temporal)
    yield deployment
    deployment.charging.resume.set()
    await deployment.stop_all()


async def _started_by_relay(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Handle:
    monkeypatch.setattr("app.relay.GRACE", 0.1)
    async with running_relay(shop):  # of any worker
        order = await shop.place()
        await shop.wait_for_status(order.order_id, OrderStatus.COMPLETED)
    return shop.handle(order.order_id)


async def test_rollout_keeps_orders_on_their_version_until_they_end(
    deployment: Deployment, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await deployment.begin("1.0")
    await deployment.start("2.0", NextOrderWorkflow)
    await deployment.make_current_as_documented("2.0")
    new = await shop.start()
    await new.result()
    await deployment.running("1.0", 1)
    assert (await deployment.run(COUNT, "1.0")).startswith("Total: 1\n")

    await deployment.make_current_as_documented("1.0")
    rolled_back = await shop.start()
    await rolled_back.result()
    await deployment.route(RAMP.replace("--percentage 10", "--percentage 100"), "2.0")
    ramped = await shop.start()
    await ramped.result()

    from_relay = await _started_by_relay(shop, monkeypatch)
    deployment.charging.resume.set()
    await old.result()
    await deployment.running("1.0", 0)
    await deployment.stop("1.0")
    began_on = {"1.0": [old, rolled_back], "2.0": [new, ramped]}
    began_on["2.0"].append(from_relay)
    for build_id, handles in began_on.items():
        assert [await version_of(handle) for handle in handles] == [build_id] * len(handles)


async def test_orders_of_a_version_without_workers_move_by_a_reset(deployment: Deployment, shop: Shop) -> None:
    handle = await deployment.begin("2.0", NextOrderWorkflow)
    await deployment.start("1.0")
    await deployment.make_current("1.0")
    await deployment.stop("2.0")
    await deployment.running("2.0", 1)
    await deployment.run(RESET, "2.0")
    order = await shop.wait_for_status(handle, OrderStatus.COMPLETED)
    assert await shop.net_money(order.order_id) == order.total.amount
    assert await version_of(shop.handle(order.order_id)) == "1.0"


async def test_orders_of_a_version_without_workers_continue_on_one_that_replays_them(
    deployment: Deployment, shop: Shop
) -> None:
    handle = await deployment.begin("1.0")
    await deployment.start("2.0")
    await deployment.make_current("2.0")
    await deployment.stop("1.0")
    await deployment.running("1.0", 1)
    await deployment.run(AUTO_UPGRADE, "1.0")
    await handle.result()  # of the same run
    assert await version_of(handle) == "2.0"


async def test_order_that_began_without_a_version_continues_on_the_first(deployment: Deployment, shop: Shop) -> None:
    handle = await deployment.begin("")
    await deployment.start("1.0")
    await deployment.make_current("1.0")
    new = await shop.start()
    await new.result()
    await deployment.stop("")
    await handle.result()
    assert [await version_of(each) for each in (handle, new)] == ["1.0", "1.0"]


async def test_worker_starting_while_no_version_is_current_logs_the_command(
    deployment: Deployment, shop: Shop, settings: ApiSettings, own_temporal: Server, tmp_path: Path
) -> None:
    environment = {
        "MONGODB_URI": settings.mongodb_uri,
        "MONGODB_DATABASE": settings.mongodb_database,
        "TASK_QUEUE": settings.task_queue,
        "TEMPORAL_ADDRESS": own_temporal.address,
        "TEMPORAL_DEPLOYMENT_NAME": deployment.name,
        "TEMPORAL_WORKER_BUILD_ID": "1.0",
    }
    worker = await Server.start(
        "worker", [sys.executable, "-m", "dev.worker"], address="", log=tmp_path / "log", cwd=ROOT, env=environment
    )
    try:

        async def logged() -> str:
            return worker.log_text()

        await eventually(logged, lambda log: "worker ready" in log)
        handle = await shop.start()
        with pytest.raises(NoWorker):
            await shop.workflows.progress(await shop.order(handle))
        assert deployment.command(MAKE_CURRENT, "1.0") in worker.log_text()
        await deployment.make_current_as_documented("1.0")
        await handle.result()
    finally:
        await worker.stop()
