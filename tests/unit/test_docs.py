"""The tests that README.md and docs/ name are there: a file, or a test of a file that the same paragraph names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUARANTEES = [f"G{number}" for number in range(1, 12)]


def missing_in(paragraph: str) -> list[str]:
    """The files below tests/, and the tests, that a paragraph names and that do not exist."""
    files = set(re.findall(r"\btests/[\w/]+\.py\b", paragraph))
    missing = [name for name in files if not (ROOT / name).is_file()]
    there = "".join((ROOT / name).read_text() for name in files if name not in missing)
    names = set(re.findall(r"(?<![\w/])test_\w+(?!\w|\.py)", paragraph))
    return missing + [name for name in names if not re.search(rf"^(async )?def {name}\(", there, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    paragraphs = page.read_text().split("\n\n")
    assert [name for paragraph in paragraphs for name in missing_in(paragraph)] == []


@pytest.mark.parametrize("page", ["README.md", "docs/guarantees.md"])
def test_every_guarantee_names_a_test(page: str) -> None:
    told = dict(
        re.findall(r"^(?:\*\*|\| )(G\d+)\b(.*?)(?=\n\n|\n\| |\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    )
    assert list(told) == GUARANTEES
    assert [guarantee for guarantee, text in told.items() if "tests/" not in text] == []


@pytest.mark.parametrize(
    ("paragraph", "missing"),
    [
        ("`tests/unit/test_docs.py` (`test_every_guarantee_names_a_test`)", []),
        ("`tests/unit/test_docs.py` (`test_every_guarantee`)", ["test_every_guarantee"]),
        ("`tests/unit/test_dogs.py`", ["tests/unit/test_dogs.py"]),
        ("`test_every_guarantee_names_a_test`", ["test_every_guarantee_names_a_test"]),
    ],
)
def test_name_without_a_test_is_noticed(paragraph: str, missing: list[str]) -> None:
    assert missing_in(paragraph) == missing
