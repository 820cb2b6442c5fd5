"""Messages through Temporal stay compatible between versions of the program."""

from __future__ import annotations

import pytest

from app.domain import Product
from app.messages import Message

MESSAGES = Message.__subclasses__()


def test_message_discovery_finds_every_message() -> None:
    assert len(MESSAGES) > 5


@pytest.mark.parametrize("message", MESSAGES)
def test_unknown_field_of_newer_version_is_ignored(message: type[Message]) -> None:
    assert message.model_config["extra"] == "ignore"


def test_release_beyond_maximum_keeps_product_valid() -> None:
    price = {"amount": 1, "currency": "EUR"}
    Product.model_validate({"_id": "MUG", "name": "Mug", "unit_price": price, "available": 1_000_000_005})
