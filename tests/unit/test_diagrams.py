"""The state diagrams of docs/architecture.md have the states and transitions of `app.domain`."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from app.domain import ALLOWED_FROM, STATUS_AFTER, STOPPED, TERMINAL, OrderStatus, StepEvent, StepStatus, next_status

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
ORDER, STEP = re.findall(r"^```mermaid\nstateDiagram-v2\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

Transition = tuple[str, str]


def drawn(diagram: str) -> dict[Transition, str]:
    """The label of each arrow of a diagram, by its source and target. `[*]` is the start or the end."""
    arrows = re.findall(r"^ *(\S+) --> (\w+|\[\*\])(?:: (.*))?$", diagram, re.MULTILINE)
    assert len(arrows) == diagram.count("-->")
    labels = {(before, after): label for before, after, label in arrows}
    assert len(labels) == len(arrows), "an arrow is drawn twice"
    return labels


def skipping(statuses: list[OrderStatus]) -> set[Transition]:
    """Transitions that skip a status on the way forward."""
    return {(before, after) for after in statuses for before in statuses[: max(0, statuses.index(after) - 1)]}


def test_status_diagram_names_every_status_of_the_domain() -> None:
    assert {status for transition in drawn(ORDER) for status in transition} - {"[*]"} == set(OrderStatus)


def test_status_diagram_has_the_initial_and_terminal_statuses_of_the_domain() -> None:
    arrows = drawn(ORDER)
    assert [after for before, after in arrows if before == "[*]"] == [OrderStatus.PLACED]
    assert {before for before, after in arrows if after == "[*]"} == TERMINAL


def test_status_diagram_draws_every_allowed_single_step_transition() -> None:
    allowed = {(before.value, after.value) for after, statuses in ALLOWED_FROM.items() for before in statuses}
    transitions = {transition for transition in drawn(ORDER) if "[*]" not in transition}
    assert transitions <= allowed
    forward = [status for status in OrderStatus if status not in STOPPED]
    assert allowed - transitions == skipping(forward) - transitions


def test_status_diagram_labels_each_status_with_its_step() -> None:
    labels = {(after, label) for (_, after), label in drawn(ORDER).items() if after in STATUS_AFTER.values()}
    assert labels == {(status, step) for step, status in STATUS_AFTER.items()}


def test_step_diagram_draws_every_transition_of_a_step() -> None:
    machine = {
        (status or "absent", event): following
        for status, event in product([None, *StepStatus], StepEvent)
        if (following := next_status(status, event)) is not status
    }
    arrows = {transition: label for transition, label in drawn(STEP).items() if transition != ("[*]", "absent")}
    events = {(before, event): after for (before, after), label in arrows.items() for event in label.split(", ")}
    assert events == machine


@pytest.mark.parametrize(
    ("arrow", "other"),
    [
        ("    charged --> compensating\n", ""),
        ("    needs_attention --> failed\n", "    needs_attention --> completed\n"),
        ("    placed --> compensating\n", "    placed --> compensating\n    shipped --> compensating\n"),
    ],
    ids=["missing", "wrong", "one too many"],
)
def test_status_diagram_with_wrong_arrow_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, arrow: str, other: str
) -> None:
    assert ORDER.count(arrow) == 1
    monkeypatch.setitem(globals(), "ORDER", ORDER.replace(arrow, other))
    with pytest.raises(AssertionError):
        test_status_diagram_draws_every_allowed_single_step_transition()
