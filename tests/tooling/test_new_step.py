"""Add the step of docs/make-it-yours.md to a copy of the program.

The copy runs orders, also one that began before. It passes the type check and the failure matrix, which includes the
new step. `make replay` keeps the histories of the past.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.domain import OrderStatus, StepName
from app.settings import Settings
from dev.apply import apply, recipes
from dev.servers import Server, free_port, start_temporal
from tests.kit.orders import ADDRESS, order_body
from tests.kit.program_copy import ProgramCopy, environment_of
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

STEP = "check_fraud"
pytestmark = pytest.mark.skipif(STEP in list(StepName), reason="this checkout has the step already")
SINCE = '        since="check-fraud",\n'


class CopyWithStep(ProgramCopy):
    """The program after the edits of the page: three files, the gateway with its line, and the drawing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.add("docs/architecture.md")
        self.apply("Another step")


@pytest.fixture(scope="module")
async def own_temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A separate server, because the other tests replay every history of theirs on the original program."""
    server = await start_temporal(free_port(), log_dir=tmp_path_factory.mktemp("temporal"))
    yield server
    await server.stop()


@pytest.fixture
def environment(settings: Settings, own_temporal: Server) -> dict[str, str]:
    return environment_of(settings, own_temporal)


@pytest.fixture
def copy(tmp_path: Path) -> CopyWithStep:
    return CopyWithStep(tmp_path / "copy")


async def test_order_with_new_step_completes_or_compensates_it(
    copy: ProgramCopy, environment: dict[str, str], shop: Shop
) -> None:
    await shop.stock()

    async def final(body: dict[str, Any]) -> dict[str, Any]:
        order_id = (await api.post("/orders", json=body)).json()["order_id"]

        async def look() -> dict[str, Any]:
            order: dict[str, Any] = (await api.get(f"/orders/{order_id}")).json()
            return order

        return await eventually(look, lambda order: order["status"] in {"completed", "failed"})

    async with copy.worker(environment), copy.api(environment) as api:
        completed = await final(order_body())
        failed = await final(order_body(shipping_address={**ADDRESS, "postal_code": "00000"}))
        (row,) = (row for row in (await api.get("/saga")).json()["steps"] if row["step"] == STEP)
        statuses = (await api.get("/openapi.json")).json()["components"]["schemas"][OrderStatus.__name__]["enum"]

    names = ["reserve_inventory", STEP, "charge_payment", "create_shipment", "send_confirmation"]
    assert [(step["step"], step["status"]) for step in completed["steps"]] == [(name, "done") for name in names]
    assert completed["steps"][1]["detail"] == "no sign of fraud in 1 lines"
    assert [step["status"] for step in failed["steps"]] == [*["compensated"] * 3, "failed"]
    assert list(row.values()) == [STEP, "CheckFraud", "ReleaseFraudHold", "reserved", "checked"]
    assert "checked" in statuses


async def test_order_that_began_before_the_step_completes_without_it(
    copy: ProgramCopy, environment: dict[str, str], shop: Shop, tmp_path: Path
) -> None:
    await shop.stock()
    before = ProgramCopy(tmp_path / "before")
    async with copy.api(environment) as api:
        async with before.worker(environment):
            body = order_body(shipping_address={**ADDRESS, "postal_code": "99999"})  # the carrier is down
            order_id = (await api.post("/orders", json=body)).json()["order_id"]
            await shop.wait_for_status(order_id, OrderStatus.CHARGED)
        async with copy.worker(environment):
            await api.post(f"/orders/{order_id}/cancel")
            order = await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
    assert [(step.step, step.status) for step in order.steps[:2]] == [
        ("reserve_inventory", "compensated"),
        ("charge_payment", "compensated"),
    ]


(TABLE,) = (text for path, _, text in recipes()["Another step"] if path == "app/workflows/steps.py")
ROW = "".join(line[1:] for line in TABLE.partition("@@\n")[2].splitlines(keepends=True) if line.startswith("+"))
MISSING = {
    "status": ("app/domain.py", '    CHECKED = "checked"\n', "argument 2 is shorter"),
    "row": ("app/workflows/steps.py", ROW, STEP),
    "activity.defn": (
        "app/activities/fraud.py",
        '    @activity.defn(name="ReleaseFraudHold")\n',
        "Fraud.release is not an activity",
    ),
}


@pytest.mark.parametrize("missing", MISSING)
async def test_worker_with_incomplete_step_names_it_and_does_not_start(
    copy: ProgramCopy, environment: dict[str, str], missing: str
) -> None:
    path, text, named = MISSING[missing]
    copy.replace(path, text, "")
    code, output = await copy.run("-m", "dev.worker", environment=environment)
    assert code == 1, output
    assert re.search(named, output.splitlines()[-1]), output


async def test_worker_starts_after_each_change_but_that_of_the_names(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """As `make dev` restarts it at each save."""
    copy = ProgramCopy(tmp_path / "copy")
    copy.add("docs/architecture.md")

    async def starts() -> bool:
        async def decided() -> bool:
            return worker.exited or "worker ready" in worker.log_text()

        async with copy.worker(environment) as worker:
            await eventually(decided)
            return not worker.exited

    started = {}
    for change in recipes()["Another step"]:
        apply(copy.folder, [change])
        started[change[0]] = await starts()
    assert [path for path in started if not started[path]] == ["app/domain.py"]


async def test_orders_in_progress_break_without_since(copy: ProgramCopy) -> None:
    assert await copy.replay_failures() == 0
    copy.replace("app/workflows/steps.py", SINCE, "")
    assert await copy.replay_failures() > 0


async def test_replay_command_keeps_histories_of_the_past(copy: CopyWithStep) -> None:
    copy.add_tests()
    histories = copy.folder / "tests/replay/histories"
    for path in histories.glob("*.json"):
        if path.stem not in {"completed", "declined"}:
            path.unlink()
    before = (histories / "completed.json").read_text()
    record = ("-m", "tests.replay.record", "completed")
    copy.replace("app/workflows/steps.py", SINCE, "")  # forgotten
    code, output = await copy.run(*record)
    assert code == 1
    assert "nothing recorded: these no longer replay" in output
    assert (histories / "completed.json").read_text() == before

    timed_out = 'code="fraud_check_unavailable", message="the fraud check did not answer in time"),\n'
    copy.insert("app/workflows/steps.py", timed_out, SINCE)
    code, output = await copy.run(*record)
    assert code == 0, output
    (past,) = histories.glob("until-*/completed.json")
    assert past.read_text() == before
    assert "CheckFraud" in (histories / "completed.json").read_text()
    code, output = await copy.run(*record)
    assert (code, "completed: unchanged" in output) == (0, True)


async def test_failure_matrix_follows_the_new_step(copy: CopyWithStep) -> None:
    copy.add_tests()
    matrix = ("pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "tests/workflows/test_failure_matrix.py")
    code, output = await copy.run("-m", *matrix, "-k", "CheckFraud", within=170)
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None
    assert int(passed[1]) >= 6, output  # at least one case for each fault


# Those that would fail if they had a list of the steps of their own.
NAMING_STEPS = [
    *(f"tests/unit/test_{each}.py" for each in ("steps_table", "diagrams", "docs", "scale")),
    *(f"tests/workflows/test_{each}.py" for each in ("happy_path", "compensation", "approval", "cost", "order_status")),
    *(f"tests/api/test_{each}.py" for each in ("saga", "description")),
    *(f"tests/activities/test_{each}.py" for each in ("orders", "address")),
]


async def test_lint_and_tests_follow_the_new_step(copy: CopyWithStep, exhaustive: bool) -> None:
    copy.add_the_rest()
    checks = [("ruff", "check", "."), ("ruff", "format", "--check", ".")]
    if exhaustive:
        checks += [("mypy",), ("tests.replay.record",)]
    for check in checks:
        code, mistakes = await copy.run("-m", *check, within=170)
        assert code == 0, mistakes
    folders = ("unit", "workflows", "api", "activities", "replay", "examples")
    more = ["-m", "not slow", *(f"tests/{each}" for each in folders)]
    assert await copy.passed(*(more if exhaustive else NAMING_STEPS), within=900) > 50
