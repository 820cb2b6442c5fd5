"""Parse the Dockerfile."""

from __future__ import annotations

import json
import re

from dev.stack import ROOT

DOCKERFILE = re.sub(r"\\\n *|^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).splitlines()
IMAGE = DOCKERFILE[DOCKERFILE.index("", 1) + 1 :]  # the last stage, which becomes the image


def words_of(instruction: str) -> list[str]:
    """The command of CMD or HEALTHCHECK, as a list of words."""
    (line,) = (line for line in IMAGE if line.startswith(instruction))
    words: list[str] = json.loads(line[line.index("[") :])
    return words
