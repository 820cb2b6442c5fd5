"""Every schedule of two attempts, a compensation and a crash (G3, G4), by driving the coroutines of `OrderStep`.

A coroutine stops before each call to MongoDB or the gateway. A schedule says which one goes on: its call then takes
effect, and the coroutine runs to its next call. A late reply is a coroutine that does not go on for long after a call;
a lost reply, or a killed worker, is one that never does, and its activity may then be tried again. Two attempts overlap
as they do when the first one runs into its timeout.

Schedules that lead to one situation have one future, so each situation is tried once, and the schedules are counted.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Self, cast

import pytest
from temporalio.exceptions import ApplicationError

from app.activities import order_step
from app.activities.order_step import OrderStep
from app.domain import Attempt, Failure, Order, StepChange, StepEvent, StepName, StepRecord, StepStatus, next_status
from app.gateways import Declined
from app.orders import OrderRepository
from tests.kit.orders import order_document

STEP = StepName.CHARGE_PAYMENT
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ATTEMPTS = ("attempt 1", "attempt 2")
COMPENSATION = "compensation"


Step = Callable[..., OrderStep]
Machine = Callable[[StepStatus | None, StepEvent], StepStatus | None]
# Of MongoDB: the step's status, whether the order was stopped, and why the step failed. Of the gateway: what it did.
State = tuple[StepStatus | None, bool, Failure | None]
Reply = State | tuple[str, None, None]


class Violation(Exception):
    """A guarantee does not hold; the message begins with the schedule."""


@dataclass(frozen=True)
class Scenario:
    fences: bool  # the gateway refuses a charge after the refund
    declines: bool = False  # the gateway declines every charge
    stops: bool = True  # the order is `compensating` before the fence is written, as the saga does it


SCENARIOS = {
    "declining gateway": Scenario(fences=True, declines=True),
    # The fence alone must hold as well.
    "plain gateway, order not stopped": Scenario(fences=False, stops=False),
    "fencing gateway, order not stopped": Scenario(fences=True, stops=False),
    "plain gateway": Scenario(fences=False),
    "fencing gateway": Scenario(fences=True),
}


@dataclass(frozen=True)
class Request:
    """A call to MongoDB or the gateway, where a coroutine waits until the schedule lets it go on."""

    what: str
    change: StepChange | None = None


@types.coroutine
def call(what: str, change: StepChange | None = None) -> Generator[Request, Reply, Reply]:
    return (yield Request(what, change))


@cache
def order_with(status: StepStatus | None, stopped: bool, failure: Failure | None) -> Order:
    record = {"at": NOW, "detail": "-"}
    steps: dict[str, Any] = {StepName.RESERVE_INVENTORY: {**record, "status": "done"}}
    if status:
        steps[STEP] = {**record, "status": status, "failure": failure and failure.model_dump()}
    return Order.from_document(order_document(status="compensating" if stopped else "reserved", steps=steps))


class Script:
    """An attempt or a compensation: the code of `OrderStep`, as the repository and the gateway that it calls."""

    def __init__(self, name: str, step: Step, *, stops: bool) -> None:
        self._name = name
        self._stops = stops
        self._step = step(cast("OrderRepository", self), STEP, self._refund)
        self._seen: list[Reply] = []

    def after(self, replies: tuple[Reply, ...]) -> Request | str:
        """The call that follows these replies, or how it ended."""
        coroutine = self._step.perform("order", self._charge) if self._name in ATTEMPTS else self._compensate()
        try:
            request: Request = coroutine.send(None)
            for reply in replies:
                self._seen.append(reply)
                request = coroutine.send(reply)
        except StopIteration:
            return "done"
        except ApplicationError as error:
            return str(error.type)
        except (AssertionError, AttributeError, TypeError) as error:
            raise Violation(f"{self._name}: {error!r}") from error
        finally:
            coroutine.close()
        return request

    async def _compensate(self) -> None:
        if self._stops:
            await call("stop")
        await self._step.compensate("order")

    # --- the repository

    async def get(self, order_id: str) -> Order:
        return order_with(*cast("State", await call("get")))

    async def change_step(self, order_id: str, change: StepChange) -> tuple[StepRecord, Failure | None]:
        order = order_with(*cast("State", await call("change", change)))
        record = order.step(STEP)
        if record is None:
            raise Violation(f"{self._name}: no record after {change.event}")
        return record, order.stop_reason

    # --- the gateway

    async def _charge(self, order: Order) -> str:
        if self._seen != [(None, False, None)]:
            raise Violation(f"{self._name} charges although it read {self._seen}")
        if (await call("charge"))[0] == "declined":
            raise Declined("no")
        return "charged"

    async def _refund(self, key: str) -> bool:
        needless = StepStatus.DONE if self._name in ATTEMPTS else StepStatus.COMPENSATED
        if any(reply[0] is needless for reply in self._seen[-1:]):
            raise Violation(f"{self._name} refunds although it read {self._seen}")
        return (await call("refund"))[0] == "refunded"


@cache
def progress(name: str, step: Step, stops: bool, seen: tuple[Reply, ...]) -> Request | str:
    """The replies decide where a coroutine is, so it is run to each place once."""
    return Script(name, step, stops=stops).after(seen)


@dataclass
class World:
    """MongoDB and the gateway, as far as one step needs them."""

    scenario: Scenario
    machine: Machine
    status: StepStatus | None = None
    failure: Failure | None = None
    compensating: bool = False  # a compensation has had an effect
    stopped: bool = False
    captured: int = 0
    refunded: int = 0
    closed: bool = False

    def key(self) -> Hashable:
        return self.status, self.failure, self.compensating, self.stopped, self.captured, self.refunded, self.closed

    def answer(self, name: str, request: Request) -> Reply:
        """Let a call take effect."""
        match request.what:
            case "stop":
                self.stopped = self.compensating = True
                return "stopped", None, None
            case "change":
                assert request.change
                self._change(name, request.change)
            case "charge":
                return self._charge(), None, None
            case "refund":
                return self._refund(), None, None
        return self.status, self.stopped, self.failure

    def _change(self, name: str, change: StepChange) -> None:
        self.compensating |= name == COMPENSATION
        after = self.machine(self.status, change.event)
        if self.status is StepStatus.DONE and after is StepStatus.FAILED:
            raise Violation(f"{name}: what was done says that it failed")
        if after is not self.status and change.failure:
            self.failure = change.failure
        self.status = after

    # Each act once per key.

    def _charge(self) -> str:
        if self.scenario.declines or (self.scenario.fences and self.closed):
            return "declined"
        self.captured = 1
        return "late capture" if self.closed else "captured"

    def _refund(self) -> str:
        self.closed = True
        self.refunded = self.captured
        return "refunded" if self.captured else "nothing to refund"


@dataclass(frozen=True)
class Actor:
    """An attempt or a compensation: the replies that it had, and the call at which it waits, or its outcome."""

    name: str
    at: Request | str
    seen: tuple[Reply, ...] = ()

    @property
    def outcome(self) -> str | None:
        return self.at if isinstance(self.at, str) else None

    @property
    def is_fresh(self) -> bool:
        return self.outcome is None and not self.seen

    def has(self, word: str) -> bool:
        return any(reply[0] == word for reply in self.seen)

    def key(self) -> Hashable:
        return self.name, self.outcome, self.seen


@dataclass(frozen=True)
class Situation:
    """The world and its actors between two choices.

    `attempt 1` goes on by one call; `crash: attempt 1` ends it there, and `retry: attempt 1` begins it again.
    """

    world: World
    step: Step
    actors: dict[str, Actor]
    crashed: Actor | None = None

    @classmethod
    def first(cls, scenario: Scenario, machine: Machine = next_status, step: Step = OrderStep) -> Self:
        names = (*ATTEMPTS, COMPENSATION)
        return cls(World(scenario, machine), step, {n: Actor(n, progress(n, step, scenario.stops, ())) for n in names})

    def after(self, choice: str) -> Situation:
        verb, _, name = choice.rpartition(": ")
        world, crashed, actor = self.world, self.crashed, self.actors[name]
        if verb == "crash":
            crashed = actor = replace(actor, at="crashed")
        elif verb == "retry":
            actor = Actor(name, progress(name, self.step, world.scenario.stops, ()))
        else:
            assert isinstance(actor.at, Request)
            world = replace(world)
            seen = (*actor.seen, world.answer(name, actor.at))
            actor = Actor(name, progress(name, self.step, world.scenario.stops, seen), seen)
            self._check_outcome(world, actor)
        return Situation(world, self.step, {**self.actors, name: actor}, crashed)

    def choices(self) -> Iterator[str]:
        for name, actor in self.actors.items():
            if name == ATTEMPTS[1] and self.actors[ATTEMPTS[0]].is_fresh:
                continue  # the first one begins first
            if actor.outcome is None:
                yield name
            if self.crashed is None and actor.outcome != "crashed":
                # Also after its end: the worker dies before Temporal hears of it.
                yield f"crash: {name}"
            if actor.outcome == "crashed":
                yield f"retry: {name}"

    def is_final(self) -> bool:
        """An attempt that crashed need not be tried again; a compensation is, until it ends."""
        outcomes = {name: actor.outcome for name, actor in self.actors.items()}
        return None not in outcomes.values() and outcomes[COMPENSATION] != "crashed"

    def key(self) -> Hashable:
        crashed = self.crashed and self.crashed.key()
        return self.world.key(), crashed, tuple(actor.key() for actor in self.actors.values())

    @staticmethod
    def _check_outcome(world: World, actor: Actor) -> None:
        """An attempt reports success if, and only if, its last reply said `done` of an order that goes on."""
        if actor.name in ATTEMPTS and actor.outcome:
            last = next(reply for reply in reversed(actor.seen) if reply[1] is not None)
            if (actor.outcome == "done") != (last[:2] == (StepStatus.DONE, False)):
                raise Violation(f"{actor.name} ended with {actor.outcome} after {actor.seen}")
            if world.status is None and not world.stopped:
                raise Violation(f"{actor.name} ended with {actor.outcome}, and nothing says so")
            undisturbed = "declined" if world.scenario.declines else "done"
            if not world.compensating and actor.outcome != undisturbed:
                raise Violation(f"{actor.name} ended with {actor.outcome}, and nothing stopped it")

    def check(self) -> bool:
        """The final situation; whether it is the one that a plain gateway cannot avoid."""
        world = self.world
        taken, left = bool(world.captured), world.captured - world.refunded
        if world.captured > 1 or world.refunded > world.captured:
            raise Violation("more than one effect")
        recorded = {True: StepStatus.COMPENSATED, False: StepStatus.FAILED}[taken]
        if left == 0 and world.status is recorded:
            return False
        crashed = self.crashed
        # Documented at `PaymentGateway.refund`: the plain gateway acted after its refund, for an attempt whose worker
        # died before that attempt refunded (left), or recorded (not left) what it did.
        late = not world.scenario.fences and crashed is not None and crashed.has("late capture")
        if late and crashed is not None and left == (not crashed.has("refunded")):
            return True
        raise Violation(f"{left=}, {taken=}, the record says {world.status}")


@dataclass
class Explored:
    """How many schedules there are, and how many end as only a plain gateway lets them."""

    schedules: int = 0
    leaks: int = 0

    def __add__(self, other: Explored) -> Explored:
        return Explored(self.schedules + other.schedules, self.leaks + other.leaks)


def explore(scenario: Scenario, **mutation: Any) -> Explored:
    known: dict[Hashable, Explored] = {}

    def following(situation: Situation) -> Explored:
        key = situation.key()
        if key not in known:
            total = Explored(1, situation.check()) if situation.is_final() else Explored()
            for choice in situation.choices():
                try:
                    total += following(situation.after(choice))
                except Violation as violation:
                    raise Violation(f"{choice} > {violation}") from None
            known[key] = total
        return known[key]

    return following(Situation.first(scenario, **mutation))


@pytest.fixture(autouse=True)
def _no_activity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_step, "current_attempt", lambda: Attempt(NOW, 1))


# Schedules, and among them those in which the plain gateway's worker dies before its own refund.
COUNTS = {
    "declining gateway": Explored(30_106),
    "plain gateway, order not stopped": Explored(1_208_780, leaks=33),
    "fencing gateway, order not stopped": Explored(791_872),
    "plain gateway": Explored(3_020_385, leaks=39),
    "fencing gateway": Explored(2_016_026),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_exploring_all_schedules_finds_only_known_leaks(name: str) -> None:
    assert explore(SCENARIOS[name]) == COUNTS[name]


# Each guard taken away or turned around: an arm of the state machine...
MACHINES: dict[str, tuple[StepEvent, Callable[[StepStatus | None], StepStatus | None]]] = {
    "a success overwrites the fence": (StepEvent.SUCCEEDED, lambda _: StepStatus.DONE),
    "a success overwrites a compensation": (
        StepEvent.SUCCEEDED,
        lambda status: StepStatus.DONE if status is StepStatus.COMPENSATED else status or StepStatus.DONE,
    ),
    "a success is not recorded": (StepEvent.SUCCEEDED, lambda status: status or StepStatus.FAILED),
    "a decline overwrites a success": (StepEvent.DECLINED, lambda _: StepStatus.FAILED),
    "a decline is recorded as done": (StepEvent.DECLINED, lambda status: status or StepStatus.DONE),
    "a fence overwrites a success": (StepEvent.FENCED, lambda _: StepStatus.FAILED),
    "a fence counts as a compensation": (StepEvent.FENCED, lambda _: StepStatus.COMPENSATED),
    "a fence lets an attempt pass": (StepEvent.FENCED, lambda status: status or StepStatus.DONE),
    "a compensation is not recorded": (StepEvent.COMPENSATED, lambda status: status),
    "a compensation of a late effect is not recorded": (
        StepEvent.COMPENSATED,
        lambda status: status if status is StepStatus.FAILED else StepStatus.COMPENSATED,
    ),
}
# ... or a line of `OrderStep`.
LATE = "if record.status is not StepStatus.DONE and await self._reverse(order_id):"
LINES: dict[str, tuple[str, ...]] = {
    "no look at the record before the call": ("if record is None and stop_reason is None:", "if stop_reason is None:"),
    "no look at the order before the call": ("if record is None and stop_reason is None:", "if record is None:"),
    "a late attempt keeps its effect": (LATE, "if False:"),
    "an attempt in time takes its effect back": (LATE, "if await self._reverse(order_id):"),
    "a late attempt does not record that it took back": (
        f"{LATE}\n                    await self._record(order_id, StepEvent.COMPENSATED)",
        f"{LATE}\n                    pass",
    ),
    "a stopped order goes on": ("if stop_reason is not None:", "if False:"),
    "a fenced step goes on": (
        "        if record.status is not StepStatus.DONE:\n            raise",
        "        if False:\n            raise",
    ),
    "a decline is not recorded": (
        "record, stop_reason = await self._record(order_id, StepEvent.DECLINED, failure.message, failure)",
        "raise declined_error(failure)",
    ),
    "no fence": (
        'record, _ = await self._record(order_id, StepEvent.FENCED, "stopped before it took effect")',
        "record = (await self._orders.get(order_id)).step(self._name) or types.SimpleNamespace(status=None)",
    ),
    "the gateway before the fence": (
        "        try:\n            record, _ =",
        "        had_effect = await self._reverse(order_id)\n        try:\n            record, _ =",
        "            had_effect = await self._reverse(order_id)\n            if",
        "            if",
    ),
    "no compensation after a fence": (
        "if record.status is not StepStatus.COMPENSATED:",
        "if record.status is StepStatus.DONE:",
    ),
    "a compensation is repeated": ("if record.status is not StepStatus.COMPENSATED:", "if True:"),
    "an effect that nobody recorded is not recorded": ("if had_effect or record", "if record"),
    "no record of a compensation": ("if had_effect or record.status is StepStatus.DONE:", "if False:"),
}


@pytest.mark.parametrize("mutation", MACHINES)
def test_mutated_state_machine_is_caught(mutation: str) -> None:
    mutated, after = MACHINES[mutation]

    def machine(status: StepStatus | None, event: StepEvent) -> StepStatus | None:
        return after(status) if event is mutated else next_status(status, event)

    _is_caught(machine=machine)


@pytest.mark.parametrize("mutation", LINES)
def test_mutated_step_is_caught(mutation: str) -> None:
    source = inspect.getsource(OrderStep)
    for line, replacement in zip(LINES[mutation][::2], LINES[mutation][1::2], strict=True):
        assert source.count(line) == 1, "the line is gone: mutate the one that took its place"
        source = source.replace(line, replacement)
    names = {**vars(order_step), "types": types}
    exec("from __future__ import annotations\n" + source, names)  # noqa: S102
    _is_caught(step=names["OrderStep"])


def _is_caught(**mutation: Any) -> None:
    caught = None
    for name, scenario in SCENARIOS.items():
        try:
            explore(scenario, **mutation)
        except Violation as violation:
            caught = f"{name}: {violation}"
            break
    print(caught)
    assert caught
