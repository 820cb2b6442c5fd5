"""Measure the program's MongoDB calls with Motor and with `AsyncMongoClient`: `python -m tests.tooling.drivers`.

The second is a copy of the program after the move of docs/make-it-yours.md. Both take turns on one mongod.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from dev.servers import free_port, start_mongod
from dev.stack import ROOT
from tests.kit.program_copy import ProgramCopy

CALLS = 3_000
TURNS = 5
IN_FLIGHT = (1, 50)

# Runs in a process of its own, in the folder of a program.
MEASURE = """
import asyncio, itertools, json, resource, statistics, sys, time
from app.mongo import Mongo, upsert

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

async def main(uri, calls, in_flight):
    mongo = Mongo(uri, "drivers")
    kinds = {
        "upsert": lambda n: upsert(mongo.relay, f"{n}", [{"$set": {"n": n, "at": "$$NOW"}}]),
        "read": lambda n: mongo.relay.find_one({"_id": f"{n}"}),
    }
    for kind, call in kinds.items():
        for count in (calls // 10, calls):  # the first opens connections
            took, numbers = [], itertools.count()

            async def caller():
                while (n := next(numbers)) < count:
                    begin = time.perf_counter()
                    assert (await call(n))["n"] == n
                    took.append(time.perf_counter() - begin)

            begin, used = time.perf_counter(), cpu()
            await asyncio.gather(*(caller() for _ in range(in_flight)))
            took_all, used = time.perf_counter() - begin, cpu() - used
        figures = [count / took_all, statistics.median(took) * 1e3, used / count * 1e3]
        print(json.dumps([kind, type(mongo.client).__name__, *figures]))
    mongo.close()
    await asyncio.sleep(0)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


class CopyWithoutMotor(ProgramCopy):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.apply("The day Motor ends")

    def hide_motor(self) -> None:
        """An import of Motor in the copy is an error from now on."""
        (self.folder / "motor.py").write_text('raise ImportError("Motor is gone")\n')


async def figures(uri: str, copy: ProgramCopy, calls: int, turns: int) -> dict[tuple[int, str, str], list[float]]:
    """Calls per second, p50 in ms and CPU ms of the client per call, by calls in flight, kind and driver: medians."""
    found: dict[tuple[int, str, str], list[list[float]]] = {}
    for in_flight in IN_FLIGHT * turns:
        for folder in (ROOT, copy.folder):
            arguments = ("-c", MEASURE, uri, str(calls), str(in_flight))
            code, output = await copy.run(*arguments, folder=folder, within=300)
            assert code == 0, output
            for kind, driver, *row in map(json.loads, output.splitlines()):
                found.setdefault((in_flight, kind, driver), []).append(row)
    return {key: [median(column) for column in zip(*rows, strict=True)] for key, rows in sorted(found.items())}


def table(found: dict[tuple[int, str, str], list[float]]) -> str:
    lines = ["| in flight | call | driver | calls/s | p50 ms | CPU ms |", "| --- | --- | --- | --- | --- | --- |"]
    for (in_flight, kind, driver), (rate, p50, cpu) in found.items():
        lines.append(f"| {in_flight} | {kind} | {driver} | {rate:,.0f} | {p50:.2f} | {cpu:.2f} |")
    return "\n".join(lines)


async def main() -> None:
    folder = Path(tempfile.mkdtemp())
    mongod = await start_mongod(folder / "data", free_port())
    try:
        print(table(await figures(mongod.address, CopyWithoutMotor(folder / "copy"), CALLS, TURNS)))
    finally:
        await mongod.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    asyncio.run(main())
    sys.stdout.flush()
