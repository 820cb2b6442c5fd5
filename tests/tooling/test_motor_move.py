"""Move a copy of the program from Motor to PyMongo's `AsyncMongoClient`, as docs/make-it-yours.md says, and test it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dev.servers import Server
from dev.stack import ROOT
from tests.tooling.drivers import IN_FLIGHT, CopyWithoutMotor, figures, table

PROJECT = ("dev", "tests", "docs", "examples", "deploy")
FILES = ("pyproject.toml", "Makefile", "README.md", "requirements.lock", "requirements-dev.lock")
# Deleted with Motor.
OBSOLETE = ("tests/activities/test_motor.py", "tests/tooling/test_motor_move.py", "tests/tooling/drivers.py")
SOME = {
    "transactions": ("tests/activities/test_transactions.py", "commit or concurrent or callback"),
    "change stream": ("tests/e2e/test_relay.py", "another_program_gets_a_workflow"),
    "API": ("tests/api/test_idempotency.py", ""),
}


@pytest.fixture
def copy(tmp_path: Path) -> CopyWithoutMotor:
    copy = CopyWithoutMotor(tmp_path / "copy")
    for name in PROJECT:
        shutil.copytree(ROOT / name, copy.folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for name in FILES:
        shutil.copy(ROOT / name, copy.folder)
    for name in OBSOLETE:
        (copy.folder / name).unlink()
    return copy


async def passed(copy: CopyWithoutMotor, *arguments: str, within: float) -> int:
    """Run tests in the copy, where Motor cannot be imported. Returns how many passed; fails if one failed."""
    copy.hide_motor()
    code, output = await copy.run(
        "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *arguments, within=within
    )
    assert code == 0, output
    (count,) = re.findall(r"(\d+) passed", output)
    return int(count)


async def test_transactions_relay_and_api_work_after_the_move(copy: CopyWithoutMotor) -> None:
    paths, words = zip(*SOME.values(), strict=True)
    assert await passed(copy, *paths, "-k", " or ".join(filter(None, [*words, "idempotency"])), within=170) >= 15


@pytest.mark.exhaustive
@pytest.mark.parametrize("tests", ["tests/activities", "tests/api", "tests/e2e/test_relay.py"])
async def test_all_tests_of_mongodb_pass_after_the_move(copy: CopyWithoutMotor, tests: str) -> None:
    assert await passed(copy, tests, within=900) >= 15


@pytest.mark.exhaustive  # takes as long as checking the types of the whole project
async def test_types_are_correct_after_the_move(copy: CopyWithoutMotor) -> None:
    code, mistakes = await copy.run("-m", "mypy", "app", "worker.py", "tests", "dev", within=300)
    assert code == 0, mistakes


@pytest.mark.exhaustive
async def test_figures_have_a_row_for_each_driver(copy: CopyWithoutMotor, mongod: Server) -> None:
    found = await figures(mongod.address, copy, calls=200, turns=1)
    drivers = {driver for _, _, driver in found}
    assert drivers == {"AsyncIOMotorClient", "AsyncMongoClient"}
    assert len(found) == 2 * 2 * len(IN_FLIGHT)
    assert table(found).count("\n") == 1 + len(found)
