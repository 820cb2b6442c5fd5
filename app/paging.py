"""Cursors of lists that are sorted by `created_at` and `_id`, newest first.

Other programs may have inserted documents whose `_id` is of any type and length. MongoDB compares values of one type
only, so a cursor's query names the types that sort below its own.
"""

import base64
from dataclasses import asdict, dataclass
from datetime import datetime
from math import isnan
from typing import Any

import bson
from bson import CodecOptions, DatetimeConversion, DatetimeMS

# The codes of BSON types in the order in which MongoDB sorts them.
TYPES_IN_ORDER = [[-1], [10], [1, 16, 18, 19], [2, 14], [3], [4], [5], [7], [8], [9], [17], [13], [15], [127]]
RANKS = {code: rank for rank, codes in enumerate(TYPES_IN_ORDER) for code in codes}
NUMBERS = 2
ONE_DATE = {"$type": "date", "$not": {"$type": "array"}}  # of a list, MongoDB would compare each element
LARGEST_CURSOR = 400  # bytes; an `_id` that is longer is passed over by counting
MOST_SKIPPED = 10_000
_CODEC = CodecOptions[dict[str, Any]](tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class BadCursor(ValueError):
    """The cursor was not given out by this API."""


@dataclass(frozen=True)
class Position:
    """After the document with this key, and after `skip` more. Without a key: the beginning."""

    created_at: datetime | DatetimeMS | None = None
    order_id: Any = None
    skip: int = 0


def after(position: Position) -> dict[str, Any]:
    """The query for what comes after a position. Documents without a date of creation are in no list."""
    if position.created_at is None:
        return {"created_at": ONE_DATE}
    rank = _rank(position.order_id)
    ties: list[dict[str, Any]] = [{"_id": {"$lt": position.order_id}}]
    if lower := [code for code in RANKS if RANKS[code] < rank]:
        ties.append({"_id": {"$type": lower}})
    if rank == NUMBERS and not isnan(float(str(position.order_id))):
        ties.append({"_id": float("nan")})  # the lowest number, but smaller than none
    earlier = {"created_at": {"$lt": position.created_at}}
    return {"created_at": {"$lte": position.created_at, **ONE_DATE}, "$or": [earlier, *ties]}


def write_cursor(begin: Position, shown: list[dict[str, Any]]) -> str:
    """The cursor of what comes after the documents shown, which began at a position."""
    for skip, document in enumerate(reversed(shown)):
        encoded = _encode(Position(document["created_at"], document["_id"], skip))
        # U+FFFD: the `_id` is not UTF-8, and was read as another one.
        if len(encoded) <= LARGEST_CURSOR and "\ufffd" not in repr(document["_id"]):
            return encoded
    return _encode(Position(begin.created_at, begin.order_id, begin.skip + len(shown)))


def read_cursor(cursor: str) -> Position:
    """Raises: BadCursor."""
    try:
        position = Position(**bson.decode(base64.urlsafe_b64decode(cursor), _CODEC))
        _rank(position.order_id)
    except Exception as error:  # bson raises errors of many kinds for bytes that are not its own
        raise BadCursor from error
    has_time = position.created_at is None or isinstance(position.created_at, datetime | DatetimeMS)
    if not has_time or type(position.skip) is not int or not 0 <= position.skip <= MOST_SKIPPED:
        raise BadCursor
    return position


def _encode(position: Position) -> str:
    return base64.urlsafe_b64encode(bson.encode(asdict(position))).decode()


def _rank(value: Any) -> int:
    """Raises: KeyError: no `_id` is of this type."""
    return RANKS[int.from_bytes(bson.encode({"": value})[4:5], signed=True)]
