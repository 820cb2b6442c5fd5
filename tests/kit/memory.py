"""A folder in memory, for data that no test reads again after a crash."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from app.names import NAME

MEMORY = Path("/dev/shm")  # noqa: S108  (Linux alone has it, and containers have little of it)
ROOM = 1_000_000_000  # bytes, for all test processes
PREFIX = f"{NAME}-tests-"


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder that is deleted at the end, on disk if memory has no room."""
    for left in MEMORY.glob(f"{PREFIX}*"):  # by a test process that was killed
        if not Path("/proc", left.name.removeprefix(PREFIX).split("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    with TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY if has_room else None) as folder:
        yield Path(folder)
