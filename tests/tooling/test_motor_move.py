"""Move a copy of the program from Motor to PyMongo's `AsyncMongoClient`, as docs/make-it-yours.md says, and test it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.servers import Server
from tests.kit.program_copy import files_of_tests
from tests.tooling.drivers import IN_FLIGHT, CopyWithoutMotor, figures, table

# Deleted with Motor.
OBSOLETE = ("tests/activities/test_motor.py", "tests/tooling/test_motor_move.py", "tests/tooling/drivers.py")
TESTS = [each for each in [*files_of_tests("activities", "api"), "tests/e2e/test_relay.py"] if each not in OBSOLETE]
SOME = {
    "transactions": ("tests/activities/test_transactions.py", "commit or concurrent or callback"),
    "change stream": ("tests/e2e/test_relay.py", "another_program_gets_a_workflow"),
    "API": ("tests/api/test_idempotency.py", ""),
}


@pytest.fixture
def copy(tmp_path: Path) -> CopyWithoutMotor:
    copy = CopyWithoutMotor(tmp_path / "copy")
    copy.add_the_rest()
    for name in OBSOLETE:
        (copy.folder / name).unlink()
    return copy


async def test_transactions_relay_and_api_work_after_the_move(copy: CopyWithoutMotor) -> None:
    copy.hide_motor()
    paths, words = zip(*SOME.values(), strict=True)
    assert await copy.passed(*paths, "-k", " or ".join(filter(None, [*words, "idempotency"]))) >= 15


@pytest.mark.exhaustive
@pytest.mark.parametrize("tests", TESTS)
async def test_every_test_of_mongodb_passes_after_the_move(copy: CopyWithoutMotor, tests: str) -> None:
    copy.hide_motor()
    assert await copy.passed(tests) > 0


@pytest.mark.exhaustive  # takes as long as checking the types of the whole project
async def test_types_are_correct_after_the_move(copy: CopyWithoutMotor) -> None:
    code, mistakes = await copy.run("-m", "mypy", within=170)
    assert code == 0, mistakes


@pytest.mark.exhaustive
async def test_figures_have_a_row_for_each_driver(copy: CopyWithoutMotor, mongod: Server) -> None:
    found = await figures(mongod.address, copy, calls=200, turns=1)
    drivers = {driver for _, _, driver in found}
    assert drivers == {"AsyncIOMotorClient", "AsyncMongoClient"}
    assert len(found) == 2 * 2 * len(IN_FLIGHT)
    assert table(found).count("\n") == 1 + len(found)
