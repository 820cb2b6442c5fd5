"""docs/peers.md, which is peers.md of this folder with the figures of `make peers`."""

import re
from pathlib import Path
from textwrap import fill
from typing import Any

from dev.bench.report import spread
from dev.stack import ROOT

TEMPLATE = Path(__file__).with_name("peers.md")
PAGE = ROOT / "docs" / "peers.md"
PROGRAMS = {"DBOS": "dbos_orders.py", "Restate": "restate_orders.py"}
ROWS = {
    "orders/s, 50 in flight": "orders_per_second",
    "one order alone, p50, ms": "p50",
    "CPU of an order, all processes, ms": "cpu",
}


def text(found: dict[str, Any]) -> str:
    machine, figures = found["machine"], found["figures"]
    rows = [[label, *(spread(one[key]) for one in figures.values())] for label, key in ROWS.items()]
    processes = {
        name: ", ".join(f"{process} {used:.1f}" for process, used in one["cpu_by_process"].items())
        for name, one in figures.items()
    }
    filled = TEMPLATE.read_text().format(
        date=found["date"],
        machine=f"{machine['cores']} cores of {machine['processor']}, {machine.get('memory', '')}, {machine['system']}",
        load=machine["load before"],
        versions=", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        rounds=len(found["figures"]["DBOS"]["p50"]),
        figures="\n".join(f"| {' | '.join(row)} |" for row in rows),
        processes="\n".join(f"- {name}: {used}" for name, used in processes.items()),
        lines=" and ".join(f"{_lines_of_code(file)} lines of code on {name}" for name, file in PROGRAMS.items()),
    )
    return re.sub(r"^Measured by [^\n]*(?:\n[^\n]+)*", lambda found: fill(found[0], 120), filled, flags=re.MULTILINE)


def verdicts() -> list[list[str]]:
    """Of each guarantee: its name, and a verdict for each program."""
    rows = re.findall(r"^\| (G\d): (.*)", TEMPLATE.read_text(), re.MULTILINE)
    return [[name, *re.findall(r"\*\*(.+?)\*\*", cells)] for name, cells in rows]


def _lines_of_code(file: str) -> int:
    lines = map(str.strip, Path(__file__).with_name(file).read_text().splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)
