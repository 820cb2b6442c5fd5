"""The set-up by `make`: it finds a Python and creates .venv, or reports the remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from dev.stack import ROOT

TOOLS = ("bash", "make", "dirname", "grep", "awk", "head", "tail", "touch", "uname")
REFUSES = "http://127.0.0.1:9/"  # a package index that refuses connections
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
UNUSABLE = {
    "sys.version_info = (3, 10)": "3.10 (too old)",
    "sys.version_info = (3, 15)": "3.15 (too new: PyYAML has no wheel for it yet)",
    "sys.modules['ensurepip'] = None": f"{VERSION} (without venv: on Debian, apt-get install python3-venv)",
}


def create_clone(folder: Path) -> Path:
    """The files of a fresh clone that the set-up uses, and a folder `bin` for PATH without a Python."""
    for name in ("Makefile", "dev/setup.sh", "requirements-dev.lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / "bin" / tool).symlink_to(found)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return create_clone(tmp_path)


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def fake_python(path: Path, change: str) -> Path:
    """A Python that first runs `change`, which fakes another version or a missing module."""
    return program(path, f'exec {sys.executable} -c "import sys; {change}; exec(sys.stdin.read())"')


@pytest.fixture(scope="module")
def first_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the set-up created .venv. The tests share it, because that takes seconds."""
    clone = create_clone(tmp_path_factory.mktemp("first"))
    fake_python(clone / "bin" / "python3", "sys.version_info = (3, 10)")
    (clone / "bin" / "python3.13").symlink_to(sys.executable)
    assert set_up(clone) == (2, NO_NETWORK)
    return clone


@pytest.fixture
def python3(clone: Path, first_clone: Path) -> Path:
    """Put a Python on PATH that copies the .venv of `first_clone` instead of creating a new one."""
    copy = f"{shutil.which('rm')} -rf .venv; exec {shutil.which('cp')} -a {first_clone / '.venv'} .venv"
    return program(clone / "bin" / "python3", f'[ "$1 $2" != "-m venv" ] || {{ {copy}; }}; exec {sys.executable} "$@"')


def environment_of(clone: Path) -> Path:
    """Create a .venv that `make` takes for complete. Returns its Python."""
    venv.create(clone / ".venv", symlinks=True)
    (packages,) = (clone / ".venv").glob("lib/python*/site-packages")
    (packages / "pip.py").touch()
    (clone / ".venv" / ".ready").touch()
    return clone / ".venv" / "bin" / "python"


def set_up(clone: Path, *arguments: str) -> tuple[int, str]:
    """Run the set-up with `make`. Returns its exit code and errors, without the messages of make itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "PYTHON"))}
    environment |= {"PATH": str(clone / "bin"), "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1"}
    environment |= {"PIP_INDEX_URL": REFUSES, "NO_PROXY": "127.0.0.1"}
    made = subprocess.run(
        [str(clone / "bin" / "make"), ".venv/.ready", *arguments],
        cwd=clone, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return made.returncode, "\n".join(line for line in made.stderr.splitlines() if not line.startswith("make"))


NO_NETWORK = (
    "error: cannot reach the Python package index: check the network and pip's settings (pip config list), "
    "then try again"
)
REMEDY = """
  Python 3.11, 3.12, 3.13 and 3.14 work. Install one (on Debian: apt-get install python3 python3-venv),
  or choose one: make PYTHON=/path/to/python"""


def test_setup_skips_unusable_python_and_reports_missing_network(first_clone: Path) -> None:
    assert list((first_clone / ".venv").glob("lib/python*/site-packages/pip"))
    assert set_up(first_clone) == (2, NO_NETWORK)  # again, because .venv now exists without packages


def test_setup_without_python_names_supported_versions(clone: Path) -> None:
    assert set_up(clone) == (2, f"error: no usable Python found{REMEDY}")


@pytest.mark.parametrize(("change", "found"), UNUSABLE.items(), ids=["too old", "too new", "without venv"])
def test_setup_with_unusable_python_names_its_version(clone: Path, change: str, found: str) -> None:
    python = fake_python(clone / "bin" / "python3", change)
    assert set_up(clone) == (2, f"error: no usable Python found: python3 is {found}{REMEDY}")
    assert set_up(clone, f"PYTHON={python}") == (2, f"error: PYTHON={python} is Python {found}{REMEDY}")


def test_setup_with_chosen_python_that_does_not_run_fails(clone: Path) -> None:
    (clone / "bin" / "python3").symlink_to(sys.executable)
    assert set_up(clone, "PYTHON=nowhere/python") == (2, f"error: PYTHON=nowhere/python does not run{REMEDY}")


def test_setup_with_python_of_environment_changes_nothing(clone: Path) -> None:
    environment_of(clone)
    assert set_up(clone) == (0, "")
    assert set_up(clone, f"PYTHON={sys.executable}") == (0, "")


def test_setup_with_another_python_recreates_environment(clone: Path, python3: Path) -> None:
    python = environment_of(clone)
    python.unlink()
    program(python, '[ -z "$2" ] || echo another installation')
    assert set_up(clone) == (0, "")
    assert set_up(clone, f"PYTHON={python3}") == (2, NO_NETWORK)
    assert python.is_symlink()


@pytest.mark.usefixtures("python3")
def test_setup_with_removed_python_recreates_environment(clone: Path) -> None:
    python = environment_of(clone)
    python.unlink()
    python.symlink_to("/nowhere/python3.12")
    assert set_up(clone) == (2, NO_NETWORK)
    assert python.exists()


@pytest.mark.usefixtures("python3")
def test_setup_with_incomplete_environment_recreates_it(clone: Path) -> None:
    venv.create(clone / ".venv", symlinks=True)  # without pip
    assert set_up(clone) == (2, NO_NETWORK)
    assert list((clone / ".venv").glob("lib/python*/site-packages/pip"))
