"""The report: what was measured, when and where; as a table in the terminal and as bench.json."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from dev.bench.comparison import Comparison
from dev.stack import ROOT


@dataclass
class Row:
    """A row of the benchmark: its comparisons, or the error that prevented them."""

    name: str
    how: str  # it is measured
    comparisons: list[Comparison] = field(default_factory=list)
    error: str = ""
    seconds: float = 0

    @property
    def summary(self) -> str:
        met = sum(comparison.is_met for comparison in self.comparisons)
        return self.error or f"{met} of {len(self.comparisons)} targets met"


@dataclass
class Report:
    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    quick: bool  # too short to be more than a test
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def new(cls, *, quick: bool) -> Self:
        packages = {name: version(name) for name in ("temporalio", "motor", "fastapi", "uvicorn")}
        return cls(
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            machine=_machine(),
            versions={"commit": _commit(), "Python": platform.python_version(), **packages},
            quick=quick,
        )

    @classmethod
    def load(cls, file: Path) -> Self:
        found = json.loads(file.read_text())
        rows = found.pop("rows")
        for row in rows:
            row["comparisons"] = [Comparison.from_json(line) for line in row["comparisons"]]
        return cls(**found, rows=[Row(**row) for row in rows])

    def save(self, file: Path) -> None:
        """Write it as JSON, with what follows from the measurements: ratios and whether the target is met."""
        found = asdict(self)
        for row, original in zip(found["rows"], self.rows, strict=True):
            row["comparisons"] = [line.to_json() for line in original.comparisons]
        file.write_text(json.dumps(found, indent=1) + "\n")

    @property
    def comparisons(self) -> list[Comparison]:
        return [comparison for row in self.rows for comparison in row.comparisons]

    @property
    def summary(self) -> str:
        met = sum(comparison.is_met for comparison in self.comparisons)
        text = f"{met} of {len(self.comparisons)} targets met"
        errors = [row.name for row in self.rows if row.error]
        return text + (f"; could not be measured: {', '.join(errors)}" if errors else "")

    @property
    def minutes(self) -> float:
        return sum(row.seconds for row in self.rows) / 60

    def table(self) -> Table:
        table = Table(*HEAD, title=self.summary, title_justify="left", pad_edge=False, box=None)
        for number in range(2, len(HEAD) - 1):
            table.columns[number].justify = "right"
        for row in self.rows:
            for number, line in enumerate(row.comparisons):
                style = "" if line.is_met else "yellow"
                table.add_row(f"[cyan]{row.name if number == 0 else ''}[/]", *cells(line), style=style)
            if row.error:
                table.add_row(f"[cyan]{row.name}[/]", f"[red]{row.error}[/]")
        return table


HEAD = ("row", "", "measured", "against", "ratio", "min to max", "target", "")


def cells(line: Comparison) -> tuple[str, ...]:
    return (
        line.title,
        f"{spread(line.measured)} {line.unit}",
        spread(line.against),
        f"{line.ratio:.2f}",
        f"{min(line.ratios):.2f} to {max(line.ratios):.2f}",
        f"{'≥' if line.at_least else '≤'} {line.target:g}",
        "met" if line.is_met else "missed",
    )


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the greatest value if they differ."""
    ordered = sorted(values)
    low, middle, high = (amount(ordered[index]) for index in (0, len(ordered) // 2, -1))
    return middle if low == high else f"{middle} ({low} to {high})"


def amount(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.{1 if value >= 10 else 2}f}"


def _machine() -> dict[str, str]:
    found = {"cores": str(os.cpu_count()), "system": f"{platform.system()} {platform.release()}"}
    processor = _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.processor() or platform.machine()
    if kilobytes := _first(r"MemTotal:\s*(\d+)", "/proc/meminfo"):
        found["memory"] = f"{int(kilobytes) / 1e6:.0f} GB"
    return {"processor": processor, **found, "load before": f"{os.getloadavg()[0]:.1f}"}


def _first(pattern: str, file: str) -> str:
    try:
        found = re.search(pattern, Path(file).read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def _commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measured_by(function: Any) -> str:
    """The first paragraph of a row's docstring, which says how it is measured."""
    return " ".join((function.__doc__ or "").split("\n\n    Raises")[0].split())


class Stopwatch:
    def __init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._begin, 1)
