"""`make delete EXTRA="order desk"`: carry out a row of the table in docs/make-it-yours.md, "What you can delete"."""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.checkout import ROOT, require_no_changes

CODE = r"`([^`]+)`"
CHANGE = rf"{CODE}(?: → {CODE})?"


def main() -> None:
    table = extras()
    arguments = argparse.ArgumentParser(prog="make delete EXTRA=...")
    arguments.add_argument("extra", help=", ".join(table))
    name = arguments.parse_args().extra
    if name not in table:
        raise SystemExit(f"cannot delete {name!r}: choose one of {', '.join(table)}")
    require_no_changes("delete")
    extra = table[name]
    for first in extra.first:
        if first not in table:
            print(f"this row takes for granted: {first}")
        elif any((ROOT / path).exists() for path, _ in table[first].files):
            raise SystemExit(f"cannot delete {name} yet: delete {first} first")
    for missing in delete(ROOT, extra):
        print(f"gone already: {missing}")
    if any(edit.path == "pyproject.toml" for edit in extra.edits):
        print("pyproject.toml has changed: run make lock")
    print("Now look at git diff, and run make lint and make test-fast. tests/unit/test_docs.py names the pages of the")
    print(f"docs that still speak of what is gone. To take all back: git checkout HEAD . ({name})")


@dataclass(frozen=True)
class Edit:
    """Delete the definition `old`, or each line with it, or replace it by `new`."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Extra:
    """A row of the table."""

    name: str
    first: list[str]  # what has to be done before
    files: list[tuple[str, str]]  # each with the path to which it moves; empty: it is deleted
    edits: list[Edit]

    @classmethod
    def from_row(cls, row: str) -> Extra:
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:5]]
        name, _, first = cells[0].partition(", after ")
        edits = []
        for part in filter(None, "<br>".join(cells[2:]).split("<br>")):
            paths, _, texts = part.partition("`: ")
            for path in re.findall(CODE, paths + "`"):
                edits += [Edit(path, old, new) for old, new in re.findall(CHANGE, texts)]
        return cls(name, first.split(" and ") if first else [], re.findall(CHANGE, cells[1]), edits)


def extras() -> dict[str, Extra]:
    _, section = (ROOT / "docs" / "make-it-yours.md").read_text().split("\n## What you can delete\n")
    rows = re.findall(r"^\| [^|]* \| `.* \|$", section.partition("\n## ")[0], re.MULTILINE)
    found = [Extra.from_row(row) for row in rows]
    return {extra.name: extra for extra in found}


def delete(folder: Path, extra: Extra) -> list[str]:
    """Delete an extra in a checkout. Returns what was not there, such as what another extra has taken along."""
    missing = []
    for name, target in extra.files:
        path = folder / name
        if not path.exists():
            missing.append(name)
        elif target:
            path.rename(folder / target)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for edit in extra.edits:
        file = folder / edit.path
        content = file.read_text() if file.exists() else ""
        edited = content.replace(edit.old, edit.new) if edit.new else _without(content, edit.old, file)
        if edited == content:
            missing.append(f"{edit.old!r} in {edit.path}")
        else:
            file.write_text(edited)
    conftest = folder / "tests" / "conftest.py"
    lines = conftest.read_text().splitlines(keepends=True)
    conftest.write_text("".join(line for line in lines if not _names_deleted_file(folder, line)))
    for command in (["check", "--fix", "--unsafe-fixes", "--quiet", "."], ["format", "--quiet", "."]):
        subprocess.run([sys.executable, "-m", "ruff", *command], cwd=folder, check=False)
    return missing


def _names_deleted_file(folder: Path, line: str) -> bool:
    named = re.fullmatch(r'\s+"(tests/[\w/.]+)(::\w+)?",\n', line)
    return named is not None and not (folder / named[1]).exists()


def _without(content: str, text: str, file: Path) -> str:
    lines = content.splitlines(keepends=True)
    spans: list[tuple[int, int]] = []
    if file.suffix == ".py" and text.isidentifier():
        spans = list(_definitions(content, text))
    elif file.suffix in {".yml", ".yaml", ".toml"} or file.name == "Makefile":
        spans = [(begin, _end_of_block(lines, begin)) for begin, _ in _lines_with(lines, text)]
    for begin, end in sorted(spans or _lines_with(lines, text), reverse=True):
        above = begin
        while above and re.match(r"\s*#", lines[above - 1]):
            above -= 1
        del lines[above:end]
    return "".join(lines)


def _definitions(content: str, name: str) -> Iterator[tuple[int, int]]:
    """The lines of each function or class of this name, with its decorators: from and to, from 0."""
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield first - 1, node.end_lineno or first


def _end_of_block(lines: list[str], begin: int) -> int:
    """The end of what is indented below a line."""
    indented = re.compile(rf"{lines[begin][: -len(lines[begin].lstrip())]}\s+\S")
    end = next((n for n in range(begin + 1, len(lines)) if not indented.match(lines[n])), len(lines))
    return end + (lines[end:] != [] and lines[end].strip() == "]" and end > begin + 1)


def _lines_with(lines: list[str], text: str) -> Iterator[tuple[int, int]]:
    return ((number, number + 1) for number, line in enumerate(lines) if text in line)


if __name__ == "__main__":
    main()
