"""Thin out combinatorial tests: a normal run has chosen combinations, such as every pair; `--exhaustive` has all."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

import pytest

Combination = tuple[Hashable, ...]


def covering_all_pairs(cases: Sequence[Combination]) -> set[Combination]:
    """A few cases that contain each pair of values that any case contains, chosen greedily."""
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    missing = set[Any]().union(*pairs.values())
    chosen = set()
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        chosen.add(best)
    return chosen


def case(*values: Any, chosen: bool) -> Any:
    """The parameters of one test. A normal run leaves out those that are not chosen."""
    return pytest.param(*values, marks=() if chosen else pytest.mark.exhaustive)
