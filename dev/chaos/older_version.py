"""A copy of the program with other time limits and retry intervals, as the version before a change of them has.

Such versions may run side by side during a roll-out without a patch (docs/operations.md, "A new version"). The change
is made at the end of the table of steps, so that it fits a table with other steps.
"""

import shutil
from pathlib import Path

from dev.stack import ROOT

CHANGE = """

def _before_the_change(step: Step) -> None:
    import dataclasses

    policy = dataclasses.replace(step.retry_policy, initial_interval=timedelta(milliseconds=300))
    vars(step).update(start_to_close=step.start_to_close * 0.8, retry_policy=policy)


for _step in STEPS:
    _before_the_change(_step)
SHORT_ATTEMPT = timedelta(seconds=20)
"""


def copy_older_version(folder: Path) -> Path:
    """Copy the sources of the worker to this folder, which must not exist, and take the change back in them."""
    for name in ("app", "dev"):
        ignored = shutil.ignore_patterns("__pycache__", "static", "node_modules")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "worker.py", folder)
    table = folder / "app" / "workflows" / "steps.py"
    table.write_text(table.read_text() + CHANGE)
    return folder
