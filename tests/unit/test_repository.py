"""CI and the devcontainer use the Makefile's targets, the supported Pythons and the configured ports."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from dev import issuer
from dev.stack import ROOT, Config

MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()
DEVCONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())


def make_targets(text: str) -> set[str]:
    return set(re.findall(r"\bmake ([\w./-]+)", text))


def test_ci_runs_every_check_through_make() -> None:
    commands = re.findall(r"\brun: (.*)", WORKFLOW)
    assert [command for command in commands if not re.fullmatch(r"make [a-z-]+", command)] == []
    every_push = make_targets((ROOT / ".ci/run").read_text())
    assert make_targets("\n".join(commands)) == every_push | {"test-fast", "test-exhaustive", "chaos"}


def test_ci_runs_on_oldest_and_newest_python() -> None:
    [(oldest, too_new)] = re.findall(
        r">=3\.(\d+),<3\.(\d+)", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    )
    minors = {int(minor) for minor in re.findall(r'python: "3\.(\d+)"', WORKFLOW)}
    assert min(minors) == int(oldest)
    assert max(minors) == int(too_new) - 1


def test_devcontainer_uses_make_and_forwards_every_port() -> None:
    targets = make_targets(DEVCONTAINER["postCreateCommand"])
    assert targets == {"test-tools", ".venv/.ready"}
    assert "test-tools:" in MAKEFILE
    assert "READY := .venv/.ready" in MAKEFILE
    ports = [Config.api_port, Config.control_port, Config.temporal_ui_port, Config.temporal_port, Config.mongodb_port]
    assert DEVCONTAINER["forwardPorts"] == ports
    assert list(DEVCONTAINER["portsAttributes"]) == [str(port) for port in ports]


def test_help_names_every_target_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISSUER_PORT", raising=False)
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE)) == targets
    [ports] = re.findall(r"^##- (API_PORT .*)$", MAKEFILE, re.MULTILINE)
    own = [Config.api_port, Config.temporal_port, Config.temporal_ui_port, Config.mongodb_port, Config.control_port]
    assert [int(port) for port in re.findall(r"_PORT (\d+)", ports)] == [*own, issuer.port()]
