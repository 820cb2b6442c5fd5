"""`make rename NAME=acme-fulfilment`: give the project a name of its own, before its first order.

Changes app/names.py and every text file that has the old names, then records the workflow histories again: those of the
former workflow type do not replay. With `--keep-workflow-names`, for a system that has orders, type and ids stay.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from app.names import NAME, TITLE, WORKFLOW_ID_PREFIX, WORKFLOW_TYPE
from dev.checkout import ROOT, git, require_no_changes

HISTORIES = ROOT / "tests/replay/histories"
# In a folder without git: what `make` and the tests put there.
SKIPPED = {".git", ".venv", ".dev", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".schemathesis"}
SKIPPED |= {".venv-peers", "node_modules", "__pycache__"}
LEFT_TO_YOU = """Left to you:
  README.md and CHANGELOG.md, which speak of a template
  LICENSE, `license` and `description` in pyproject.toml, `contact` in app/api/description.json
  the registry and the addresses in deploy/kubernetes/production/kustomization.yaml
  the git remote, and SECURITY.md, which refers to its page
  .dev, the data of `make dev` under the former name: delete it"""


def main() -> None:
    arguments = argparse.ArgumentParser(prog="make rename NAME=...")
    arguments.add_argument("name", help="lower-case letters, digits and single hyphens")
    arguments.add_argument("--keep-workflow-names", action="store_true", help="keep the type and the ids of workflows")
    chosen = arguments.parse_args()
    rename(chosen.name, keep_workflow_names=chosen.keep_workflow_names)


def rename(name: str, *, keep_workflow_names: bool) -> None:
    """Rename the project.

    Raises:
        SystemExit: the name is not valid, or in use in the files; the checkout has changes; the histories cannot be
            recorded.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
        raise SystemExit(
            f"cannot rename to {name!r}: it must be lower-case letters, digits and single hyphens, begin with a letter "
            "and have at most 40 characters, as in: make rename NAME=acme-fulfilment"
        )
    if name == NAME:
        raise SystemExit(f"cannot rename: the name is {NAME} already")
    require_no_changes("rename")
    files = {path: text for path in text_files() if (text := read(path)) is not None}
    title = name.replace("-", " ").capitalize()
    # The next `make rename` could not tell these from the name.
    in_use = re.compile(f"{word(name)}|{word(title)}")
    if used := [str(path.relative_to(ROOT)) for path, text in files.items() if in_use.search(text)]:
        raise SystemExit(
            f"cannot rename to {name}: it is a word in {len(used)} files, such as {used[0]}; add one, as in acme-{name}"
        )
    prefix, workflow_type = f"{name}-", f"{title.title().replace(' ', '')}Workflow"
    if keep_workflow_names:
        prefix, workflow_type = WORKFLOW_ID_PREFIX, WORKFLOW_TYPE
    replacements = {word(NAME): name, word(TITLE): title}
    for former in (WORKFLOW_ID_PREFIX, f"{name}-"):  # the latter restores a prefix that is kept and begins with NAME
        replacements[rf'(?<=WORKFLOW_ID_PREFIX = "){former}(?=")'] = prefix
        replacements[rf"(?<![\w-]){former}(?=ord_|ORDER_ID)"] = prefix
    replacements[rf'(?<=WORKFLOW_TYPE = "){WORKFLOW_TYPE}(?=")'] = workflow_type
    changed = sum(replace(path, text, replacements) for path, text in files.items())
    print(f"{NAME} is now {name}, {TITLE!r} is {title!r}: {changed} files changed")
    print(f"workflows: type {workflow_type}, ids {prefix}ORDER_ID", flush=True)
    if not keep_workflow_names:
        record()
    print(LEFT_TO_YOU)


def word(name: str) -> str:
    """A pattern for a name that is no part of another one. `make rename NAME=...` in the docs is an example."""
    return rf"(?<![\w-])(?<!rename NAME=){name}(?!\w)"


def text_files() -> list[Path]:
    if tracked := git("ls-files", "-z"):
        paths = [ROOT / name for name in tracked.split("\0") if name]
    else:
        paths = [path for path in sorted(ROOT.rglob("*")) if not SKIPPED & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and not path.is_symlink() and HISTORIES not in path.parents]


def read(path: Path) -> str | None:
    """The text of a file, or None for a picture."""
    try:
        return path.read_bytes().decode()  # keeps the ends of lines
    except UnicodeDecodeError:
        return None


def replace(path: Path, text: str, replacements: dict[str, str]) -> bool:
    changed = text
    for old, new in replacements.items():
        changed = re.sub(old, new, changed)
    if changed != text:
        path.write_bytes(changed.encode())
    return changed != text


def record() -> None:
    """Record the histories under the new names, in place of the others."""
    print("recording the histories again: those of the former workflow type do not replay", flush=True)
    shutil.rmtree(HISTORIES, ignore_errors=True)
    recorded = subprocess.run([sys.executable, "-m", "tests.replay.record"], cwd=ROOT, check=False)
    if recorded.returncode:
        raise SystemExit(
            "the names are changed, but not all histories are recorded: solve the problem, then make replay"
        )


if __name__ == "__main__":
    main()
