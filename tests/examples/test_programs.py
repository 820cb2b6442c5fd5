"""Each example runs as documented."""

from __future__ import annotations

import asyncio
import re
import sys
from subprocess import PIPE, STDOUT

import pytest

from dev.servers import Server
from dev.stack import ROOT

ENDS_WITH = {
    "heartbeat": r"printed 30 of 50\n.*killed\nattempt [2-9] begins at label [1-3]?[05]\n.*: completed; [^\n]*\n",
    "parallel_steps": (
        r"completed-\w+: {'reserve': 'done', 'charge': 'done'}\n"
        r".*declined-\w+: {'reserve': 'compensated', 'charge': 'compensated'}\n"
        r".*cancelled-\w+: {'reserve': 'compensated', 'charge': 'compensated'}\n"
    ),
    "parcels": r"-1: booked, COMPLETED\n.*-2: cancelled, CANCELED\n.*-3: cancelled, CANCELED\n",
    "continue_as_new": r"loaded: 75 of 75\n.*dock-\w+: 75 parcels loaded in [2-9] runs\n",
}


@pytest.mark.parametrize("name", ENDS_WITH)
async def test_run_example_prints_what_happens(temporal_server: Server, name: str) -> None:
    docs = (ROOT / f"examples/{name}.py").read_text().split('"""')[1]
    assert f"\n    python -m examples.{name} " in docs
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", f"examples.{name}"),
        cwd=ROOT,
        env={"TEMPORAL_ADDRESS": temporal_server.address},
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    assert re.search(ENDS_WITH[name] + "$", output.decode(), re.DOTALL), output.decode()
