"""A long activity continues where a killed worker stopped: it prints the labels of a day's parcels.

Problem: Temporal retries an activity from its first line, here from the first label. And it notices that a worker was
killed only when the start-to-close timeout ends, which must cover the whole job.

Trap: a heartbeat is no commit. The SDK sends at most one within 0.8 times the heartbeat timeout, so when a worker is
killed, Temporal knows less than was done.

Solution: each heartbeat carries the next label; the next attempt begins there. The heartbeat timeout, not the
start-to-close timeout, detects a killed worker. The work is done in chunks that can be repeated. Each takes less than
the heartbeat timeout, and runs in a thread, because heartbeats need the event loop.

    python -m examples.heartbeat    # prints until it kills its worker, and continues with another one
"""

import asyncio
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from app.temporal import connect
    from worker import SANDBOX

TASK_QUEUE = "example-heartbeat"
CHUNK = 5  # labels


@dataclass(frozen=True)
class LabelJob:
    """Labels 0 to `labels` - 1, as files in `folder`, which all workers share."""

    folder: str
    labels: int


def print_chunk(folder: str, numbers: range) -> None:
    """Print some labels. A label that exists is replaced: the chunk can be repeated."""
    time.sleep(0.2)
    for number in numbers:
        Path(folder, f"{number:04}.txt").write_text(f"parcel {number}")


@activity.defn
async def print_labels(job: LabelJob) -> int:
    """Print the labels; return the label at which this attempt began."""
    details = activity.info().heartbeat_details  # of the last heartbeat that Temporal received, in any attempt
    first: int = details[0] if details else 0
    print(f"attempt {activity.info().attempt} begins at label {first}", flush=True)
    for start in range(first, job.labels, CHUNK):
        end = min(start + CHUNK, job.labels)
        await asyncio.to_thread(print_chunk, job.folder, range(start, end))
        print(f"printed {end} of {job.labels}", flush=True)
        activity.heartbeat(end)
    return first


@workflow.defn
class LabelsWorkflow:
    @workflow.run
    async def run(self, job: LabelJob) -> int:
        return await workflow.execute_activity(
            print_labels,
            job,
            start_to_close_timeout=timedelta(hours=1),  # of one attempt, with all labels
            heartbeat_timeout=timedelta(seconds=3),
        )


def build_worker(client: Client, task_queue: str = TASK_QUEUE) -> Worker:
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[LabelsWorkflow],
        activities=[print_labels],
        workflow_runner=SANDBOX,
        # A workflow task is first offered to the worker that has the workflow in its cache, even if that was killed.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),  # by default 10
    )


async def run_worker_until_killed(line: str) -> None:
    """Run a worker in a process of its own, show its output, and kill it (SIGKILL) after `line`."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "examples.heartbeat", "worker", stdout=PIPE)
    assert process.stdout
    try:
        async for printed in process.stdout:
            print(f"worker {process.pid}: {printed.decode()}", end="")
            if printed.decode().strip() == line:
                break
    finally:
        process.kill()
        await process.wait()
    print(f"worker {process.pid}: killed")


async def main() -> None:
    client = await connect()
    if sys.argv[1:] == ["worker"]:
        await build_worker(client).run()
    with tempfile.TemporaryDirectory() as folder:
        job, workflow_id = LabelJob(folder, labels=50), f"labels-{uuid4().hex[:8]}"
        handle = await client.start_workflow(LabelsWorkflow.run, job, id=workflow_id, task_queue=TASK_QUEUE)
        await run_worker_until_killed("printed 30 of 50")
        async with build_worker(client):
            print(f"{workflow_id}: completed; the last attempt began at label {await handle.result()}")
    await asyncio.sleep(0.1)  # the SDK's threads end: see main() in worker.py


if __name__ == "__main__":
    asyncio.run(main())
