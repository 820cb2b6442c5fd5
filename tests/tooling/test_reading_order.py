"""Break the program as docs/reading-order.md says, in a copy, and see the named tests fail."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev.stack import ROOT
from tests.kit.program_copy import ProgramCopy


@dataclass(frozen=True)
class Stop:
    """A change of the program, and the test that detects it."""

    path: str
    old: str
    new: str
    test: str
    selection: str
    output: str  # the line to look for, if the page names one


def read_stops() -> dict[str, Stop]:
    page = (ROOT / "docs/reading-order.md").read_text()
    command = r'make test ARGS="(\S+) -k (\S+)"'
    stops = {}
    look = r"(?:\n\n[^#`]*\blook\s+for\s+`([^`]+)`)?"
    for path, diff, test, selection, output in re.findall(
        rf"^```diff\n--- (\S+)\n([^`]*)```\n\n {{4}}{command}${look}", page, re.MULTILINE | re.IGNORECASE
    ):
        old, new = ("".join(re.findall(rf"^[{sign}](.*\n)", diff, re.MULTILINE)) for sign in "-+")
        stops[selection] = Stop(path, old, new, test, selection, output)
    assert len(stops) == page.count("make test ARGS") == page.count("```diff")
    assert len([stop for stop in stops.values() if stop.output]) == len(re.findall(r"(?i)\blook\s+for\s+`", page))
    return stops


STOPS = read_stops()


@pytest.fixture
def copy(tmp_path: Path) -> ProgramCopy:
    copy = ProgramCopy(tmp_path / "copy")
    copy.add_tests()
    return copy


@pytest.mark.parametrize("name", STOPS)
def test_documented_change_and_test_exist(name: str) -> None:
    stop = STOPS[name]
    assert (ROOT / stop.path).read_text().count(stop.old) == 1
    assert re.search(rf"def test_\w*{stop.selection}", (ROOT / stop.test).read_text())


@pytest.mark.parametrize("name", STOPS)
async def test_documented_change_fails_the_documented_test(copy: ProgramCopy, name: str) -> None:
    stop = STOPS[name]
    copy.replace(stop.path, stop.old, stop.new)
    test = ("pytest", "-q", "--tb=short", "-p", "no:cacheprovider", stop.test, "-k", stop.selection)
    code, output = await copy.run("-m", *test, within=170)
    assert code == 1, output
    assert re.search(rf"^FAILED {stop.test}::\w*{stop.selection}", output, re.MULTILINE), output
    assert stop.output in output


def test_every_name_is_in_a_file_that_its_paragraph_links() -> None:
    paragraphs = (ROOT / "docs/reading-order.md").read_text().split("\n\n")
    checked = 0
    for paragraph in paragraphs:
        names = set(re.findall(r"`(\w+)`", paragraph))
        linked = "".join(
            (ROOT / "docs" / path).read_text() for path in re.findall(r"\]\((\.\./[^)]+\.py)\)", paragraph)
        )
        if linked:
            assert [name for name in names if name not in linked] == []
            checked += len(names)
    assert checked > 8
