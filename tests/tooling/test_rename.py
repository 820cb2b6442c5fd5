"""`make rename` in a copy of the checkout: no trace of the old name is left, lint and tests pass."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from app.names import NAME, TITLE, WORKFLOW_ID_PREFIX, WORKFLOW_TYPE
from dev.checkout import ROOT
from tests.kit.clone import commit, make, make_clone

pytestmark = pytest.mark.slow

(DOCUMENTED,) = re.findall(r"    make rename NAME=([\w-]+)\n", (ROOT / "docs/make-it-yours.md").read_text())
NEW = DOCUMENTED if DOCUMENTED != NAME else f"{NAME}-of-tests"
HISTORIES = "tests/replay/histories"
SOME_TESTS = "tests/replay tests/unit/test_names.py tests/unit/test_docs.py tests/workflows/test_happy_path.py"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


def texts(clone: Path) -> dict[str, str]:
    """The text of each file, by its path, without examples of the command itself."""
    paths = [path for path in clone.rglob("*") if path.is_file() and not {".git", ".venv"} & set(path.parts)]
    paths = [path for path in paths if path.suffix not in {".webp", ".pyc"} and ".ruff_cache" not in path.parts]
    return {str(path.relative_to(clone)): path.read_text().replace(f"rename NAME={NAME}", "") for path in paths}


def test_renamed_copy_has_no_trace_of_the_old_name_and_passes_its_tests(clone: Path, exhaustive: bool) -> None:
    code, output = make(clone, "rename", f"NAME={NEW}")
    assert code == 0, output
    assert "LICENSE" in output

    own_words = f"{NAME}|{TITLE}".replace("-", "[-_ ]?")
    ids = rf"(?<![\w-]){WORKFLOW_ID_PREFIX}ord_|\"{WORKFLOW_ID_PREFIX}\""
    trace = re.compile(rf"(?i:{own_words})|{ids}|\"{WORKFLOW_TYPE}\"")
    found = {f"{path}: {match[0]}" for path, text in texts(clone).items() for match in trace.finditer(text)}
    assert found == set()

    histories = sorted((clone / HISTORIES).rglob("*.json"))
    assert [path.name for path in histories] == sorted(path.name for path in (ROOT / HISTORIES).glob("*.json"))
    started = json.loads(histories[0].read_text())["events"][0]["workflowExecutionStartedEventAttributes"]
    assert started["workflowType"] == {"name": "".join(map(str.capitalize, NEW.split("-"))) + "Workflow"}
    assert started["workflowId"].startswith(f"{NEW}-ord_")

    check = ["test-fast", "lint"] if exhaustive else ["test", f"ARGS=-q {SOME_TESTS}"]
    code, output = make(clone, *check)
    assert code == 0, output


@pytest.mark.parametrize("prefix", [WORKFLOW_ID_PREFIX, f"{NAME}-"], ids=["of the template", "of a renamed project"])
def test_renaming_with_orders_keeps_type_and_ids_of_workflows(clone: Path, prefix: str) -> None:
    names, page = clone / "app/names.py", clone / "docs/debugging.md"
    names.write_text(names.read_text().replace(f'"{WORKFLOW_ID_PREFIX}"', f'"{prefix}"'))
    page.write_text(before := page.read_text().replace(f" {WORKFLOW_ID_PREFIX}ord_", f" {prefix}ord_"))
    commit(clone)
    code, output = make(clone, "rename", f"NAME={NEW}", "ARGS=--keep-workflow-names")
    assert code == 0, output
    found = dict(re.findall(r'^(\w+) = "(.*)"$', names.read_text(), re.MULTILINE))
    assert (found["NAME"], found["WORKFLOW_TYPE"], found["WORKFLOW_ID_PREFIX"]) == (NEW, WORKFLOW_TYPE, prefix)
    assert page.read_text() == before
    for path in (ROOT / HISTORIES).glob("*.json"):
        assert (clone / HISTORIES / path.name).read_text() == path.read_text()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Not_Valid", "it must be lower-case letters, digits and single hyphens"),
        ("", "it must be lower-case letters"),
        (NAME, f"the name is {NAME} already"),
        ("inventory", "it is a word in "),
    ],
    ids=["not valid", "missing", "present name", "word in use"],
)
def test_renaming_to_unusable_name_reports_the_reason_and_changes_nothing(clone: Path, name: str, reason: str) -> None:
    before = texts(clone)
    code, output = make(clone, "rename", f"NAME={name}")
    assert (code, reason in output, "Traceback" in output) == (2, True, False), output
    assert texts(clone) == before


def test_renaming_of_checkout_with_changes_is_refused(clone: Path) -> None:
    with (clone / "README.md").open("a") as readme:
        readme.write("mine\n")
    code, output = make(clone, "rename", f"NAME={NEW}")
    assert (code, "the checkout has changes" in output) == (2, True), output
    assert NAME in (clone / "app/names.py").read_text()
