"""Another step is one file of activities, one row, a name and a status: types and failure matrix follow by themselves.

What an order looks like with a new step, and what a forgotten part costs, is in `tests/e2e/test_new_step.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

from dev.stack import ROOT

ACTIVITIES = '''"""CheckFraud and ReleaseFraudHold: the payment service looks at the card before anything is charged."""

from __future__ import annotations

from temporalio import activity

from app.activities.order_step import Dependencies, OrderStep
from app.domain import Money, Order, StepName
from app.messages import OrderRef


class Fraud:
    def __init__(self, dependencies: Dependencies) -> None:
        self._gateway = dependencies.gateways.payments
        self._step = OrderStep(dependencies.orders, StepName.CHECK_FRAUD, self._release)

    @activity.defn(name="CheckFraud")
    async def check(self, ref: OrderRef) -> None:
        async def check(order: Order) -> str:
            nothing = Money(amount=0, currency=order.total.currency)
            return f"held {await self._gateway.charge(f'fraud-{ref.order_id}', nothing, 'check')}"

        await self._step.perform(ref.order_id, check)

    @activity.defn(name="ReleaseFraudHold")
    async def release(self, ref: OrderRef) -> None:
        await self._step.compensate(ref.order_id)

    async def _release(self, order_id: str) -> bool:
        return await self._gateway.refund(f"fraud-{order_id}")
'''
ROW = """    Step(
        StepName.CHECK_FRAUD,
        activity=Fraud.check,
        compensation=Fraud.release,
        start_to_close=timedelta(seconds=15),
        schedule_to_close=timedelta(minutes=5),
        retry_policy=retry(timedelta(seconds=10)),
        timed_out=Failure(code="fraud_unavailable", message="the fraud check did not answer in time"),
    ),
"""
# File, the one line before which the text is inserted, the text.
EDITS = [
    ("app/domain.py", '    CHARGED = "charged"\n', '    CHECKED = "checked"\n'),
    ("app/domain.py", '    CHARGE_PAYMENT = "charge_payment"\n', '    CHECK_FRAUD = "check_fraud"\n'),
    (
        "app/workflows/steps.py",
        "    from app.activities.inventory import Inventory\n",
        "    from app.activities.fraud import Fraud\n",
    ),
    ("app/workflows/steps.py", "    Step(\n        StepName.CHARGE_PAYMENT,\n", ROW),
]


async def test_types_and_failure_matrix_follow_a_new_step(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for each in ("app", "dev", "tests"):
        shutil.copytree(ROOT / each, folder / each, ignore=shutil.ignore_patterns("__pycache__"))
    for each in ("worker.py", "pyproject.toml"):
        shutil.copy(ROOT / each, folder)
    (folder / "app/activities/fraud.py").write_text(ACTIVITIES)
    for path, before, text in EDITS:
        file = folder / path
        assert file.read_text().count(before) == 1, f"{path} has another {before!r}"
        file.write_text(file.read_text().replace(before, text + before))

    matrix = "tests/workflows/test_failure_matrix.py"
    results = await asyncio.gather(
        _run(folder, "ruff", "check", "app"),
        _run(folder, "mypy", "app"),
        _run(folder, "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", matrix, "-k", "CheckFraud"),
    )
    for code, output in results:
        assert code == 0, output
    passed = re.search(r"(\d+) passed", results[-1][1])
    assert passed is not None
    assert int(passed[1]) > 30, results[-1][1]


async def _run(folder: Path, *command: str) -> tuple[int | None, str]:
    """Run a Python tool in the copy to its end: exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(90):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, output.decode()
