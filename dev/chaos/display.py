"""A live table of orders and faults in a terminal, lines elsewhere; the report at the end."""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from app.domain import OrderStatus
from dev.chaos.audit import GUARANTEES, Report
from dev.terminal import console

SHOWN_VIOLATIONS = 20  # of each guarantee


def tables(orders: Mapping[str, int], survived: Mapping[str, int]) -> RenderableType:
    """The orders by status, and the faults that are over, side by side."""
    by_status = Table("orders", "", box=None, pad_edge=False)
    for status in OrderStatus:
        if status in orders:
            by_status.add_row(status, str(orders[status]))
    sides = Table.grid(padding=(0, 4))
    sides.add_row(by_status, _fault_table(survived))
    return sides


def print_survived(survived: Mapping[str, int]) -> None:
    console.print(_fault_table(survived))


def _fault_table(survived: Mapping[str, int]) -> Table:
    """A row for each target, and how often it had each kind of fault."""
    table = Table("fault survived", "", box=None, pad_edge=False)
    for target, names in groupby(sorted(survived), key=lambda name: name.partition(" ")[0]):
        hows = [f"{name.removeprefix(target).strip()} {survived[name]}" for name in names]
        table.add_row(target, ", ".join(hows))
    return table


def in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common()) or "none"


def print_report(report: Report) -> None:
    table = Table("", "guarantee", "orders checked", "violations", box=None, pad_edge=False)
    for name, text in GUARANTEES.items():
        number = len(report.violations[name])
        style = "red" if number else "green"
        table.add_row(name, text, str(len(report.checked[name])), Text(str(number), style=style))
    console.print(table)
    for name in report.violated:
        for violation in report.violations[name][:SHOWN_VIOLATIONS]:
            console.print(f"{name} violated: {violation}", style="red", markup=False, soft_wrap=True)
