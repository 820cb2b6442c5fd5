"""A worker whose printer hangs after it has printed label 25: `python -m tests.examples.hanging_printer TASK_QUEUE`."""

from __future__ import annotations

import asyncio
import sys
import threading

from app.temporal import connect
from examples import heartbeat

print_chunk = heartbeat.print_chunk


def print_and_hang(folder: str, numbers: range) -> None:
    print_chunk(folder, numbers)
    if 25 in numbers:
        threading.Event().wait()


async def main(task_queue: str) -> None:
    heartbeat.print_chunk = print_and_hang
    await heartbeat.build_worker(await connect(), task_queue).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
