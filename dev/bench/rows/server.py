"""The dev server as this project starts it, against `temporal server start-dev` as it comes."""

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from temporalio.client import Client

from app.names import NAME
from dev.bench import floor
from dev.bench.comparison import Comparison
from dev.bench.lab import Lab
from dev.bench.load import callers
from dev.servers import HOST, Server, find_temporal, free_port, start_temporal


async def tuned(lab: Lab) -> list[Comparison]:
    """The median time of the floor, one at a time, on two servers that are both up."""
    await lab.stop()
    count = lab.size(40, 5)
    async with AsyncExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix=f"{NAME}-")))
        servers = [await start_temporal(free_port(), db_file=folder / "temporal.db"), await _as_it_comes(folder)]
        for server in servers:
            resources.push_async_callback(server.kill)

        async def p50(server: Server, name: str) -> Callable[[], Awaitable[float]]:
            worker = await floor.start_worker(server.address, folder / f"{name}.log")
            resources.push_async_callback(worker.kill)
            client = await floor.Floor.connect(server.address)
            await callers(client.run, in_flight=5, count=lab.size(40, 5))

            async def measure() -> float:
                lab.say(f"{count} times the floor on the {name} dev server")
                return 1_000 * (await callers(client.run, in_flight=1, count=count)).percentile(50)

            return measure

        ours, plain = await lab.turns(await p50(servers[0], "tuned"), await p50(servers[1], "plain"))
    names = ("as it comes", "tuned")
    return [Comparison("dev server, floor alone, p50", "ms", plain, ours, names, 4, at_least=True)]


async def _as_it_comes(folder: Path) -> Server:
    port = free_port()
    address = f"{HOST}:{port}"
    command: list[str | Path] = [find_temporal(), "server", "start-dev", "--port", str(port), "--headless"]
    server = await Server.start("Temporal", command, address=address, log=folder / "plain.log")

    async def answers() -> bool:
        try:
            client = await Client.connect(address)
            return bool(await client.service_client.check_health())
        except RuntimeError:
            return False

    return await server.wait_until(answers)
