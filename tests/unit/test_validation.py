"""Texts and e-mail addresses. `tests/api/test_bad_input.py` has those that the API refuses."""

from __future__ import annotations

import pytest

from app.domain import NewOrder
from tests.kit.orders import ADDRESS, order_body

NAMES = [
    "O'Brien-Smith, Jr.",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a zero-width non-joiner
    "\u0dc1\u0dca\u200d\u0dbb\u0dd3",  # Sinhala, with a zero-width joiner
    "\u1797\u17b6\u179f\u17b6\u200b\u1781\u17d2\u1798\u17c2\u179a",  # Khmer, with a zero-width space
    "\U0001f469\u200d\U0001f4bb",
]
ADDRESSES = [
    "o'brien+tag@sub.example.co",
    "a_b.c-d%e!f/g=h?i@example.org",
    "\u0438\u043c\u044f@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444",
]


@pytest.mark.parametrize("name", NAMES)
def test_name_in_any_script_is_accepted(name: str) -> None:
    order = NewOrder.model_validate(order_body(shipping_address={**ADDRESS, "name": name}))
    assert order.shipping_address.name == name


@pytest.mark.parametrize("email", ADDRESSES)
def test_unusual_email_address_is_accepted(email: str) -> None:
    assert NewOrder.model_validate(order_body(email=email)).email == email
