"""Messages through Temporal between an old version of the program and a new one."""

from __future__ import annotations

import pytest

from app.domain import Product
from app.messages import Message

MESSAGES = Message.__subclasses__()


def test_messages_are_found() -> None:
    assert len(MESSAGES) > 5


@pytest.mark.parametrize("message", MESSAGES)
def test_field_of_a_newer_version_is_ignored(message: type[Message]) -> None:
    assert message.model_config["extra"] == "ignore"


def test_released_quantities_beyond_the_maximum_make_no_product_malformed() -> None:
    price = {"amount": 1, "currency": "EUR"}
    Product.model_validate({"_id": "MUG", "name": "Mug", "unit_price": price, "available": 1_000_000_005})
