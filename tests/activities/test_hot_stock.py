"""One article that everybody wants (G5): fast, exact, and fair to those who want another."""

from __future__ import annotations

from app.mongo import Mongo
from dev import hot_stock


async def test_group_commit_is_ten_times_as_fast_as_plain_transactions(mongo: Mongo) -> None:
    await mongo.create_indexes()
    result = await hot_stock.measure(mongo)
    print(result)
    assert result.times >= 10, result
