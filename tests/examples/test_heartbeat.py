"""A long activity continues where a killed worker stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from temporalio.client import Client

from dev.servers import Server
from dev.stack import ROOT
from examples.heartbeat import LabelJob, LabelsWorkflow, build_worker
from tests.kit.waiting import eventually


async def test_kill_worker_next_attempt_begins_at_last_heartbeat(
    client: Client, temporal_server: Server, task_queue: str, tmp_path: Path
) -> None:
    """The worker is killed between an effect and its heartbeat, so that one chunk is repeated, and only that one."""
    labels = tmp_path / "labels"
    labels.mkdir()
    command = [sys.executable, "-m", "tests.examples.hanging_printer", task_queue]
    env = {"TEMPORAL_ADDRESS": temporal_server.address}
    process = await Server.start("worker", command, address="", log=tmp_path / "worker.log", cwd=ROOT, env=env)
    try:
        job = LabelJob(str(labels), labels=37)
        handle = await client.start_workflow(LabelsWorkflow.run, job, id=task_queue, task_queue=task_queue)

        async def heartbeat_details() -> list[int]:
            pending = (await handle.describe()).raw_description.pending_activities
            return await client.data_converter.decode(pending[0].heartbeat_details.payloads) if pending else []

        async def printed() -> list[str]:
            return sorted(path.name for path in labels.iterdir())

        await eventually(heartbeat_details, lambda details: details == [25])
        await eventually(printed, lambda names: names == [f"{number:04}.txt" for number in range(30)])
    finally:
        await process.kill()
    async with build_worker(client, task_queue):
        assert await handle.result() == 25
    assert await printed() == [f"{number:04}.txt" for number in range(37)]
