"""A mistake in the table of steps ends the worker at its start, with an error that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import StrEnum
from typing import Any

import pytest

from app.activities.payments import Payments
from app.domain import STATUS_AFTER, OrderStatus, StepName
from app.messages import OrderRef
from app.workflows import steps
from app.workflows.steps import Step, all_activities, check_table

RESERVE, CHARGE, SHIP, CONFIRM = steps.STEPS
Change = Callable[[pytest.MonkeyPatch], None]


class Fraud:
    """A class of activities whose methods somebody forgot to decorate."""

    async def check(self, ref: OrderRef) -> None: ...


def table(*rows: Step) -> Change:
    return lambda monkeypatch: monkeypatch.setattr(steps, "STEPS", list(rows))


def statuses(after: dict[StepName, OrderStatus]) -> Change:
    return lambda monkeypatch: monkeypatch.setattr("app.workflows.steps.STATUS_AFTER", after)


def declared(*names: str) -> Change:
    """`OrderStatus` with its statuses declared in another order."""
    other = StrEnum("OrderStatus", {name: name.lower() for name in names})  # type: ignore[misc]

    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        after = {step: other[status.name] for step, status in STATUS_AFTER.items()}
        monkeypatch.setattr(steps, "OrderStatus", other)
        monkeypatch.setattr(steps, "STATUS_AFTER", after)

    return change


def without(name: StepName) -> dict[StepName, OrderStatus]:
    return {step: status for step, status in STATUS_AFTER.items() if step is not name}


def swapped(names: Iterable[str], one: str, other: str) -> list[str]:
    return [{one: other, other: one}.get(name, name) for name in names]


NAMES = [status.name for status in OrderStatus]
MISTAKES: dict[str, tuple[Change, str]] = {
    "a step has no row": (table(RESERVE, CHARGE, CONFIRM), "create_shipment"),
    "a row is in another place": (table(CHARGE, RESERVE, SHIP, CONFIRM), "charge_payment', 'reserve_inventory"),
    "a row is there twice": (table(RESERVE, CHARGE, CHARGE, SHIP, CONFIRM), "charge_payment', 'charge_payment"),
    "a step has no status": (statuses(without(StepName.CHARGE_PAYMENT)), "STATUS_AFTER.*charge_payment"),
    "statuses are declared in another order": (declared(*swapped(NAMES, "RESERVED", "CHARGED")), "OrderStatus"),
    "the last step does not complete the order": (
        statuses({**STATUS_AFTER, StepName.SEND_CONFIRMATION: OrderStatus.SHIPPED}),
        "OrderStatus",
    ),
    "the point of no return is another": (
        lambda monkeypatch: monkeypatch.setattr(steps, "POINT_OF_NO_RETURN", OrderStatus.CHARGED),
        "POINT_OF_NO_RETURN must be shipped",
    ),
    "an activity is not decorated": (
        table(RESERVE, replace(CHARGE, activity=Fraud.check), SHIP, CONFIRM),
        "Fraud.check.*activity.defn",
    ),
    "a compensation is not decorated": (
        table(RESERVE, replace(CHARGE, compensation=Fraud.check), SHIP, CONFIRM),
        "Fraud.check.*activity.defn",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_the_table_is_named(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    change, named = MISTAKES[mistake]
    change(monkeypatch)
    with pytest.raises(TypeError, match=named):
        check_table()


def test_table_is_complete() -> None:
    check_table()
    functions: list[Any] = [Payments.charge, Payments.refund]
    assert set(functions) < set(all_activities())
