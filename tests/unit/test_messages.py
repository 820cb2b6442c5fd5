"""What travels through Temporal between an old version of the program and a new one."""

from __future__ import annotations

import pytest

from app.models import Article, Message

MESSAGES = Message.__subclasses__()


def test_there_are_some() -> None:
    assert len(MESSAGES) > 5


@pytest.mark.parametrize("message", MESSAGES)
def test_a_field_of_a_newer_version_is_ignored(message: type[Message]) -> None:
    assert message.model_config["extra"] == "ignore"


def test_pieces_that_come_back_make_no_article_malformed() -> None:
    price = {"amount": 1, "currency": "EUR"}
    Article.model_validate({"_id": "MUG", "name": "Mug", "unit_price": price, "available": 1_000_000_005})
