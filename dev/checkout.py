"""The checkout that `make rename`, `make apply` and `make delete` change."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    """The output of git, or nothing in a folder that is no checkout of its own."""
    program = shutil.which("git")
    if not program or not (ROOT / ".git").exists():
        return ""
    return subprocess.run([program, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def require_no_changes(command: str) -> None:
    """Raises SystemExit if files are not committed: a diff would show them together with the command's changes."""
    if git("status", "--porcelain"):
        raise SystemExit(f"cannot {command}: the checkout has changes; commit them, so that a diff shows no others")
