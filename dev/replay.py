"""Replay workflow histories on the current code, without a server.

    python -m dev.replay history.json

Download a history in Temporal's Web UI, or print it with `temporal workflow show --output json`. With TEMPORAL_DEBUG=1,
a `breakpoint()` in workflow code opens the debugger. The exit code is 1 if the code cannot replay a history.
"""

import asyncio
import signal
import sys
from pathlib import Path

from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from app.workflows.order import OrderWorkflow
from worker import SANDBOX


async def replay(files: list[str]) -> int:
    replayer = Replayer(workflows=[OrderWorkflow], data_converter=pydantic_data_converter, workflow_runner=SANDBOX)
    failed = 0
    for file in files:
        history = WorkflowHistory.from_json(Path(file).stem, Path(file).read_text(encoding="utf-8"))
        result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        failed += result.replay_failure is not None
        print(f"{file}: {str(result.replay_failure)[:300] if result.replay_failure else 'replayed'}")
    # The SDK's threads outlive the replay for a moment; without this pause, the interpreter sometimes crashes at exit
    # (https://github.com/temporalio/sdk-python/issues/300).
    await asyncio.sleep(0.1)
    return 1 if failed else 0


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the debugger's
    sys.exit(asyncio.run(replay(sys.argv[1:])))
