"""Delete each extra in a copy of the checkout, as the table in docs/make-it-yours.md says; what remains works."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.delete import Edit, Extra, delete, extras
from tests.kit.own_services import connect_all
from tests.kit.program_copy import ProgramCopy

EXTRAS = extras()
FAST = ["tests", "-m", "not slow", "--ignore=tests/unit/test_docs.py"]
FAST += [f"--ignore=tests/{folder}" for folder in ("browser", "e2e", "tooling", "examples")]


def test_table_has_every_extra() -> None:
    assert [*EXTRAS] == [
        *("order desk", "live events", "API keys", "OIDC", "tracing", "metrics of orders", "health of the worker"),
        *("reconciliation", "relay", "group commit", "Kubernetes", "deployment", "demo", "chaos", "peers"),
        *("bench", "examples", "replay of histories of production"),
        "another domain",
        "sandbox gateways",
    ]


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=lambda extra: extra.name)
def test_extra_deleted_by_the_table_leaves_what_passes_its_checks(
    extra: Extra, tmp_path: Path, exhaustive: bool
) -> None:
    copy = ProgramCopy(tmp_path / "copy")
    copy.add_the_rest()
    for name in extra.first:
        if name == "your own gateways":
            connect_all(copy)
        else:
            delete(copy.folder, EXTRAS[name])
    assert delete(copy.folder, extra) == []

    check(copy.folder, "-m", "ruff", "check", ".")
    check(copy.folder, "-m", "ruff", "format", "--check", ".")
    assert [*missing_imports(copy.folder)] == []
    if exhaustive:
        check(copy.folder, "-m", "mypy")
        check(copy.folder, "-m", "pytest", "--collect-only", "-q")
        check(copy.folder, "-m", "pytest", *FAST)
    elif any(edit.path.startswith("app/") for edit in extra.edits):
        edited = {edit.path for edit in extra.edits if edit.path.startswith("tests/")} | {"tests/unit/test_statuses.py"}
        check(copy.folder, "-m", "pytest", "--collect-only", "-q", *sorted(edited))


def check(folder: Path, *arguments: str) -> None:
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-5_000:]


def missing_imports(folder: Path) -> Iterator[str]:
    """Each import, from a package of this project, of a module or a name that is not there."""
    packages = "|".join(path.name for path in folder.iterdir() if (path / "__init__.py").exists())
    imports = re.compile(rf"^ *from ((?:{packages})[\w.]*) import (\w.*|\((?:[^)]*)\))", re.MULTILINE)
    texts = {path.relative_to(folder): path.read_text() for path in folder.rglob("*.py")}
    modules = {path.parent if path.name == "__init__.py" else path.with_suffix("") for path in texts}
    for path, text in texts.items():
        for name, imported in imports.findall(text):
            module = Path(name.replace(".", "/"))
            source = texts.get(module.with_suffix(".py"), texts.get(module / "__init__.py", ""))
            for each in re.findall(r"(\w+)(?: as \w+)?", re.sub("#.*", "", imported)):
                if each not in source and module / each not in modules:
                    yield f"{path}: {name}.{each}"


@pytest.mark.parametrize(
    ("path", "text", "left"),
    [
        ("a.py", "gone", "# Why.\nX = 1\n\n\ndef kept() -> None:\n    print(X)\n"),
        ("a.py", "X =", "# Also.\n@cache\ndef gone() -> None:\n    print(X)\n\n\ndef kept() -> None:\n    print(X)\n"),
        ("a.yaml", "probe", "port: 1\n"),
        ("Makefile", "demo:", "dev:\n\t@run\n\n"),
    ],
)
def test_text_deletes_definition_lines_or_block(tmp_path: Path, path: str, text: str, left: str) -> None:
    contents = {
        "a.py": (
            "# Why.\nX = 1\n\n\n# Also.\n@cache\ndef gone() -> None:\n    print(X)\n"
            "\n\ndef kept() -> None:\n    print(X)\n"
        ),
        "a.yaml": "probe:\n  path: /\n  port: 2\nport: 1\n",
        "Makefile": "dev:\n\t@run\n\ndemo:\n\t@run\n",
    }
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").touch()
    (tmp_path / path).write_text(contents[path])
    delete(tmp_path, Extra("any", [], [], [Edit(path, text, "")]))
    assert (tmp_path / path).read_text().strip() == left.strip()


def test_what_is_gone_already_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("X = 1\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").touch()
    assert delete(tmp_path, Extra("any", [], [("b.py", "")], [Edit("a.py", "Y", "")])) == ["b.py", "'Y' in a.py"]


def test_import_of_missing_module_or_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    (tmp_path / "app" / "one.py").write_text(
        "from app import one, two\nfrom app.one import here\nfrom app.two import X\n"
    )
    assert [*missing_imports(tmp_path)] == ["app/one.py: app.two", "app/one.py: app.two.X"]
