"""`make apply RECIPE="Another step"`: make the changes that a section of the docs shows.

In the page, a diff, or the text of a new file, follows the path of its file. The parts of a diff are separated by @@,
without line numbers: the lines of a part that stay or go must occur once in the file.
"""

import re
import sys
from pathlib import Path

from dev.checkout import ROOT, require_no_changes

PAGES = ("make-it-yours.md", "another-domain.md")
CHANGE = re.compile(r"`([\w/.-]+)`:\n\n```(diff|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

Change = tuple[str, str, str]  # path, kind, text


def main(recipe: str) -> None:
    found = recipes()
    if recipe not in found:
        raise SystemExit(f"cannot apply {recipe!r}: choose one of {', '.join(found)}")
    require_no_changes("apply")
    apply(ROOT, found[recipe])
    print(f"changed: {', '.join(path for path, _, _ in found[recipe])}. Read on in docs/, and run make lint")


def recipes() -> dict[str, list[Change]]:
    """The changes of each section that has some, by its title."""
    texts = [section for page in PAGES for section in (ROOT / "docs" / page).read_text().split("\n## ")[1:]]
    titles = {text.partition("\n")[0]: CHANGE.findall(text) for text in texts}
    return {title: changes for title, changes in titles.items() if changes}


def apply(folder: Path, changes: list[Change]) -> None:
    """Make the changes in a checkout.

    Raises:
        SystemExit: a file is not as the page expects it. Nothing is written.
    """
    texts: dict[str, str] = {}
    for path, kind, text in changes:
        file = folder / path
        before = texts.get(path, file.read_text() if file.exists() else "")
        texts[path] = text if kind == "python" else _edited(before, text, path)
    for path, text in texts.items():
        (folder / path).write_text(text)


def _edited(text: str, diff: str, path: str) -> str:
    for part in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = [line if line.strip() else " \n" for line in part.splitlines(keepends=True)]
        old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        if text.count(old) != 1:
            raise SystemExit(f"cannot apply: {path} does not have, or has more than once:\n{old}")
        text = text.replace(old, new)
    return text


if __name__ == "__main__":
    main(sys.argv[1])
