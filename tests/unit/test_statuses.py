"""The table of statuses: an order always gets on, and what is final stays."""

from __future__ import annotations

import pytest

from app.models import CANCELLABLE, FINAL, MAY_FOLLOW, OrderStatus


def _reachable(status: OrderStatus) -> set[OrderStatus]:
    """Every status that an order in this one may still come to."""
    found: set[OrderStatus] = set()
    waiting = [status]
    while waiting:
        now = waiting.pop()
        following = {after for after, before in MAY_FOLLOW.items() if now in before} - found
        found |= following
        waiting += following
    return found


@pytest.mark.parametrize("status", OrderStatus)
def test_no_way_leads_back(status: OrderStatus) -> None:
    assert status not in _reachable(status)


@pytest.mark.parametrize("status", OrderStatus)
def test_what_is_final_stays_and_all_else_can_end(status: OrderStatus) -> None:
    assert bool(_reachable(status) & FINAL) == (status not in FINAL)


@pytest.mark.parametrize("status", OrderStatus)
def test_what_is_being_undone_cannot_go_on(status: OrderStatus) -> None:
    if status in {OrderStatus.COMPENSATING, OrderStatus.NEEDS_ATTENTION}:
        assert _reachable(status) <= {OrderStatus.NEEDS_ATTENTION, OrderStatus.FAILED, OrderStatus.CANCELLED}


@pytest.mark.parametrize("status", CANCELLABLE)
def test_what_can_be_cancelled_can_become_cancelled(status: OrderStatus) -> None:
    assert OrderStatus.CANCELLED in _reachable(status)
    assert OrderStatus.COMPENSATING in _reachable(status)
