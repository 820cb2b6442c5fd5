"""Add the step of docs/make-it-yours.md to a copy of the program.

The copy runs orders, passes the type check, and passes the failure matrix, which includes the new step.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from dev.servers import Server, free_port, start_temporal
from dev.stack import ROOT
from tests.kit.orders import ADDRESS, order_body
from tests.kit.program_copy import ProgramCopy, environment_of, python_blocks
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

STEP = "notify_warehouse"
BLOCKS = python_blocks("make-it-yours.md", "Another step")
NAME, STATUS, ACTIVITIES, ROW, IS_IN_THIS_ORDER, LOOP, COMPENSATION = BLOCKS

IMPORT = "    from app.activities.warehouse import Warehouse\n"
SHIPMENT = "    Step(\n        StepName.CREATE_SHIPMENT,\n"

# The gateway, which the page leaves to its reader.
PROTOCOL = """class Warehouse(Protocol):
    async def notify(self, idempotency_key: str, lines: Sequence[Line]) -> str: ...

    async def recall(self, idempotency_key: str) -> bool: ...


"""
BUNDLE = "@dataclass(frozen=True)\nclass Gateways:\n"
SEQUENCE = "from collections.abc import Sequence\nfrom app.domain import Line, "
SANDBOXES = "SandboxMailer(mongo.sandbox), SandboxWarehouse(mongo.sandbox))"
WAREHOUSE = """

class SandboxWarehouse(Sandbox):
    async def notify(self, idempotency_key: str, lines: Sequence[Line]) -> str:
        await _record(self._records, f"warehouse:{idempotency_key}", {"$inc": {"notified": 1}})
        return f"notified of {len(lines)}"

    async def recall(self, idempotency_key: str) -> bool:
        entry = await _record(self._records, f"warehouse:{idempotency_key}", {"$inc": {"recalled": 1}})
        return "notified" in entry
"""


class CopyWithStep(ProgramCopy):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.insert("app/domain.py", '    CHARGE_PAYMENT = "charge_payment"\n', textwrap.indent(NAME, "    "))
        self.insert("app/domain.py", '    CHARGED = "charged"\n', textwrap.indent(STATUS, "    "))
        (folder / "app/activities/warehouse.py").write_text(ACTIVITIES)
        self.insert("app/workflows/steps.py", "    from app.activities.tracking import Tracking\n", IMPORT)
        self.replace("app/workflows/steps.py", SHIPMENT, textwrap.indent(ROW, "    ") + SHIPMENT)
        gateways, sandbox = "app/gateways/__init__.py", "app/gateways/sandbox.py"
        self.insert(gateways, "    mailer: Mailer\n", "    warehouse: Warehouse\n")
        self.replace(gateways, BUNDLE, PROTOCOL + BUNDLE)
        for path in (gateways, sandbox):
            self.replace(path, "from app.domain import ", SEQUENCE)
        self.replace(sandbox, "SandboxMailer(mongo.sandbox))", SANDBOXES)
        with (folder / sandbox).open("a") as file:
            file.write(WAREHOUSE)


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
def copy(tmp_path: Path) -> ProgramCopy:
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

    names = ["reserve_inventory", "charge_payment", STEP, "create_shipment", "send_confirmation"]
    assert [(step["step"], step["status"]) for step in completed["steps"]] == [(name, "done") for name in names]
    assert completed["steps"][2]["detail"] == "notified of 1"
    assert [step["status"] for step in failed["steps"]] == [*["compensated"] * 3, "failed"]
    assert list(row.values()) == [STEP, "NotifyWarehouse", "RecallWarehouse", "charged", "notified"]
    records = [await shop.mongo.sandbox.find_one({"_id": f"warehouse:{o['order_id']}"}) for o in (completed, failed)]
    assert [(record or {}).get("recalled") for record in records] == [None, 1]


MISSING = {
    "status": ("app/domain.py", textwrap.indent(STATUS, "    "), "argument 2 is shorter"),
    "row": ("app/workflows/steps.py", textwrap.indent(ROW, "    "), "notify_warehouse"),
    "activity.defn": (
        "app/activities/warehouse.py",
        '    @activity.defn(name="RecallWarehouse")\n',
        "Warehouse.recall is not an activity",
    ),
}


@pytest.mark.parametrize("missing", MISSING)
async def test_worker_with_incomplete_step_names_it_and_does_not_start(
    copy: ProgramCopy, environment: dict[str, str], missing: str
) -> None:
    path, text, named = MISSING[missing]
    copy.replace(path, text, "")
    code, output = await copy.run("worker.py", environment=environment)
    assert code == 1, output
    assert re.search(named, output.splitlines()[-1]), output


async def test_orders_in_progress_continue_without_the_new_step(copy: ProgramCopy) -> None:
    assert await copy.replay_failures() > 0, "without a patch they break"

    order = "app/workflows/order.py"
    copy.insert(order, "NOT_APPROVED, Failure, OrderStatus", ", StepName")
    copy.replace(order, "\n\n@workflow.defn\n", f"\n\n{IS_IN_THIS_ORDER}\n\n@workflow.defn\n")
    copy.replace(order, "            for step in REVERSIBLE_STEPS:\n", textwrap.indent(LOOP, " " * 12))
    (stuck,) = re.findall(r"^        stuck = \[.*\n", (copy.folder / order).read_text(), re.MULTILINE)
    copy.replace(order, stuck, textwrap.indent(COMPENSATION, " " * 8))
    assert await copy.replay_failures() == 0


async def test_failure_matrix_follows_the_new_step(copy: ProgramCopy) -> None:
    for each in ("dev", "tests"):
        shutil.copytree(ROOT / each, copy.folder / each, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    shutil.copy(ROOT / "pyproject.toml", copy.folder)
    matrix = ("pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "tests/workflows/test_failure_matrix.py")
    code, output = await copy.run("-m", *matrix, "-k", "NotifyWarehouse", within=170)
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None
    assert int(passed[1]) >= 6, output  # at least one case for each fault


@pytest.mark.exhaustive  # takes as long as checking the types of the whole project
async def test_types_follow_the_new_step(copy: ProgramCopy) -> None:
    shutil.copy(ROOT / "pyproject.toml", copy.folder)
    code, mistakes = await copy.run("-m", "mypy", "app", within=170)
    assert code == 0, mistakes
