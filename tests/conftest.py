"""Which tests run, in which sequence, and what is printed after them. Servers and clients are in fixtures.py."""

from __future__ import annotations

import gc
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

SUMMARY = pytest.StashKey[Counter[str]]()  # numbers to print after all tests

# With several processes, a file is the unit of work. The longest ones come first, so that all processes end together.
# A file that mostly waits and one that mostly computes take turns, so that both run at any time.
LONGEST_FIRST = [
    "tests/e2e/test_relay.py",
    "tests/browser/test_order_desk.py",
    "tests/e2e/test_outages.py",
    "tests/browser/test_page_quality.py",
    "tests/e2e/test_shutdown.py",
    "tests/browser/test_without_worker.py",
    "tests/e2e/test_replica_set.py",
    "tests/e2e/test_contract.py",
    "tests/e2e/test_data_loss.py",
    "tests/workflows/test_reconciliation.py",
    "tests/e2e/test_tracing.py",
    "tests/workflows/test_resets.py",
    "tests/workflows/test_lost_workflows.py",
    "tests/workflows/test_failure_matrix.py",
    "tests/e2e/test_worker_versions.py",
    "tests/api/test_actions.py",
    "tests/activities/test_transactions.py",
    "tests/workflows/test_single_batch.py",
    "tests/e2e/test_worker_health.py",
    "tests/workflows/test_time_skipping.py",
    "tests/activities/test_metrics.py",
    "tests/api/test_events.py",
    "tests/e2e/test_least_privileges.py",
    "tests/activities/test_reservations.py",
    "tests/e2e/test_processes.py",
    "tests/workflows/test_random_orders.py",
    "tests/api/test_conventions.py",
    "tests/workflows/test_compensation.py",
    "tests/activities/test_fences.py",
    "tests/api/test_wait.py",
    "tests/unit/test_interleavings.py",
    "tests/workflows/test_cancel.py",
    "tests/e2e/test_proxy.py",
    "tests/e2e/test_restore.py",
    "tests/api/test_idempotency.py",
    "tests/api/test_bad_input.py",
    "tests/browser/test_attacks.py",
    "tests/api/test_tokens.py",
    "tests/workflows/test_command_line.py",
    "tests/workflows/test_approval.py",
    "tests/workflows/test_sandbox.py",
    "tests/api/test_lists.py",
    "tests/workflows/test_order_status.py",
    "tests/workflows/test_address_change.py",
    "tests/activities/test_orders.py",
    "tests/workflows/test_temporal_ui.py",
    "tests/replay/test_replay.py",
    "tests/workflows/test_fairness.py",
    "tests/activities/test_paging.py",
    "tests/api/test_auth.py",
    "tests/unit/test_names.py",
    "tests/tooling/test_bench.py",
    "tests/tooling/test_stack.py",
    "tests/tooling/test_production.py",
    "tests/tooling/test_new_step.py",
    "tests/tooling/test_reading_order.py",
    "tests/tooling/test_reload.py",
    "tests/tooling/test_payments_queue.py",
    "tests/tooling/test_own_services.py",
    "tests/examples/test_http_payments.py",
    "tests/examples/test_smtp_mailer.py",
    "tests/tooling/test_setup.py",
    "tests/tooling/test_replay_command.py",
    "tests/tooling/test_containers.py",
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
    # A process that only starts others needs no servers, and the imports take a second.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.fixtures")


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
        rank = {config.rootpath / path: number for number, path in enumerate(LONGEST_FIRST)}
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
