"""`make apply` and `make delete` in a clone: they do what the docs say, or nothing, and then say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain import StepName
from tests.kit.clone import commit, make, make_clone

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


@pytest.mark.skipif("check_fraud" in list(StepName), reason="this checkout has the step already")
def test_recipe_is_applied_once(clone: Path) -> None:
    recipe = ("apply", "RECIPE=Another step")
    code, output = make(clone, *recipe)
    assert code == 0, output
    assert "app/workflows/steps.py, " in output
    assert 'CHECKED = "checked"' in (clone / "app/domain.py").read_text()
    assert (clone / "app/activities/fraud.py").exists()

    code, output = make(clone, *recipe)
    assert (code, "the checkout has changes" in output) == (2, True), output
    steps = clone / "app/workflows/steps.py"
    steps.write_text(steps.read_text().replace("StepName.CHARGE_PAYMENT,", "StepName.CHARGE_PAYMENT,  # mine"))
    commit(clone)
    domain = (clone / "app/domain.py").read_text()
    code, output = make(clone, *recipe)
    assert (code, "does not have, or has more than once" in output, "Traceback" in output) == (2, True, False), output
    assert (clone / "app/domain.py").read_text() == domain


def test_extra_is_deleted_after_what_has_to_go_first(clone: Path) -> None:
    code, output = make(clone, "delete", "EXTRA=live events")
    assert (code, "cannot delete live events yet: delete order desk first" in output) == (2, True), output
    assert (clone / "app/api/events.py").exists()

    for extra in ("order desk", "live events"):
        code, output = make(clone, "delete", f"EXTRA={extra}")
        assert (code, "gone already" in output) == (0, False), output
        commit(clone)
    assert not (clone / "app/api/events.py").exists()
    code, output = make(clone, "delete", "EXTRA=live events")
    assert (code, "gone already: app/api/events.py" in output) == (0, True), output


@pytest.mark.parametrize(
    ("command", "choices"), [(("apply", "RECIPE=all"), "Another step, "), (("delete", "EXTRA=all"), "order desk, ")]
)
def test_unknown_name_is_refused_with_the_choices(clone: Path, command: tuple[str, str], choices: str) -> None:
    code, output = make(clone, *command)
    assert (code, choices in output, "Traceback" in output) == (2, True, False), output
