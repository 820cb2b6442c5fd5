"""Build the manifests of deploy/kubernetes with `kubectl kustomize`."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from dev.stack import ROOT

Manifest = dict[str, Any]
MANIFESTS = ROOT / "deploy" / "kubernetes"
POD_OWNERS = ("Deployment", "WorkerDeployment")


@cache
def require_kubectl() -> None:
    """Skip the test if `kubectl` is missing, or too old to know components. If CI is set, go on and fail."""
    command = ["kubectl", "version", "--client", "--output=json"]
    found = shutil.which("kubectl") and subprocess.run(command, capture_output=True).stdout  # noqa: PLW1510
    if b"kustomizeVersion" not in (found or b"") and not os.environ.get("CI"):
        pytest.skip("kubectl is missing or older than 1.24, as that of Debian 12 is")


class Build:
    """The manifests that an overlay results in."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.manifests = manifests

    @classmethod
    def of(cls, kustomization: Path) -> Build:
        require_kubectl()
        command = ["kubectl", "kustomize", str(kustomization)]
        built = subprocess.run(command, capture_output=True, text=True)  # noqa: PLW1510
        assert (built.returncode, built.stderr) == (0, "")
        return cls(list(yaml.safe_load_all(built.stdout)))

    def all(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        (found,) = (each for each in self.all(kind) if name in (None, each["metadata"]["name"]))
        return found

    def pods(self) -> dict[str, Manifest]:
        """The pod templates by the name of their owner."""
        return {owner["metadata"]["name"]: owner["spec"]["template"] for owner in self.all(*POD_OWNERS)}

    def containers(self) -> dict[str, Manifest]:
        """The containers by their name; each pod has one."""
        containers = [c for pod in self.pods().values() for c in pod["spec"]["containers"]]
        return {container["name"]: container for container in containers}

    def settings(self) -> dict[str, str]:
        data: dict[str, str] = self.one("ConfigMap")["data"]
        return data

    def selected(self, labels: dict[str, str]) -> set[str]:
        """The pods with these labels, by the name of their owner."""
        pods = self.pods().items()
        return {name for name, pod in pods if labels.items() <= pod["metadata"]["labels"].items()}


def build(folder: Path, *components: str, **settings: str) -> Build:
    """Build the overlay `production` with these components, and with some of its settings changed."""
    manifests = folder / "kubernetes"
    shutil.copytree(MANIFESTS, manifests)
    overlay = manifests / "production" / "kustomization.yaml"
    kustomization = yaml.safe_load(overlay.read_text())
    kustomization["components"] = [f"../{component}" for component in components]
    (generator,) = kustomization["configMapGenerator"]
    merged = dict(literal.split("=", 1) for literal in generator["literals"]) | settings
    generator["literals"] = [f"{name}={value}" for name, value in merged.items()]
    overlay.write_text(yaml.safe_dump(kustomization))
    return Build.of(overlay.parent)
