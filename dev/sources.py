"""The code of worker and API: `make dev` restarts them when it changes."""

import asyncio
from contextlib import suppress
from pathlib import Path

POLL = 0.25  # seconds; to look at all files takes a millisecond


class Sources:
    """`worker.py` and `app/` below `root`, as they were when this was made or `edited` last returned."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._running = self._look()

    async def edited(self) -> list[str]:
        """Wait until files have changed and compile. Returns their names. Prints each syntax error until then."""
        seen = self._running
        while True:
            seen = await self._next(seen)
            changed = [file for file in self._running | seen if self._running.get(file) != seen.get(file)]
            names = {file: str(file.relative_to(self._root)) for file in sorted(changed)}
            errors = [f"{name}:{error}" for file, name in names.items() if (error := _syntax_error(file))]
            # The old processes go on. Only `app/workflows/order.py` is read anew for each order, by Temporal's sandbox:
            # while it does not compile, new orders wait.
            for error in errors:
                print(f"{error}. Not restarted: waiting for the next edit", flush=True)
            if names and not errors:
                self._running = seen
                return list(names.values())

    async def _next(self, seen: dict[Path, int]) -> dict[Path, int]:
        """Wait for the next change, and until it is complete: an editor or git writes several files."""
        latest = seen
        while True:
            await asyncio.sleep(POLL)
            before, latest = latest, self._look()
            if before == latest != seen:
                return latest

    def _look(self) -> dict[Path, int]:
        """Each file, and when it was last changed."""
        seen = {}
        for file in (self._root / "worker.py", *self._root.glob("app/**/*.py")):
            with suppress(FileNotFoundError):  # just now replaced or deleted
                seen[file] = file.stat().st_mtime_ns
        return seen


def _syntax_error(file: Path) -> str:
    """Line and message of its syntax error, if it has one."""
    try:
        compile(file.read_bytes(), file, "exec")
    except FileNotFoundError:
        return ""
    except SyntaxError as error:
        return f"{error.lineno}: {error.msg}"
    except ValueError as error:  # a null byte, before Python 3.12
        return f"1: {error}"
    return ""
