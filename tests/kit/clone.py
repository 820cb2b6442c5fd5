"""A clone of the project, with a history of its own, in which a test runs make."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dev.checkout import ROOT, git


def make_clone(clone: Path) -> Path:
    """Make a checkout of the files as they are, which shares .venv."""
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    (clone / ".gitignore").write_text(f"{(ROOT / '.gitignore').read_text()}/.venv\n")
    (clone / ".venv").symlink_to(ROOT / ".venv")
    in_git(clone, "init", "--quiet")
    commit(clone)
    return clone


def in_git(clone: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=clone, check=True)  # noqa: S607


def commit(clone: Path) -> None:
    in_git(clone, "add", "--all")
    in_git(clone, "commit", "--quiet", "--allow-empty", "--message", "Copy")


def make(clone: Path, *arguments: str) -> tuple[int, str]:
    """Run make in the clone. Returns exit code and output."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST", "PYTHON"))
    }
    command = ["make", "--no-print-directory", *arguments]
    made = subprocess.run(  # noqa: PLW1510
        command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return made.returncode, made.stdout
