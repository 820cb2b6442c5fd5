"""`make bench`: every row works, and the report says what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from app.domain import StepName
from dev.bench import __main__ as command
from dev.bench import pages
from dev.bench.comparison import Comparison, in_turns
from dev.bench.lab import Lab
from dev.bench.report import Report, Row
from dev.servers import ServerError
from tests.tooling.dev_process import Dev

NAMES = [*command.ROWS]
OWN_STACKS = NAMES.index("starts")  # the rows from here on start stacks of their own


@pytest.mark.parametrize("names", [NAMES[:OWN_STACKS], NAMES[OWN_STACKS:]], ids=["shared-stack", "own-stacks"])
async def test_quick_benchmark_measures_every_row_and_writes_its_report(tmp_path: Path, names: list[str]) -> None:
    dev = await Dev(tmp_path).start("dev.bench", "--quick", "--rows", ",".join(names), "--output", str(tmp_path))
    try:
        code, lines = await dev.wait_for_exit(timeout=150)
    finally:
        dev.kill()
    assert code == 0, lines
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in report["rows"]] == names
    page = (tmp_path / "bench.html").read_text()
    for row in report["rows"]:
        assert row["comparisons"], row
        for line in row["comparisons"]:
            assert any(line["title"] in printed for printed in lines)
            assert line["title"] in page.replace("&#x27;", "'")
            assert (len(line["measured"]), len(line["against"])) == (1, 1)
    figures = {line["title"]: line["measured"] for row in report["rows"] for line in row["comparisons"]}
    if "commands" in names:
        assert figures["MongoDB writes of an order"] == [len(StepName)]  # the insert, and all steps but the reservation
        assert figures["its transactions"] == [1]
    else:
        assert figures["starts of an order, 2 workers"] == [1]
        assert figures["30 clients that never wait: accepted and lost"] == [0]
    # Needs nothing else: no script, no address but that of the SVG format.
    assert {*re.findall(r"https?://[^\"]+", page)} == {"http://www.w3.org/2000/svg"}
    assert "<script" not in page


@pytest.fixture
def report() -> Report:
    report = Report.new(quick=False)
    names = ("order", "floor")
    report.rows = [
        Row("met", "how", [Comparison("faster", "/s", [9, 8, 12], [10, 10, 10], names, 0.85, at_least=True)]),
        Row("missed", "how", [Comparison("slower", "ms", [30, 15, 20], [10, 10, 10], names, 1.3, note="a note")]),
        Row("broken", "how", error="cannot <start>"),
    ]
    return report


def test_report_that_is_saved_and_loaded_is_the_same(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    report.save(file)
    assert Report.load(file) == report
    (line,) = json.loads(file.read_text())["rows"][1]["comparisons"]
    assert (line["ratios"], line["ratio"], line["is_met"]) == ([3, 1.5, 2], 2, False)


def test_report_names_missed_targets_and_rows_that_failed(report: Report, tmp_path: Path) -> None:
    assert report.summary == "1 of 2 targets met; could not be measured: broken"
    pages.write_proof(report, tmp_path)
    proof = (tmp_path / "proof.md").read_text()
    assert "| faster | 9 (8 to 12) /s | 10 | 0.90 | 0.80 to 1.20 | ≥ 0.85 | met |" in proof
    assert "| slower | 20 (15 to 30) ms | 10 | 2.00 | 1.50 to 3.00 | ≤ 1.3 | missed |" in proof
    for picture in re.findall(r"\((pictures/[^)]+)\)", proof):
        assert "prefers-color-scheme: dark" in (tmp_path / picture).read_text()
    page = pages.page(report)
    assert "a note" in page
    assert "cannot &lt;start&gt;" in page


async def test_two_things_are_measured_in_turns() -> None:
    calls: list[str] = []

    async def measure(name: str) -> int:
        calls.append(name)
        return len(calls)

    firsts, seconds = await in_turns(3, lambda: measure("a"), lambda: measure("b"))
    assert (firsts, seconds, calls) == ([1, 3, 5], [2, 4, 6], ["a", "b"] * 3)


async def test_row_that_cannot_be_measured_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def fails(_: Lab) -> list[Comparison]:
        raise ExceptionGroup("callers", [ServerError("POST /orders: 500")])

    async def works(_: Lab) -> list[Comparison]:
        return [Comparison("works", "ms", [1], [1], ("a", "b"), 1)]

    monkeypatch.setattr(command, "ROWS", {"fails": fails, "works": works})
    report = await command.bench(["fails", "works"], quick=True, file=tmp_path / "bench.json")
    assert [(row.error, len(row.comparisons)) for row in report.rows] == [("POST /orders: 500", 0), ("", 1)]
