"""The Dockerfile, read."""

from __future__ import annotations

import json
import re

from dev.stack import ROOT

DOCKERFILE = re.sub(r"\\\n *|^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).splitlines()
IMAGE = DOCKERFILE[DOCKERFILE.index("", 1) + 1 :]  # the last stage: what is shipped


def words_of(instruction: str) -> list[str]:
    """The words of CMD or of the command of HEALTHCHECK."""
    (line,) = (line for line in IMAGE if line.startswith(instruction))
    words: list[str] = json.loads(line[line.index("[") :])
    return words
