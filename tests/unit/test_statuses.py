"""Status transitions: every order can reach a terminal status, and a terminal status never changes."""

from __future__ import annotations

import pytest

from app.domain import ALLOWED_FROM, CANCELLABLE, STOPPED, TERMINAL, OrderStatus


def _reachable(status: OrderStatus) -> set[OrderStatus]:
    """Every status that is reachable from this one."""
    found: set[OrderStatus] = set()
    waiting = [status]
    while waiting:
        now = waiting.pop()
        following = {after for after, before in ALLOWED_FROM.items() if now in before} - found
        found |= following
        waiting += following
    return found


@pytest.mark.parametrize("status", OrderStatus)
def test_no_status_is_reached_twice(status: OrderStatus) -> None:
    assert status not in _reachable(status)


@pytest.mark.parametrize("status", OrderStatus)
def test_terminal_status_is_kept_and_every_other_can_reach_one(status: OrderStatus) -> None:
    assert bool(_reachable(status) & TERMINAL) == (status not in TERMINAL)


@pytest.mark.parametrize("status", OrderStatus)
def test_compensating_order_cannot_go_forward(status: OrderStatus) -> None:
    if status in {OrderStatus.COMPENSATING, OrderStatus.NEEDS_ATTENTION}:
        assert _reachable(status) <= {OrderStatus.NEEDS_ATTENTION, OrderStatus.FAILED, OrderStatus.CANCELLED}


@pytest.mark.parametrize("status", CANCELLABLE)
def test_cancellable_order_can_become_cancelled(status: OrderStatus) -> None:
    assert OrderStatus.CANCELLED in _reachable(status)
    assert OrderStatus.COMPENSATING in _reachable(status)


def test_shipped_order_can_only_complete() -> None:
    assert _reachable(OrderStatus.SHIPPED) == {OrderStatus.COMPLETED}
    assert OrderStatus.SHIPPED not in CANCELLABLE


@pytest.mark.parametrize("status", [*CANCELLABLE, OrderStatus.SHIPPED])
def test_status_of_order_in_progress_is_not_stopped(status: OrderStatus) -> None:
    assert status not in STOPPED
