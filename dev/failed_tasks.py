"""Report workflow tasks that fail. Temporal retries them forever, and the error appears only in the worker's log."""

import asyncio
import json
import re
from pathlib import Path
from typing import NoReturn

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

# The fields of the SDK's message are in any sequence.
RUN_ID = re.compile(r"'run_id': '([\w-]+)'")
ERROR = re.compile(r'message: "(.*?)", source: ')


async def report_failed_tasks(log: Path, temporal_address: str) -> NoReturn:
    """Follow the worker's log. Print each workflow whose task fails, once per error, with the remedy."""
    config = ClientConfig.load_client_connect_config()  # the same settings as worker and API
    config["target_host"] = temporal_address
    client = await Client.connect(**config, lazy=True)
    reported = set()
    with log.open("rb") as file:
        partial = b""
        while True:
            *lines, partial = (partial + file.read()).split(b"\n")
            for line in lines:
                if b"Failing workflow task" not in line:
                    continue
                message = json.loads(line)["message"]
                run_id, error = RUN_ID.search(message), ERROR.search(message)
                if run_id and error and (run_id[1], error[1]) not in reported:
                    reported.add((run_id[1], error[1]))
                    workflow_id = await _workflow_id(client, run_id[1])
                    print(_explain(workflow_id, error[1].replace("\\'", "'"), temporal_address), flush=True)
            await asyncio.sleep(0.5)


async def _workflow_id(client: Client, run_id: str) -> str:
    try:
        async for workflow in client.list_workflows(f"RunId = '{run_id}'"):
            return workflow.id
    except (RPCError, RuntimeError):  # RuntimeError: not connected
        pass
    return f"the workflow of run {run_id}"


def _explain(workflow: str, error: str, temporal_address: str) -> str:
    if "Nondeterminism" not in error:
        return f"{workflow}: workflow task failed and will be retried: {error}"
    return (
        f"{workflow} cannot be replayed on the edited code: {error}\n"
        "  Undo the edit, put it behind workflow.patched, or terminate the workflow. A new workflow then continues\n"
        "  the order from its current state:\n"
        f"  .venv/bin/temporal workflow terminate --address {temporal_address} --workflow-id {workflow}"
    )
