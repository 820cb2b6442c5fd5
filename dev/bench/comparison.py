"""A line of the table: two things, measured in turns."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self, TypeVar

DERIVED = ("ratios", "ratio", "is_met")

A = TypeVar("A")
B = TypeVar("B")


async def in_turns(
    rounds: int, first: Callable[[], Awaitable[A]], second: Callable[[], Awaitable[B]]
) -> tuple[list[A], list[B]]:
    """Measure first, second, first, second ...: a machine that becomes slower slows both of a pair."""
    firsts, seconds = [], []
    for _ in range(rounds):
        firsts.append(await first())
        seconds.append(await second())
    return firsts, seconds


@dataclass(frozen=True)
class Comparison:
    """What is measured, against what, and what their ratio should be.

    `measured[n]` and `against[n]` come from the same turn. Where `against` is a fixed limit, it is repeated.
    """

    title: str
    unit: str
    measured: Sequence[float]
    against: Sequence[float]
    names: tuple[str, str]  # of the two
    target: float  # of the ratio
    at_least: bool = False  # else at most
    note: str = ""
    details: dict[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """With what follows from the measurements."""
        return asdict(self) | {name: getattr(self, name) for name in DERIVED}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        given = {name: value for name, value in found.items() if name not in DERIVED}
        return cls(**given | {"names": tuple(found["names"])})

    @property
    def ratios(self) -> list[float]:
        return [one / other if other else float("inf") for one, other in zip(self.measured, self.against, strict=True)]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def is_met(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target
