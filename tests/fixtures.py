"""Start the real servers once per test run. Each test has its own database and task queue."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import cache
from typing import Any

import fastapi.routing
import httpx
import pytest
import temporalio.bridge.worker as bridge_worker
import temporalio.worker.workflow_sandbox._runner as sandbox_runner
from starlette.routing import BaseRoute
from temporalio.client import Client
from temporalio.testing import TimeSkipper

from app import temporal
from app.mongo import Mongo
from app.settings import ApiSettings
from dev import servers
from dev.servers import Server, free_port, start_mongod, start_temporal
from tests.kit.http import serve
from tests.kit.memory import folder_in_memory
from tests.kit.shop import Shop, build_shop_worker
from tests.replay.histories import check_every_history


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # ports of its own: another process could take that of a server that restarts
        number, count = int(config.workerinput["workerid"].removeprefix("gw")), config.workerinput["workercount"]
        servers.ports = servers.ports[number::count]


@pytest.fixture(scope="session", autouse=True)
def bounded_worker_stop() -> Iterator[None]:
    """Give up on a stop of a worker that hangs.

    The last call of a stop, when all tasks have ended, hangs in the SDK's core about once in 500 stops (1.35). It then
    never returns; `worker.py` ends by force, and the SDK itself ignores any error of this call.
    """
    finalize = bridge_worker.Worker.finalize_shutdown

    async def finalize_in_time(worker: bridge_worker.Worker) -> None:
        async with asyncio.timeout(3):
            await finalize(worker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge_worker.Worker, "finalize_shutdown", finalize_in_time)
        yield


@pytest.fixture(scope="session", autouse=True)
def sandbox_code_compiled_once() -> Iterator[None]:
    """Spare a tenth of the CPU time: the SDK compiles the same few lines for each payload of a workflow (1.35)."""
    compiled = cache(lambda source: compile(source, "<sandbox>", "exec"))

    def execute(source: str, *scopes: dict[str, Any]) -> None:
        exec(compiled(source), *scopes)  # noqa: S102

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox_runner, "exec", execute, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def routes_built_once() -> Iterator[None]:
    """Spare a tenth of the CPU time of the API's tests: FastAPI builds the same routes again for each app (0.165)."""
    build, built = fastapi.routing._IncludedRouter._build_effective_context, dict[int, Any]()

    def build_once(included: fastapi.routing._IncludedRouter, route: BaseRoute) -> Any:
        if id(route) not in built:
            built[id(route)] = build(included, route)
        return built[id(route)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastapi.routing._IncludedRouter, "_build_effective_context", build_once)
        yield


@pytest.fixture(scope="session")
async def mongod(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """In memory, a database for each test takes half of the CPU time, and writes need not wait for the disk."""
    logs = tmp_path_factory.mktemp("mongod")
    with folder_in_memory() as folder:
        server = await start_mongod(folder, free_port(), test_commands=True, durable=False, log_dir=logs)
        yield server
        await server.stop()


@pytest.fixture(scope="session")
async def temporal_server(tmp_path_factory: pytest.TempPathFactory, summary: Counter[str]) -> AsyncIterator[Server]:
    """After the tests, replay the history of every order that ran on this server. A failure fails the last test."""
    logs = tmp_path_factory.mktemp("temporal")
    server = await start_temporal(free_port(), time_skipping=True, log_dir=logs)
    yield server
    try:
        summary.update(await check_every_history(await temporal.connect(target_host=server.address)))
    finally:
        await server.stop()


@pytest.fixture(scope="session")
async def client(temporal_server: Server) -> Client:
    """A client whose workflows run in real time."""
    return await temporal.connect(target_host=temporal_server.address)


@pytest.fixture(scope="session")
def skipper(client: Client) -> TimeSkipper:
    """`skipper.client` starts workflows that skip time while they only wait."""
    return TimeSkipper(client)


@pytest.fixture(scope="session")
async def drops(mongod: Server) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Drops run in the background during the next tests, because a drop can take longer than a test."""
    drops: list[asyncio.Task[None]] = []
    yield drops
    await asyncio.gather(*drops)


@pytest.fixture
async def mongo(mongod: Server, drops: list[asyncio.Task[None]]) -> AsyncIterator[Mongo]:
    """A database for one test. The client's name equals the database name, so a fail point can select this client."""
    name = f"test_{secrets.token_hex(6)}"
    mongo = Mongo(mongod.address, name, app_name=name)
    yield mongo

    async def drop() -> None:
        await mongo.client.drop_database(name)
        mongo.close()

    drops.append(asyncio.create_task(drop()))


@pytest.fixture
def settings(mongod: Server, mongo: Mongo) -> ApiSettings:
    """Database and task queue of this test."""
    return ApiSettings(
        api_open=True,
        mongodb_uri=mongod.address,
        mongodb_database=mongo.database.name,
        task_queue=mongo.database.name,
        approval_threshold=50_000,
        approval_timeout=timedelta(hours=24),
    )


@pytest.fixture
async def shop(mongo: Mongo, settings: ApiSettings, client: Client) -> Shop:
    """Inserts orders into MongoDB and starts their workflows in real time. See `shop.with_client` to skip time."""
    return Shop(mongo, settings, client)


@pytest.fixture
async def worker(shop: Shop) -> AsyncIterator[None]:
    """A worker with the sandbox gateways on this test's task queue."""
    async with build_shop_worker(shop):
        yield


@pytest.fixture
async def api(settings: ApiSettings, temporal_server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """The API over HTTP, against this test's database and task queue."""
    async with serve(settings, temporal_server.address) as http:
        yield http
