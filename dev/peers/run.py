"""The command `make peers`: measures this program, DBOS and Restate in turns, and prints a table.

All run at the same time, one is under load. Writes peers.json; with --write-docs, dev/peers/figures.json and
docs/peers.md instead.
"""

import argparse
import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from dev.bench.load import callers
from dev.bench.report import Report, spread
from dev.peers import page, servers
from dev.peers.servers import Contender
from dev.stack import ROOT, run
from dev.terminal import console, progress

IN_FLIGHT = 50
ROUNDS = 3
FIGURES = ROOT / "dev" / "peers" / "figures.json"
CONTENDERS = {"this program": servers.this_program, "DBOS": servers.dbos, "Restate": servers.restate}


@dataclass
class Figures:
    """Of one program; a value for each turn."""

    orders_per_second: list[float] = field(default_factory=list)  # with 50 in flight, POST to completed
    p50: list[float] = field(default_factory=list)  # milliseconds, one order at a time, POST to completed
    cpu: list[float] = field(default_factory=list)  # milliseconds of an order, all processes, with 50 in flight
    cpu_by_process: dict[str, float] = field(default_factory=dict)  # the median


async def measure(contender: Contender, figures: Figures, *, orders: int, alone: int) -> dict[str, float]:
    before = contender.cpu()
    load = await callers(contender.shop.complete, in_flight=min(IN_FLIGHT, orders), count=orders)
    used = {name: (now - before[name]) / orders for name, now in contender.cpu().items()}
    figures.orders_per_second.append(load.rate)
    figures.cpu.append(sum(used.values()))
    figures.p50.append(1_000 * (await callers(contender.shop.complete, in_flight=1, count=alone)).percentile(50))
    return used


async def compare(*, quick: bool) -> dict[str, Any]:
    report = Report.new(quick=quick)
    found = {name: Figures() for name in CONTENDERS}
    used: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    orders, alone, rounds = (10, 3, 1) if quick else (300, 40, ROUNDS)
    status = "starting all servers"
    async with AsyncExitStack() as resources, progress(lambda: status):
        contenders = {}
        for name, start in CONTENDERS.items():
            contenders[name] = contender = await resources.enter_async_context(start())
            await contender.shop.stock()
            status = f"warming up: {name}"
            await callers(contender.shop.complete, in_flight=min(IN_FLIGHT, orders), count=orders // 3)
        for number in range(rounds):
            for name, contender in contenders.items():
                status = f"round {number + 1} of {rounds}: {name}"
                used[name].append(await measure(contender, found[name], orders=orders, alone=alone))
    for name, figures in found.items():
        figures.cpu_by_process = {one: median(turn[one] for turn in used[name]) for one in used[name][0]}
    versions = report.versions | await asyncio.to_thread(servers.versions)
    del versions["commit"]  # the figures are part of the next one
    figures_json = {name: asdict(figures) for name, figures in found.items()}
    return {
        "date": report.date,
        "machine": report.machine,
        "versions": versions,
        "quick": quick,
        "figures": figures_json,
    }


def table(found: dict[str, Any]) -> Table:
    rows = Table("", *found["figures"], box=None, pad_edge=False)
    for label, name in page.ROWS.items():
        rows.add_row(label, *(spread(figures[name]) for figures in found["figures"].values()))
    for verdicts in page.verdicts():
        rows.add_row(*verdicts)
    return rows


async def main(arguments: argparse.Namespace) -> int:
    if arguments.render:
        found = json.loads(FIGURES.read_text())
    else:
        found = await compare(quick=arguments.quick)
        file = FIGURES if arguments.write_docs else arguments.output / "peers.json"
        file.write_text(json.dumps(found, indent=1) + "\n")
    console.print(table(found))
    if arguments.write_docs or arguments.render:
        page.PAGE.write_text(page.text(found))
        console.print(str(page.PAGE.relative_to(ROOT)))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make peers ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few orders: shows that it works, not how fast")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder for peers.json")
    parser.add_argument("--write-docs", action="store_true", help="write the figures into docs/peers.md")
    parser.add_argument("--render", action="store_true", help="measure nothing: write docs/peers.md again")
    run(main(parser.parse_args()))
