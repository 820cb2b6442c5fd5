"""The command `make bench`."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable

from dev.bench.comparison import Comparison
from dev.bench.lab import Lab
from dev.bench.rows import backlog, commands, floor, listeners, memory, overload, post, server, stock, volume
from dev.stack import run
from dev.terminal import console, progress

Row = Callable[[Lab], Awaitable[list[Comparison]]]
ROWS: dict[str, Row] = {
    "floor": floor.throughput,
    "alone": floor.latency,
    "post": post.answered,
    "cpu": floor.cpu,
    "commands": commands.mongodb,
    "stock": stock.one_product,
    "listeners": listeners.many,
    "memory": memory.growth,
    "starts": commands.starts,
    "server": server.tuned,
    "volume": volume.million,
    "backlog": backlog.without_worker,
    "overload": overload.never_waiting_clients,
}


async def bench(names: list[str], *, quick: bool) -> int:
    status = "starting"

    def say(text: str) -> None:
        nonlocal status
        status = text

    async with Lab(quick=quick, say=say) as lab:
        for name in names:
            async with progress(lambda: f"{name}: {status}"):
                lines = await ROWS[name](lab)
            for line in lines:
                ratios = f"{min(line.ratios):.2f} to {max(line.ratios):.2f}"
                console.print(
                    f"{line.title:<34}{line.ratio:>6.2f} ({ratios})  {'at least' if line.at_least else 'at most'} "
                    f"{line.target}  {[round(n, 1) for n in line.measured]} / {[round(n, 1) for n in line.against]} {line.unit}"
                )
                for detail, value in line.details.items():
                    console.print(f"    {detail}: {value}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="of these, separated by commas: %(default)s")
    parser.add_argument("--quick", action="store_true", help="make all rows small")
    arguments = parser.parse_args()
    run(bench(arguments.rows.split(","), quick=arguments.quick))
