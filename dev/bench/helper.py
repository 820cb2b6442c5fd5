"""Parts of the benchmark in processes of their own, so that the client that measures does nothing else meanwhile."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dev.servers import ServerError
from dev.stack import ROOT

LINE_LIMIT = 16_000_000  # bytes


class Helper:
    """A process that answers each line of its input with a line of JSON."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self._module, self._process = module, process

    async def ask(self, *words: object) -> Any:
        """Raises ServerError if the process has ended."""
        assert self._process.stdin
        self._process.stdin.write(f"{' '.join(map(str, words))}\n".encode())
        return await self.answer()

    async def answer(self) -> Any:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise ServerError(f"{self._module} ended with exit code {await self._process.wait()}")
        return json.loads(line)


@asynccontextmanager
async def helper(module: str, *arguments: object) -> AsyncIterator[Helper]:
    """Start a module of this package, and wait for its first line, by which it says that it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"dev.bench.{module}", *map(str, arguments)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT,
    )
    try:
        helper = Helper(module, process)
        await helper.answer()
        yield helper
    finally:
        if process.stdin:
            process.stdin.close()  # which ends it
        await process.wait()


async def lines() -> AsyncIterator[list[str]]:
    """In the helper: the words of each line of the input. The first one is waited for when the helper is ready."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say("ready")
    while line := await reader.readline():
        yield line.decode().split()


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)
