"""Why a workflow does not go on: its task fails and is retried for ever, and only the worker's log says so."""

import asyncio
import json
import re
from pathlib import Path
from typing import NoReturn

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

FAILED_TASK = re.compile(r"""Failing workflow task \{'run_id': '([\w-]+)', .*?message: "(.*?)", source: """)


async def report_failed_tasks(log: Path, temporal_address: str) -> NoReturn:
    """Print each workflow whose task fails, once for each error: what is wrong, and what to do."""
    config = ClientConfig.load_client_connect_config()  # as worker and API do
    config["target_host"] = temporal_address
    client = await Client.connect(**config, lazy=True)
    reported = set()
    with log.open("rb") as file:
        rest = b""
        while True:
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                if b"Failing workflow task" not in line or not (
                    failed := FAILED_TASK.search(json.loads(line)["message"])
                ):
                    continue
                if failed.groups() not in reported:
                    reported.add(failed.groups())
                    workflow_id = await _workflow_id(client, failed[1])
                    print(_explain(workflow_id, failed[2].replace("\\'", "'"), temporal_address), flush=True)
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
        return f"{workflow}: its workflow task fails and is retried: {error}"
    return (
        f"{workflow} cannot be replayed on the edited code: {error}\n"
        "  Undo the edit, put it behind workflow.patched, or terminate the workflow: its order is then started again,\n"
        "  from where it is:\n"
        f"  .venv/bin/temporal workflow terminate --address {temporal_address} --workflow-id {workflow}"
    )
