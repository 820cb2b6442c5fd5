"""The worker of `worker.py`, but always with the sandbox gateways: for `make dev` and the tests.

python -m dev.worker
"""

import asyncio
import os

from app.gateways.sandbox import sandbox
from worker import main

if __name__ == "__main__":
    os.environ["SANDBOX_GATEWAYS"] = "true"
    asyncio.run(main(sandbox))
