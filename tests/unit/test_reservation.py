"""`decide`: what becomes of a reservation. A pure function, so that every order of requests can be tried."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.activities.inventory import RELEASED, RESERVED, Request, Reservation, decide

SKUS = ["A", "B", "C"]
PIECES = st.dictionaries(st.sampled_from(SKUS), st.integers(1, 5), min_size=1)
STOCK = st.fixed_dictionaries({}, optional={sku: st.integers(0, 12) for sku in SKUS})


def test_first_come_first_served() -> None:
    """Who asks for more than is left gets nothing, and leaves it to those behind."""
    left = {"A": 10}
    states = [decide(Request(f"o{n}", {"A": pieces}), None, left).state for n, pieces in enumerate((6, 6, 3, 1, 1))]
    assert states == [RESERVED, RELEASED, RESERVED, RESERVED, RELEASED]
    assert left == {"A": 0}


def test_all_or_nothing() -> None:
    left = {"A": 10, "B": 1}
    refused = decide(Request("o", {"A": 2, "B": 2, "X": 1}), None, left)
    assert refused.failure is not None
    assert (refused.failure.code, refused.failure.message) == ("out_of_stock", "not enough in stock: B, X")
    assert left == {"A": 10, "B": 1}


def test_a_release_that_comes_first_is_a_fence() -> None:
    left = {"A": 10}
    fence = decide(Request("o", None), None, left)
    assert fence == Reservation(RELEASED, {})
    assert decide(Request("o", {"A": 1}), fence, left) == fence
    assert left == {"A": 10}


def test_a_refusal_stays_the_same_refusal() -> None:
    left = {"A": 0}
    refused = decide(Request("o", {"A": 1}), None, left)
    left["A"] = 10
    assert decide(Request("o", {"A": 1}), refused, left) == refused
    assert decide(Request("o", None), refused, left) == refused
    assert left == {"A": 10}


def test_pieces_of_an_article_that_is_not_kept_any_more_go_to_nobody() -> None:
    left = {"A": 0}
    assert decide(Request("o", None), Reservation(RESERVED, {"A": 1, "OLD": 2}), left).state == RELEASED
    assert left == {"A": 1}


@given(STOCK, st.dictionaries(st.sampled_from(["o1", "o2", "o3", "o4"]), PIECES, min_size=1), st.data())
def test_the_stock_is_even_after_any_requests_in_any_order(
    stock: dict[str, int], orders: dict[str, dict[str, int]], data: st.DataObject
) -> None:
    left = dict(stock)
    reservations: dict[str, Reservation] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        order_id = data.draw(st.sampled_from(sorted(orders)))
        held = reservations.get(order_id)
        request = Request(order_id, data.draw(st.sampled_from([orders[order_id], None])))
        now = reservations[order_id] = decide(request, held, left)

        if held is not None and held.state == RELEASED:
            assert now == held  # it is never reserved again
        if request.pieces is None:
            assert now.state == RELEASED
        if now.state == RESERVED:
            assert now.pieces == orders[order_id]
        pieces = Counter[str]()
        for reservation in reservations.values():
            if reservation.state == RESERVED:
                pieces.update(reservation.pieces)
        assert {sku: left[sku] + pieces[sku] for sku in left} == stock
        assert all(count >= 0 for count in left.values())
