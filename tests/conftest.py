"""Start the real servers once per test run. Each test has its own database and task queue."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import subprocess
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
from dev.stack import ROOT
from tests.kit.http import serve
from tests.kit.memory import folder_in_memory
from tests.kit.shop import Shop, build_shop_worker
from tests.replay.histories import check_every_history

SUMMARY = pytest.StashKey[Counter[str]]()  # numbers to print after all tests

# With several processes, a file is the unit of work: the longest ones come first, so that all processes end together,
# and files that mostly wait come beside files that compute.
LONGEST_FIRST = [
    "tests/e2e/test_outages.py",
    "tests/tooling/test_bench.py",
    "tests/tooling/test_stack.py",
    "tests/e2e/test_tracing.py",
    "tests/browser/test_order_desk.py",
    "tests/e2e/test_relay.py",
    "tests/browser/test_page_quality.py",
    "tests/e2e/test_replica_set.py",
    "tests/tooling/test_production.py",
    "tests/tooling/test_new_step.py",
    "tests/tooling/test_reading_order.py",
    "tests/tooling/test_reload.py",
    "tests/e2e/test_worker_versions.py",
    "tests/workflows/test_single_batch.py",
    "tests/e2e/test_data_loss.py",
    "tests/workflows/test_resets.py",
    "tests/api/test_events.py",
    "tests/e2e/test_contract.py",
    "tests/workflows/test_reconciliation.py",
    "tests/activities/test_fences.py",
    "tests/tooling/test_payments_queue.py",
    "tests/tooling/test_own_services.py",
    "tests/examples/test_http_payments.py",
    "tests/examples/test_smtp_mailer.py",
    "tests/tooling/test_setup.py",
    "tests/tooling/test_replay_command.py",
    "tests/api/test_actions.py",
    "tests/e2e/test_shutdown.py",
    "tests/e2e/test_processes.py",
    "tests/api/test_bad_input.py",
    "tests/activities/test_reservations.py",
    "tests/workflows/test_lost_workflows.py",
    "tests/api/test_idempotency.py",
    "tests/workflows/test_time_skipping.py",
    "tests/tooling/test_containers.py",
    "tests/workflows/test_failure_matrix.py",
]
SLOW = (  # folders, files, and tests
    "tests/browser",
    "tests/e2e",
    "tests/tooling",
    "tests/activities/test_address.py",
    "tests/activities/test_fences.py::test_attempt_interrupted",
    "tests/activities/test_fences.py::test_compensation_interrupted",
    "tests/activities/test_fences.py::test_simultaneous",
    "tests/activities/test_hot_stock.py",
    "tests/activities/test_metrics.py",
    "tests/activities/test_paging.py",
    "tests/activities/test_redaction.py",
    "tests/activities/test_reservations.py::test_attempt_interrupted",
    "tests/activities/test_transactions.py",
    "tests/api/test_actions.py::test_cancel_racing_completion",
    "tests/api/test_actions.py::test_simultaneous",
    "tests/api/test_actions.py::test_status_answers_the_state_of_the_workflow",
    "tests/api/test_auth.py::test_openapi_description_names_the_scope_of_each_operation",
    "tests/api/test_bad_input.py::test_deeply_nested_body",
    "tests/api/test_conventions.py::test_head_answers_as_get_without_a_body",
    "tests/api/test_conventions.py::test_known_state_answers_304_until_it_changes",
    "tests/api/test_events.py",
    "tests/api/test_idempotency.py::test_hundred_concurrent_posts",
    "tests/api/test_idempotency.py::test_restock_repeated_hundred_times",
    "tests/api/test_lists.py::test_inventory_pages_by_sku_while_the_api_stays_ready",
    "tests/api/test_lists.py::test_list_with_each_filter_pages_newest_first",
    "tests/api/test_readme.py",
    "tests/api/test_tokens.py",
    "tests/api/test_wait.py",
    "tests/examples/test_heartbeat.py",
    "tests/examples/test_programs.py",
    "tests/unit/test_interleavings.py",
    "tests/unit/test_reservation.py::test_available_and_held",
    "tests/workflows/test_address_change.py::test_cancel_while_address_change_runs",
    "tests/workflows/test_approval.py::test_cancel_while_awaiting_approval",
    "tests/workflows/test_cancel.py::test_cancel_between_retries",
    "tests/workflows/test_cancel.py::test_cancel_during_compensation",
    "tests/workflows/test_cancel.py::test_worker_shutdown",
    "tests/workflows/test_command_line.py",
    "tests/workflows/test_compensation.py::test_failing_compensation",
    "tests/workflows/test_failure_matrix.py",
    "tests/workflows/test_fairness.py",
    "tests/workflows/test_lost_workflows.py",
    "tests/workflows/test_order_status.py",
    "tests/workflows/test_random_orders.py",
    "tests/workflows/test_reconciliation.py",
    "tests/workflows/test_resets.py",
    "tests/workflows/test_sandbox.py",
    "tests/workflows/test_single_batch.py",
    "tests/workflows/test_temporal_ui.py",
    "tests/workflows/test_time_skipping.py::test_payment_outage",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run every combination, not only every pair of values")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUMMARY] = Counter[str]()
    if hasattr(config, "workerinput"):  # ports of its own: another process could take that of a server that restarts
        number, count = int(config.workerinput["workerid"].removeprefix("gw")), config.workerinput["workercount"]
        servers.ports = servers.ports[number::count]


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
    left_out = [] if config.getoption("exhaustive") else [i for i in items if i.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        rank = {ROOT / path: number for number, path in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays; to look through it again and again took a tenth of the CPU time


def pytest_sessionfinish(session: pytest.Session) -> None:
    summary = session.config.stash[SUMMARY]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["summary"] = dict(summary)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up the numbers of all test processes."""
    node.config.stash[SUMMARY].update(getattr(node, "workeroutput", {}).get("summary", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, number in sorted(config.stash[SUMMARY].items()):
        terminalreporter.write_line(f"{name}: {number:,}")


@pytest.fixture(scope="session", autouse=True)
def check_for_leaked_processes() -> Iterator[None]:
    """Set up first, hence torn down last. Clients that were not closed are ResourceWarnings, which are errors here."""
    yield
    listed = subprocess.run(["ps", "-axww", "-o", "ppid=,stat=,command="], capture_output=True, text=True, check=True)  # noqa: S607
    children = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    leaked = [
        command
        for parent, state, command in (child for child in children if len(child) == 3)
        if int(parent) == os.getpid() and not state.startswith("Z") and not command.startswith("ps -ax")
    ]
    assert leaked == []


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> Counter[str]:
    """Numbers to print after all tests."""
    return pytestconfig.stash[SUMMARY]


@pytest.fixture(scope="session")
def exhaustive(pytestconfig: pytest.Config) -> bool:
    """True if this run has every combination; see `tests/kit/pairs.py`."""
    return bool(pytestconfig.getoption("exhaustive"))


@pytest.fixture(scope="session", autouse=True)
def bounded_worker_stop() -> Iterator[None]:
    """Give up on a stop of a worker that hangs.

    The last call of a stop, when all tasks have ended, hangs in the SDK's core about once in 500 stops (1.35). It then
    never returns; `worker.py` ends by force, and the SDK itself ignores any error of this call.
    """
    finalize = bridge_worker.Worker.finalize_shutdown

    async def finalize_in_time(worker: bridge_worker.Worker) -> None:
        async with asyncio.timeout(10):
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
