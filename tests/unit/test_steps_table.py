"""A mistake in the steps table stops the worker at its start, with an error that names the mistake."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app import domain
from app.activities.payments import Payments
from app.domain import OrderStatus
from app.messages import OrderRef
from app.workflows import steps
from app.workflows.steps import Step, all_activities, check_table

FIRST, SECOND, *REST = steps.STEPS
Change = Callable[[pytest.MonkeyPatch], None]


class Fraud:
    """An activity class whose method lacks the decorator."""

    async def check(self, ref: OrderRef) -> None: ...


def table(*rows: Step) -> Change:
    return lambda monkeypatch: monkeypatch.setattr(steps, "STEPS", list(rows))


MISTAKES: dict[str, tuple[Change, str]] = {
    "a step has no row": (table(FIRST, *REST), f"'{SECOND.name}'"),
    "a row is in another place": (table(SECOND, FIRST, *REST), f"{SECOND.name}', '{FIRST.name}"),
    "a row is there twice": (table(FIRST, SECOND, SECOND, *REST), f"{SECOND.name}', '{SECOND.name}"),
    "the point of no return is another": (
        lambda monkeypatch: monkeypatch.setattr(steps, "POINT_OF_NO_RETURN", OrderStatus.CHARGED),
        "POINT_OF_NO_RETURN must be shipped",
    ),
    "an activity is not decorated": (
        table(FIRST, replace(SECOND, activity=Fraud.check), *REST),
        "Fraud.check.*activity.defn",
    ),
    "a compensation is not decorated": (
        table(FIRST, replace(SECOND, compensation=Fraud.check), *REST),
        "Fraud.check.*activity.defn",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_invalid_steps_table_raises_error_that_names_the_mistake(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    change, named = MISTAKES[mistake]
    change(monkeypatch)
    with pytest.raises(TypeError, match=named):
        check_table()


@pytest.mark.parametrize("line", ['    CHARGED = "charged"', '    CHARGE_PAYMENT = "charge_payment"'])
def test_domain_with_mismatched_steps_and_statuses_cannot_be_imported(line: str) -> None:
    source = inspect.getsource(domain)
    assert line in source
    module = types.ModuleType("domain_with_mistake")
    with pytest.raises(ValueError, match=r"zip\(\) argument 2"):
        exec(source.replace(line, ""), vars(module))  # noqa: S102


def test_statuses_follow_the_steps() -> None:
    statuses = [
        ("reserve_inventory", "reserved"),
        ("charge_payment", "charged"),
        ("create_shipment", "shipped"),
        ("send_confirmation", "completed"),
    ]
    found = [(step.name.value, step.status.value) for step in steps.STEPS]
    assert [each for each in found if each in statuses] == statuses


def test_table_has_every_step() -> None:
    check_table()
    functions: list[Any] = [Payments.charge, Payments.refund]
    assert set(functions) < set(all_activities())
