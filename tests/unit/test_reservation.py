"""`decide` computes a reservation from a request. It is a pure function, so tests can try any sequence of requests."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.activities.inventory import Reservation, decide
from app.domain import StepStatus

DONE, FAILED, COMPENSATED = StepStatus.DONE, StepStatus.FAILED, StepStatus.COMPENSATED
SKUS = ["A", "B", "C"]
QUANTITIES = st.dictionaries(st.sampled_from(SKUS), st.integers(1, 5), min_size=1)
STOCK = st.fixed_dictionaries({}, optional={sku: st.integers(0, 12) for sku in SKUS})


def test_requests_are_served_first_come_first_served() -> None:
    """A request for more than is left gets nothing. Later requests can still use what is left."""
    left = {"A": 10}
    statuses = [decide({"A": quantity}, None, left).status for quantity in (6, 6, 3, 1, 1)]
    assert statuses == [DONE, FAILED, DONE, DONE, FAILED]
    assert left == {"A": 0}


def test_reservation_is_all_or_nothing() -> None:
    left = {"A": 10, "B": 1}
    declined = decide({"A": 2, "B": 2, "X": 1}, None, left)
    assert declined.failure is not None
    assert (declined.failure.code, declined.failure.message) == ("out_of_stock", "not enough in stock: B, X")
    assert left == {"A": 10, "B": 1}


def test_release_before_reservation_fences_it() -> None:
    left = {"A": 10}
    fence = decide(None, None, left)
    assert fence == Reservation(FAILED, {})
    assert decide({"A": 1}, fence, left) == fence
    assert left == {"A": 10}


def test_repeated_attempt_returns_the_same_decline() -> None:
    left = {"A": 0}
    declined = decide({"A": 1}, None, left)
    left["A"] = 10
    assert decide({"A": 1}, declined, left) == declined
    assert decide(None, declined, left) == declined
    assert left == {"A": 10}


def test_release_returns_held_quantities_after_lines_changed() -> None:
    left = {"A": 5}
    held = decide({"A": 2}, None, left)
    assert decide({"A": 9}, held, left) == held
    assert decide(None, held, left) == Reservation(COMPENSATED, {"A": 2})
    assert left == {"A": 5}


def test_release_of_removed_product_discards_its_quantities() -> None:
    left = {"A": 0}
    assert decide(None, Reservation(DONE, {"A": 1, "OLD": 2}), left).status is COMPENSATED
    assert left == {"A": 1}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine, both are by chance
@given(STOCK, st.dictionaries(st.sampled_from(["o1", "o2", "o3", "o4"]), QUANTITIES, min_size=1), st.data())
def test_available_and_held_equal_stocked_after_any_requests(
    stock: dict[str, int], orders: dict[str, dict[str, int]], data: st.DataObject
) -> None:
    left = dict(stock)
    reservations: dict[str, Reservation] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        order_id = data.draw(st.sampled_from(sorted(orders)))
        held = reservations.get(order_id)
        wanted = data.draw(st.sampled_from([orders[order_id], None]))
        now = reservations[order_id] = decide(wanted, held, left)

        if held is not None and held.status is not DONE:
            assert now == held  # a failed or compensated reservation never changes
        if wanted is None:
            assert now.status is (COMPENSATED if held and held.status in {DONE, COMPENSATED} else FAILED)
        if now.status is DONE:
            assert now.quantities == orders[order_id]
        taken = Counter[str]()
        for reservation in reservations.values():
            if reservation.status is DONE:
                taken.update(reservation.quantities)
        assert {sku: left[sku] + taken[sku] for sku in left} == stock
        assert all(count >= 0 for count in left.values())
