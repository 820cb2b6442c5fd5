"""The floor: the least that the activities of a completed order cost on this engine.

The same activities, without a body, called by a workflow of their own on the same Temporal server. Their worker is
built by `build_worker`, so it has the program's own sandbox, pollers, interceptors and data converter, whatever those
are. The client starts the workflow itself: no API, no MongoDB.

    TEMPORAL_ADDRESS=127.0.0.1:7233 python -m dev.bench.floor    the worker; see `Floor` for the client
"""

import asyncio
import logging
import signal
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from temporalio import activity
from temporalio.client import Client, WorkflowHandle

from app import logs, temporal
from app.gateways.sandbox import sandbox
from app.messages import OrderInput, OrderRef
from app.mongo import Mongo
from dev.bench.floor_workflow import ACTIVITIES, FloorWorkflow
from dev.servers import HOST, Server
from dev.stack import ROOT

TASK_QUEUE = "floor"
READY = "floor worker ready"


class Floor:
    """The client of the floor."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._started = 0

    @classmethod
    async def connect(cls, address: str) -> Self:
        return cls(await temporal.connect(target_host=address))

    async def start(self) -> WorkflowHandle[FloorWorkflow, None]:
        order_id = f"ord_{uuid.uuid4().hex[:26]}"  # as long as an order's
        order = OrderInput(order_id=order_id, needs_approval=False, approval_timeout=timedelta(days=1))
        handle = await self._client.start_workflow(
            FloorWorkflow.run, order, id=f"floor-{order_id}", task_queue=TASK_QUEUE
        )
        self._started += 1
        return handle

    async def unfinished(self) -> int:
        """The number of workflows that this client has started and that are not completed; visibility lags a moment."""
        query = "WorkflowType = 'FloorWorkflow' AND ExecutionStatus = 'Completed'"
        return self._started - (await self._client.count_workflows(query)).count

    async def run(self) -> None:
        """Start one workflow, and wait for its result."""
        await (await self.start()).result()


async def start_worker(address: str, log: Path) -> Server:
    command = [sys.executable, "-m", "dev.bench.floor"]
    server = await Server.start("floor", command, address="", log=log, cwd=ROOT, env={"TEMPORAL_ADDRESS": address})

    async def is_ready() -> bool:
        return READY in server.log_text()

    return await server.wait_until(is_ready)


def no_operation(name: str) -> Callable[..., Any]:
    @activity.defn(name=name)
    async def nothing(_: OrderRef) -> None:
        pass

    return nothing


async def main() -> None:
    """Run the worker until SIGTERM."""
    from worker import build_worker  # noqa: PLC0415 - the client does not need all of it

    logs.configure("INFO")
    temporal.configure_core()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = await temporal.connect()
    mongo = Mongo(f"mongodb://{HOST}:1", "unused")  # connects at the first call, and there is none
    activities = [no_operation(name) for name, _ in ACTIVITIES]
    options = {"workflows": [FloorWorkflow], "activities": activities}
    async with sandbox(mongo) as gateways, build_worker(client, mongo, gateways, TASK_QUEUE, **options):
        logging.getLogger("worker").info(READY)
        await stop.wait()
    await asyncio.sleep(0.1)  # as in worker.py


if __name__ == "__main__":
    asyncio.run(main())
