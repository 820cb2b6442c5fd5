"""The command `make bench`: measures all rows, or those that are named, and writes bench.json and bench.html.

Takes half an hour on an idle machine. Servers, worker, API and this client share its cores.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
from rich.console import Console

from dev.bench import pages
from dev.bench.comparison import Comparison
from dev.bench.lab import Lab
from dev.bench.report import Report, Row, Stopwatch, measured_by
from dev.bench.rows import backlog, commands, floor, listeners, memory, overload, post, server, stock, volume
from dev.servers import ServerError
from dev.stack import ROOT, run
from dev.terminal import clock, console, progress

TABLE_WIDTH = 150  # characters, in a log
# Those of the shared stack first. `memory` counts the orders of all before it; the memory that `listeners` take stays
# with the process.
ROWS: dict[str, Callable[[Lab], Awaitable[list[Comparison]]]] = {
    "floor": floor.throughput,
    "alone": floor.latency,
    "post": post.answered,
    "cpu": floor.cpu,
    "commands": commands.mongodb,
    "stock": stock.one_product,
    "memory": memory.growth,
    "listeners": listeners.many,
    "starts": commands.starts,
    "server": server.tuned,
    "volume": volume.million,
    "backlog": backlog.without_worker,
    "overload": overload.never_waiting_clients,
}


async def bench(names: Sequence[str], *, quick: bool, file: Path) -> Report:
    """Measure these rows; save the report after each."""
    report, status = Report.new(quick=quick), ""

    def say(text: str) -> None:
        nonlocal status
        status = text

    async with Lab(quick=quick, say=say) as lab:
        for number, name in enumerate(names):
            stopwatch, row = Stopwatch(), Row(name, measured_by(ROWS[name]))
            async with progress(lambda: f"{number + 1} of {len(names)} {name}: {status}"):  # noqa: B023
                try:
                    row.comparisons = await ROWS[name](lab)
                except* (ServerError, OSError, TimeoutError, httpx.HTTPError, asyncio.IncompleteReadError) as errors:
                    row.error = _first_line(errors)
                    await lab.stop()  # the next rows get servers that work
            row.seconds = stopwatch.seconds
            report.rows.append(row)
            report.save(file)
            console.print(f"{number + 1} of {len(names)} {name}: {row.summary} in {clock(row.seconds)}", soft_wrap=True)
    return report


def _first_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error).partition("\n")[0] or type(error).__name__


async def main(arguments: argparse.Namespace) -> int:
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "bench.json"
    if arguments.render:
        report = Report.load(file)
    else:
        report = await bench(arguments.rows, quick=arguments.quick, file=file)
    page = arguments.output / "bench.html"
    page.write_text(pages.page(report))
    (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(report.table())
    console.print(f"\n{file} and {page}", soft_wrap=True)
    if arguments.proof:
        pages.write_proof(report, ROOT / "docs")
        console.print("docs/proof.md and its pictures")
    return int(any(row.error for row in report.rows))


def row_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted({*names} - {*ROWS}):
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--rows", type=row_names, default=[*ROWS], help=f"some of {','.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="make all rows small: shows that they work, not how fast")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder for bench.json and bench.html")
    parser.add_argument("--render", action="store_true", help="measure nothing: read bench.json again")
    parser.add_argument("--proof", action="store_true", help="write docs/proof.md and its pictures, too")
    run(main(parser.parse_args()))
