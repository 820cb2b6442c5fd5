"""For the commands that run for a while: the stack that they use, and their progress."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from app.names import NAME
from dev.servers import HOST
from dev.stack import Config, Stack, port_from

console = Console(highlight=False)  # colours only where it is a terminal
INTERVAL = 15  # seconds between two lines of progress where it is no terminal


@dataclass(frozen=True)
class Addresses:
    """Of a stack. `control_url` is empty if the running stack has no control endpoint."""

    api_url: str
    control_url: str


@asynccontextmanager
async def progress(
    describe: Callable[[], str], details: Callable[[], RenderableType] | None = None
) -> AsyncIterator[None]:
    """Show what happens and for how long: as a changing line in a terminal, elsewhere as a line now and then.

    In a terminal, `details` are shown below the line.
    """
    began = time.monotonic()

    def text() -> str:
        return f"{describe()} ({clock(time.monotonic() - began)})"

    async def print_lines() -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            console.print(text(), soft_wrap=True)

    if console.is_terminal:
        spinner = Spinner("dots")

        def render() -> RenderableType:
            spinner.update(text=text())
            return Group(spinner, details()) if details else spinner

        with Live(get_renderable=render, console=console, transient=True, refresh_per_second=8):
            yield
    else:
        printing = asyncio.create_task(print_lines())
        try:
            yield
        finally:
            printing.cancel()


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@asynccontextmanager
async def temporary_stack(config: Config) -> AsyncIterator[Stack]:
    """A stack on ports of its own, which leaves nothing behind."""
    stack = Stack(config)
    async with progress(lambda: f"starting a temporary stack: {len(stack.processes)} of {len(stack.names)} processes"):
        await stack.__aenter__()
    try:
        yield stack
    finally:
        await stack.stop()


@asynccontextmanager
async def running_or_new_stack() -> AsyncIterator[Addresses]:
    """The stack that runs on API_PORT, or else a temporary one."""
    api_url = f"http://{HOST}:{port_from('API_PORT', Config.api_port)}"
    control_url = f"http://{HOST}:{port_from('DEV_CONTROL_PORT', Config.control_port)}"
    if (await _json(f"{api_url}/readyz")).get("status") == "ready":
        console.print(f"using the running stack at {api_url}\n", soft_wrap=True)
        is_its_own = (await _json(f"{control_url}/servers")).get("api") == api_url
        yield Addresses(api_url, control_url if is_its_own else "")
        return
    console.print("no stack is running: starting a temporary one ...\n")
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as folder:
        async with temporary_stack(Config.on_free_ports(Path(folder))) as stack:
            yield Addresses(stack.api_url, stack.control.url)


async def _json(url: str) -> dict[str, object]:
    """The JSON object at this address; empty if there is no server, or a different one."""
    try:
        async with httpx.AsyncClient(timeout=3) as http:
            answer = (await http.get(url)).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}
