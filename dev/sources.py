"""Watch the code of worker and API, so that `make dev` restarts them when it changes."""

import asyncio
from contextlib import suppress
from pathlib import Path

POLL_INTERVAL = 0.25  # seconds; checking all files takes a millisecond


class SourceWatcher:
    """Detects changes in `worker.py` and `app/` since it was created, or since `wait_for_edit` last returned."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._baseline = self._scan()

    async def wait_for_edit(self) -> list[str]:
        """Wait for changes that compile. Returns the names of the changed files. Prints syntax errors meanwhile."""
        current = self._baseline
        while True:
            current = await self._next(current)
            changed = [file for file in self._baseline | current if self._baseline.get(file) != current.get(file)]
            names = {file: str(file.relative_to(self._root)) for file in sorted(changed)}
            errors = [f"{name}:{error}" for file, name in names.items() if (error := _syntax_error(file))]
            # The running processes keep the old code, but Temporal's sandbox reads `app/workflows/order.py` again for
            # each order: new orders wait until that file compiles.
            for error in errors:
                print(f"{error}. Not restarted: waiting for the next edit", flush=True)
            if names and not errors:
                self._baseline = current
                return list(names.values())

    async def _next(self, current: dict[Path, int]) -> dict[Path, int]:
        """Wait for the next change, and until no more follow: an editor or git may write several files."""
        latest = current
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            before, latest = latest, self._scan()
            if before == latest != current:
                return latest

    def _scan(self) -> dict[Path, int]:
        """Modification time of each file, in nanoseconds."""
        current = {}
        for file in (self._root / "worker.py", *self._root.glob("app/**/*.py")):
            with suppress(FileNotFoundError):  # deleted or replaced since it was listed
                current[file] = file.stat().st_mtime_ns
        return current


def _syntax_error(file: Path) -> str:
    """Line and message of the syntax error, or an empty string."""
    try:
        compile(file.read_bytes(), file, "exec")
    except FileNotFoundError:
        return ""
    except SyntaxError as error:
        return f"{error.lineno}: {error.msg}"
    except ValueError as error:  # a null byte, before Python 3.12
        return f"1: {error}"
    return ""
