"""Each name of app/names.py is written once in the Python code, and the files that cannot import it agree with it."""

from __future__ import annotations

import ast
import json
import re
import tomllib

import pytest

from app.names import NAME, SEARCH_ATTRIBUTE, TITLE, WORKFLOW_ID_PREFIX, WORKFLOW_TYPE
from dev.checkout import ROOT
from dev.rename import read, text_files, word

# The class of the workflow has the same name as its type at first.
NAMES = re.compile(
    rf"{word(NAME)}|{word(TITLE)}|{word(SEARCH_ATTRIBUTE)}|(^|[:'\"]){WORKFLOW_TYPE}\b"
    rf"|(?<![\w-]){WORKFLOW_ID_PREFIX}(ord_|$)"
)
IN_FILES = {
    "README.md": [f"# {TITLE}\n"],
    "LICENSE": [f"the {NAME} authors"],
    ".devcontainer/devcontainer.json": [f'"name": "{TITLE}"'],
    "app/api/static/index.html": [f"<title>{TITLE}</title>"],
    "app/api/static/docs.html": [f"<title>API of {TITLE}</title>"],
    "docker-compose.yml": [f"image: {NAME}\n", f"--search-attribute={SEARCH_ATTRIBUTE}=Keyword"],
    "deploy/docker-compose.yml": [
        f"image: {NAME}\n",
        f"authSource={NAME}\n",
        f"--name {SEARCH_ATTRIBUTE} --type Keyword",
        f"'{SEARCH_ATTRIBUTE} = ",
    ],
    "deploy/mongodb-roles.json": [f'"db": "{NAME}"'],
    "deploy/grafana/dashboard.json": [f'"uid": "{NAME}"', f'"title": "{TITLE}"'],
    "deploy/grafana/dashboards.yml": [f"name: {NAME}\n"],
    "deploy/kubernetes/base/kustomization.yaml": [f"TASK_QUEUE={NAME}\n"],
    "deploy/kubernetes/base/api.yaml": [f"app.kubernetes.io/name: {NAME}\n", f"image: {NAME} "],
    "deploy/kubernetes/base/worker.yaml": [f"app.kubernetes.io/name: {NAME}\n", f"image: {NAME}\n"],
    "deploy/kubernetes/base/network-policies.yaml": [f"app.kubernetes.io/name: {NAME}\n"],
    "deploy/kubernetes/production/kustomization.yaml": [f"namespace: {NAME}\n", f"- name: {NAME}\n", f"/{NAME}\n"],
    "docs/deployment.md": [f"kubectl create namespace {NAME}\n", f"registry.example/{NAME}:"],
    "docs/operations.md": [
        f'TaskQueue="{NAME}"',
        f"`{NAME}-reconciliation`",
        f"`{NAME}-api` and `{NAME}-worker`",
        f"--name {SEARCH_ATTRIBUTE} --type Keyword",
        f"{WORKFLOW_ID_PREFIX}ORDER_ID",
    ],
    "docs/debugging.md": [f"--workflow-id {WORKFLOW_ID_PREFIX}ord_"],
}


def test_python_code_imports_names_instead_of_repeating_them() -> None:
    repeated = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in text_files()
        if path.suffix == ".py" and path != ROOT / "app/names.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES.search(node.value)
    ]
    assert repeated == []


@pytest.mark.parametrize("path", [path for path in IN_FILES if (ROOT / path).exists()])  # some are of extras
def test_files_that_cannot_import_names_have_the_same(path: str) -> None:
    text = (ROOT / path).read_text()
    assert [name for name in IN_FILES[path] if name not in text] == []


def test_metadata_have_the_names() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == NAME
    assert json.loads((ROOT / "app/api/description.json").read_text())["info"]["contact"]["url"].endswith(f"/{NAME}")


def test_names_are_spelled_in_one_way() -> None:
    """`make rename` finds the name and the title as they are, and in no other spelling."""
    spelling = re.compile(NAME.replace("-", "[-_ ]"), re.IGNORECASE)
    assert {each for path in text_files() for each in spelling.findall(read(path) or "")} == {NAME, TITLE}
