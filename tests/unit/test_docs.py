"""README.md and docs/ match the code: named tests, links, make targets, the saga and the settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import ApiSettings
from app.workflows.steps import STEPS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
GUARANTEES = [f"G{number}" for number in range(1, 12)]
NAMED_FILE = r"\btests/[\w/]+\.py\b"
NAMED_TEST = r"(?<![\w/])test_\w+(?!\w|\.py)"

# Files that the reader writes, copies or moves.
WRITTEN = {
    *("app/activities/fraud.py", "app/activities/partners.py", "app/gateways/fraud.py", "app/gateways/own.py"),
    *("app/gateways/payments.py", "app/gateways/mail.py", "app/api/static/booking-view.js", "dev/sandbox.py"),
    *("tests/activities/test_payment_service.py", "tests/activities/test_mail_server.py"),
    "tests/browser/test_booking_desk.py",
}


def missing_in(paragraph: str) -> list[str]:
    """The test files and tests that a paragraph names, but that do not exist."""
    files = set(re.findall(NAMED_FILE, paragraph)) - WRITTEN
    missing = [name for name in files if not (ROOT / name).is_file()]
    existing = "".join((ROOT / name).read_text() for name in files if name not in missing)
    names = set(re.findall(NAMED_TEST, paragraph))
    return missing + [name for name in names if not re.search(rf"^(async )?def {name}\(", existing, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_test_exists(page: Path) -> None:
    paragraphs = page.read_text().split("\n\n")
    assert [name for paragraph in paragraphs for name in missing_in(paragraph)] == []


def untested(page: str) -> list[str]:
    """The headings of the sections that name no test, but for those that only have sections of their own."""
    _, *sections = re.split(r"^##+ ", page, flags=re.MULTILINE)
    texts = dict(section.partition("\n")[::2] for section in sections)
    named = {heading for heading, text in texts.items() if re.search(NAMED_FILE, text) and re.search(NAMED_TEST, text)}
    return [heading for heading, text in texts.items() if text.strip() and heading not in named]


def test_every_section_of_operations_names_a_test() -> None:
    assert untested((ROOT / "docs/operations.md").read_text()) == []
    assert untested(
        "## A\n\n### B\n\nX (`tests/unit/test_docs.py`, `test_b`).\n\n### C\n\n`tests/unit/test_docs.py`"
    ) == ["C"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_points_to_an_existing_file(page: Path) -> None:
    targets = re.findall(r"(?:\]\(|src=\"|srcset=\")([^)\"#]+)", page.read_text())
    local = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_section_points_to_an_existing_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    assert [f"{path.name}#{anchor}" for path, anchor in targets if anchor not in anchors(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_file_exists(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/.])(?:(?:app|dev|docs|tests)/[\w./-]*\w/?|worker\.py)", page.read_text()))
    missing = {name for name in named - WRITTEN if not (ROOT / name).exists()}
    assert missing <= {"dev/peers/node_modules"}  # installed on demand


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_make_target_exists(page: Path) -> None:
    existing = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))
    assert named - existing == set()


def test_saga_in_readme_matches_the_workflow() -> None:
    [shown] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for line in shown.splitlines()]
    _, saga = (ROOT / "app/workflows/order.py").read_text().split("async def _saga(self)")
    code = iter(line.split("  #")[0].strip() for line in saga.splitlines())
    # `in` consumes the iterator, so the lines must appear in the same sequence.
    assert [line for line in lines if line != "..." and line not in code] == []


def test_imports_lead_only_to_the_right() -> None:
    _, section = (ROOT / "docs/architecture.md").read_text().split("## Imports\n\n")
    rank = {
        name: n for n, part in enumerate(section.partition("\n")[0].split("→")) for name in re.findall(r"\w+", part)
    }
    found = set()
    for path in [*(ROOT / "app").rglob("*.py"), ROOT / "worker.py"]:
        module = path.relative_to(ROOT).parts[-1 if path.parent == ROOT / "app" or path.parent == ROOT else 1]
        own = rank.get(module.removesuffix(".py"))
        for names in re.findall(
            r"^\s*(?:from|import) app(?:\.|\b import )(\w+(?:, \w+)*)", path.read_text(), re.MULTILINE
        ):
            found |= {(path.name, name) for name in names.split(", ") if own is not None and rank.get(name, own) < own}
    assert found == {("reconciliation.py", "workflows")}


def test_documented_settings_match_the_code() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `?(.*?)`? ?\|", page, re.MULTILINE))
    assert rows.pop("TEMPORAL_ADDRESS") == "127.0.0.1:7233"  # read by the Temporal SDK
    assert list(rows) == [name.upper() for name in ApiSettings.model_fields]
    shown = {name: value.replace("{}", "") for name, value in rows.items()}
    defaults = ApiSettings.model_construct().model_dump()
    shown = {name: value.removeprefix("false") for name, value in shown.items()}
    for name in ("approval_timeout", "reconciliation_interval"):
        defaults[name] = int(defaults[name].total_seconds())
    assert shown == {name.upper(): str(value or "") for name, value in defaults.items()}


def test_documented_retry_times_match_the_steps_table() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    shown = re.search(
        r"retried for (.*) minutes \(inventory\), (.*) minutes \(payment\), a day \(carrier\) or a week", page
    )
    assert shown
    seconds = [60 * int(minutes) for minutes in shown.groups()] + [86_400, 7 * 86_400]
    services = {"the inventory", "the payment service", "the carrier", "the mail service"}
    assert [step.schedule_to_close.total_seconds() for step in STEPS if step.service in services] == seconds


@pytest.mark.parametrize("page", ["README.md", "docs/guarantees.md"])
def test_every_guarantee_links_to_a_test(page: str) -> None:
    guarantees = dict(
        re.findall(r"^(?:\*\*|\| )(G\d+)\b(.*?)(?=\n\n|\n\| |\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    )
    assert list(guarantees) == GUARANTEES
    assert [guarantee for guarantee, text in guarantees.items() if "tests/" not in text] == []


@pytest.mark.parametrize(
    ("paragraph", "missing"),
    [
        ("`tests/unit/test_docs.py` (`test_every_guarantee_links_to_a_test`)", []),
        ("`tests/unit/test_docs.py` (`test_every_guarantee`)", ["test_every_guarantee"]),
        ("`tests/unit/test_dogs.py`", ["tests/unit/test_dogs.py"]),
        ("`test_every_guarantee_links_to_a_test`", ["test_every_guarantee_links_to_a_test"]),
    ],
)
def test_name_of_missing_test_fails_the_check(paragraph: str, missing: list[str]) -> None:
    assert missing_in(paragraph) == missing
