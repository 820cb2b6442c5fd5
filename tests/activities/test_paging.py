"""Lists page through every document, even if another program wrote unusual `_id` and `created_at` values (G9)."""

from __future__ import annotations

import random
import string
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.raw_bson import RawBSONDocument

from app.mongo import Mongo
from app.orders import OrderRepository
from tests.kit.orders import order_document

THEN = datetime(2026, 1, 1, tzinfo=UTC)
FAR = DatetimeMS(10**15)  # the year 33658, beyond Python's datetime
LIMITS = [1, 2, 3, 7, 100]
LONG = 1_000

IDS: list[Any] = [
    MinKey(),
    None,
    *(0, -1, 1.5, float("inf"), float("-inf"), float("nan"), Int64(2**60), Decimal128("1.1"), Decimal128("-7E+40")),
    *("", "a", "ü", "A", "\U0001f600", "a" * LONG, "b" * LONG, "c" * LONG, "zz", "\ufffd"),
    *({}, {"a": 1}, {"a": {"b": "x" * LONG}}, DBRef("orders", "1")),
    *(Binary(b""), Binary(b"\x00\xff"), Binary(b"0" * 16, 4), Binary(b"x" * LONG), Binary(b"x", 5)),
    *(ObjectId("0" * 24), ObjectId("f" * 24)),
    *(False, True),
    *(THEN, DatetimeMS(-1), FAR),
    *(Timestamp(0, 1), Timestamp(5, 5)),
    *(Code("f()"), Code("f()", {"x": 1})),
    MaxKey(),
]
TIMES: list[Any] = [THEN, THEN + timedelta(milliseconds=1), DatetimeMS(-(10**15)), DatetimeMS(0), FAR]
NO_TIMES: list[Any] = ["2026-01-01", 5, 1.5, None, True, {}, {"at": THEN}, [], ["x"], Timestamp(1, 1), ObjectId()]


async def _insert(mongo: Mongo, ids: Iterable[Any], created_at: Any = THEN) -> list[str]:
    """Insert orders with these `_id`s. Returns their customer ids, which identify them in lists."""
    documents = [{**order_document(), "_id": id_, "created_at": created_at} for id_ in ids]
    for document in documents:
        document["customer_id"] = f"c{random.getrandbits(60)}"
    await mongo.orders.insert_many(documents)
    return [document["customer_id"] for document in documents]


async def _pages(mongo: Mongo, limit: int, at_most: int = 200) -> list[str]:
    orders = OrderRepository(mongo)
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(at_most):
        page, cursor = await orders.page((), None, limit, cursor)
        assert len(page) == limit or cursor is None
        seen += [order.customer_id for order in page]
        if cursor is None:
            return seen
    raise AssertionError(f"no end after {at_most} pages: {seen[-5:]}")


async def _assert_pages_are_complete(mongo: Mongo, tags: list[str]) -> None:
    everything = await _pages(mongo, 1_000)
    assert sorted(everything) == sorted(tags)
    for limit in LIMITS:
        assert await _pages(mongo, limit) == everything, limit


async def test_paging_ids_of_every_type_with_same_time_lists_all(mongo: Mongo) -> None:
    await _assert_pages_are_complete(mongo, await _insert(mongo, IDS))


async def test_paging_from_any_id_lists_the_rest(mongo: Mongo) -> None:
    await _insert(mongo, IDS)
    orders = OrderRepository(mongo)
    everything = await mongo.orders.find().sort("_id", -1).to_list(None)
    tags = [document["customer_id"] for document in everything]
    for position in range(1, len(IDS)):
        _, cursor = await orders.page((), None, position, None)
        page, _ = await orders.page((), None, 100, cursor)
        assert [order.customer_id for order in page] == tags[position:], everything[position - 1]["_id"]


@pytest.mark.parametrize(
    "ids", [[f"{n:03}" + "x" * LONG for n in range(20)], [{"a": "x" * LONG, "n": n} for n in range(20)]]
)
async def test_paging_long_ids_lists_all(mongo: Mongo, ids: list[Any]) -> None:
    await _assert_pages_are_complete(mongo, await _insert(mongo, ids))


async def test_paging_long_ids_between_short_ones_lists_all(mongo: Mongo) -> None:
    ids = [f"{n:03}" + "x" * (LONG if n % 5 < 3 else 0) for n in range(40)]
    tags = await _insert(mongo, ids[:30])
    tags += await _insert(mongo, ids[30:], THEN + timedelta(seconds=1))
    await _assert_pages_are_complete(mongo, tags)


async def test_paging_ids_with_invalid_utf_8_lists_all(mongo: Mongo) -> None:
    tags = await _insert(mongo, ["a", "ab", "b", "\ufffd", "\uffff"])
    for invalid in (b"a\xff", b"\xff\xff", b"\xfe\xfe", b"a\x80"):
        tags += await _insert_raw(mongo, b"?" * len(invalid), invalid)
    await _assert_pages_are_complete(mongo, tags)


async def _insert_raw(mongo: Mongo, placeholder: bytes, invalid: bytes) -> list[str]:
    tag = f"c{random.getrandbits(60)}"
    document = {**order_document(), "_id": placeholder.decode(), "created_at": THEN, "customer_id": tag}
    raw = bson.encode(document).replace(placeholder + b"\x00", invalid + b"\x00", 1)
    await mongo.orders.insert_one(RawBSONDocument(raw))
    return [tag]


async def test_paging_times_of_every_type_lists_all(mongo: Mongo) -> None:
    """A document without a creation date is not listed until it is marked as malformed."""
    tags = [tag for n, time in enumerate(TIMES) for tag in await _insert(mongo, [f"a{n}", f"b{n}", f"c{n}"], time)]
    for n, time in enumerate(NO_TIMES):
        await _insert(mongo, [f"x{n}"], time)
    await mongo.orders.update_one({"_id": "x0"}, {"$unset": {"created_at": 1}})
    await _assert_pages_are_complete(mongo, tags)


async def test_paging_times_that_are_arrays_lists_all(mongo: Mongo) -> None:
    """For an array, MongoDB compares each element."""
    tags = await _insert(mongo, ["a", "b"])
    later = THEN + timedelta(days=1)
    for n, times in enumerate(([later], [later, THEN - timedelta(days=1)], [THEN, "x"], [[THEN]])):
        await _insert(mongo, [f"x{n}"], times)
    tags += await _insert(mongo, ["c", "d"], THEN - timedelta(days=2))
    for limit in LIMITS:
        seen = await _pages(mongo, limit)
        assert [tag for tag in seen if tag in tags] == [tags[1], tags[0], tags[3], tags[2]]


async def test_paging_many_documents_with_same_time_lists_all(mongo: Mongo) -> None:
    ids = ["".join(random.choices(string.ascii_letters, k=5)) for _ in range(150)]
    await _assert_pages_are_complete(mongo, await _insert(mongo, set(ids)))


async def test_paging_while_orders_come_in_is_stable(mongo: Mongo) -> None:
    tags = await _insert(mongo, [f"{n:03}" + "x" * (LONG * (n % 2)) for n in range(20)])
    orders = OrderRepository(mongo)
    seen: list[str] = []
    cursor: str | None = None
    while cursor is not None or not seen:
        page, cursor = await orders.page((), None, 3, cursor)
        seen += [order.customer_id for order in page]
        await _insert(mongo, [f"new{len(seen)}"], THEN + timedelta(seconds=1))
    assert seen == tags[::-1]


async def test_order_added_at_time_of_cursor_does_not_hide_others(mongo: Mongo) -> None:
    tags = await _insert(mongo, [f"b{n}" for n in range(6)])
    orders = OrderRepository(mongo)
    page, cursor = await orders.page((), None, 3, None)
    await _insert(mongo, ["a", "c"])
    rest, _ = await orders.page((), None, 100, cursor)
    assert {order.customer_id for order in page + rest} >= set(tags)


@pytest.mark.parametrize("cursor", ["0.0", "-1.9999999", "-0.00", f"{2**63 - 1}.0", f"-{2**63}.0", "9" * 19 + ".0"])
async def test_cursor_of_any_time_returns_a_page(mongo: Mongo, cursor: str) -> None:
    await _insert(mongo, IDS)
    await OrderRepository(mongo).page((), None, 10, cursor)
