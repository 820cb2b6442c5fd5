"""README.md and docs/ match the code: named tests, links, make targets, the saga and the settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import ApiSettings

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
GUARANTEES = [f"G{number}" for number in range(1, 12)]


def missing_in(paragraph: str) -> list[str]:
    """The test files and tests that a paragraph names, but that do not exist."""
    files = set(re.findall(r"\btests/[\w/]+\.py\b", paragraph))
    missing = [name for name in files if not (ROOT / name).is_file()]
    existing = "".join((ROOT / name).read_text() for name in files if name not in missing)
    names = set(re.findall(r"(?<![\w/])test_\w+(?!\w|\.py)", paragraph))
    return missing + [name for name in names if not re.search(rf"^(async )?def {name}\(", existing, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_test_exists(page: Path) -> None:
    paragraphs = page.read_text().split("\n\n")
    assert [name for paragraph in paragraphs for name in missing_in(paragraph)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_points_to_an_existing_file(page: Path) -> None:
    targets = re.findall(r"(?:\]\(|src=\"|srcset=\")([^)\"#]+)", page.read_text())
    local = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_make_target_exists(page: Path) -> None:
    existing = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))
    assert named - existing == set()


def test_saga_in_readme_matches_the_workflow() -> None:
    [shown] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for line in shown.splitlines()]
    _, saga = (ROOT / "app/workflows/order.py").read_text().split("async def _saga(self)")
    code = iter(line.split("  #")[0].strip() for line in saga.splitlines())
    # `in` consumes the iterator, so the lines must appear in the same order.
    assert [line for line in lines if line != "..." and line not in code] == []


def test_deletable_modules_are_imported_nowhere_else() -> None:
    _, section = (ROOT / "docs/make-it-yours.md").read_text().split("## What you can delete")
    modules = re.findall(r"`((?:dev|app)/[\w/]+)\.py`", section.replace("`app/api/main.py`", ""))
    assert len(modules) == 8
    program = [*(ROOT / "app").rglob("*.py"), *(ROOT / "dev").rglob("*.py"), ROOT / "worker.py"]
    for module in modules:
        package, name = module.replace("/", ".").rsplit(".", 1)
        imports = rf"^(from {package}\.{name} |import {package}\.{name}|from {package} import (.*, )?{name}\b)"
        importing = [path for path in program if re.search(imports, path.read_text(), re.MULTILINE)]
        extras = {ROOT / f"{each}.py" for each in modules}
        assert set(importing) - extras <= {ROOT / "app/api/main.py", ROOT / "worker.py"}, module


def test_program_does_not_import_examples() -> None:
    program = [*(ROOT / "app").rglob("*.py"), *(ROOT / "dev").rglob("*.py"), ROOT / "worker.py"]
    imports = re.compile(r"^\s*(from|import) examples\b", re.MULTILINE)
    assert [path for path in program if imports.search(path.read_text())] == []


def test_documented_settings_match_the_code() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `?(.*?)`? ?\|", page, re.MULTILINE))
    assert rows.pop("TEMPORAL_ADDRESS") == "127.0.0.1:7233"  # read by the Temporal SDK
    assert list(rows) == [name.upper() for name in ApiSettings.model_fields]
    shown = {name: value.replace("{}", "") for name, value in rows.items()}
    defaults = ApiSettings.model_construct().model_dump()
    shown = {name: value.removeprefix("false") for name, value in shown.items()}
    for name in ("approval_timeout", "reconciliation_interval"):
        defaults[name] = int(defaults[name].total_seconds())
    assert shown == {name.upper(): str(value or "") for name, value in defaults.items()}


@pytest.mark.parametrize("page", ["README.md", "docs/guarantees.md"])
def test_every_guarantee_links_to_a_test(page: str) -> None:
    guarantees = dict(
        re.findall(r"^(?:\*\*|\| )(G\d+)\b(.*?)(?=\n\n|\n\| |\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    )
    assert list(guarantees) == GUARANTEES
    assert [guarantee for guarantee, text in guarantees.items() if "tests/" not in text] == []


@pytest.mark.parametrize(
    ("paragraph", "missing"),
    [
        ("`tests/unit/test_docs.py` (`test_every_guarantee_links_to_a_test`)", []),
        ("`tests/unit/test_docs.py` (`test_every_guarantee`)", ["test_every_guarantee"]),
        ("`tests/unit/test_dogs.py`", ["tests/unit/test_dogs.py"]),
        ("`test_every_guarantee_links_to_a_test`", ["test_every_guarantee_links_to_a_test"]),
    ],
)
def test_name_of_missing_test_fails_the_check(paragraph: str, missing: list[str]) -> None:
    assert missing_in(paragraph) == missing
