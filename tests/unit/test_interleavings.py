"""All interleavings of two attempts, a compensation and a crash (G3, G4), by driving the coroutines of `OrderStep`.

A coroutine pauses before each call to MongoDB or the gateway. A schedule chooses which coroutine runs next: its call
takes effect, and it runs to its next call. A late reply is a coroutine that is not chosen for a long time after its
call. A lost reply, or a killed worker, is a coroutine that is never chosen again; its activity may then be retried. Two
attempts overlap as they do after a start-to-close timeout.

Schedules that lead to the same situation continue in the same ways, so each situation is explored once. The schedules
are counted.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Generator, Hashable, Iterator
from copy import copy
from dataclasses import dataclass
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
from tests.kit.orders import BEFORE_CHARGE, CHARGING, order_document

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
    """A call to MongoDB or the gateway, at which a coroutine pauses until the schedule chooses it."""

    what: str
    change: StepChange | None = None


@types.coroutine
def call(what: str, change: StepChange | None = None) -> Generator[Request, Reply, Reply]:
    return (yield Request(what, change))


@cache
def order_with(status: StepStatus | None, stopped: bool, failure: Failure | None) -> Order:
    record = {"at": NOW, "detail": "-"}
    steps: dict[str, Any] = {name: {**record, "status": "done"} for name in BEFORE_CHARGE}
    if status:
        steps[STEP] = {**record, "status": status, "failure": failure and failure.model_dump()}
    return Order.from_document(order_document(status="compensating" if stopped else CHARGING, steps=steps))


class Script:
    """Runs an attempt or a compensation of `OrderStep`, and stands in for the repository and the gateway."""

    def __init__(self, name: str, step: Step, *, stops: bool) -> None:
        self._name = name
        self._stops = stops
        self._step = step(cast("OrderRepository", self), STEP, self._refund)
        self._seen: list[Reply] = []

    def after(self, replies: tuple[Reply, ...]) -> Request | str:
        """Return the call that follows these replies, or the outcome."""
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


@dataclass(eq=False)
class Actor:
    """An attempt or a compensation: the replies so far, and the call at which it pauses, or its outcome.

    `actor` and `crashed` return the same object for the same replies, so it is compared by identity.
    """

    name: str
    seen: tuple[Reply, ...]
    request: Request | None = None
    outcome: str | None = None

    @property
    def is_fresh(self) -> bool:
        return self.outcome is None and not self.seen

    def has(self, word: str) -> bool:
        return any(reply[0] == word for reply in self.seen)


@cache
def actor(name: str, step: Step, stops: bool, seen: tuple[Reply, ...] = ()) -> Actor:
    """The replies determine where a coroutine pauses, so it is run to each place once."""
    at = Script(name, step, stops=stops).after(seen)
    return Actor(name, seen, outcome=at) if isinstance(at, str) else Actor(name, seen, at)


@cache
def crashed(actor: Actor) -> Actor:
    return Actor(actor.name, actor.seen, outcome="crashed")


@dataclass
class World:
    """The state of MongoDB and the gateway for one step."""

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
        """Apply the effect of a call and return its reply."""
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
            raise Violation(f"{name}: a step that is done is recorded as failed")
        if after is not self.status and change.failure:
            self.failure = change.failure
        self.status = after

    # Each takes effect once per key.

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
class Situation:
    """The world and its actors between two choices.

    The choice `attempt 1` runs that attempt by one call, `crash: attempt 1` ends it there, and `retry: attempt 1`
    starts it again.
    """

    world: World
    step: Step
    actors: dict[str, Actor]
    crashed: Actor | None = None

    @classmethod
    def first(cls, scenario: Scenario, machine: Machine = next_status, step: Step = OrderStep) -> Self:
        names = (*ATTEMPTS, COMPENSATION)
        return cls(World(scenario, machine), step, {name: actor(name, step, scenario.stops) for name in names})

    def after(self, choice: str) -> Situation:
        verb, _, name = choice.rpartition(": ")
        world, has_crashed, before = self.world, self.crashed, self.actors[name]
        if verb == "crash":
            has_crashed = after = crashed(before)
        elif verb == "retry":
            after = actor(name, self.step, world.scenario.stops)
        else:
            assert before.request
            world = copy(world)
            reply = world.answer(name, before.request)
            after = actor(name, self.step, world.scenario.stops, (*before.seen, reply))
            self._check_outcome(world, after)
        return Situation(world, self.step, {**self.actors, name: after}, has_crashed)

    def choices(self) -> Iterator[str]:
        for name, actor in self.actors.items():
            if name == ATTEMPTS[1] and self.actors[ATTEMPTS[0]].is_fresh:
                continue  # attempt 1 starts first
            if actor.outcome is None:
                yield name
            if self.crashed is None and actor.outcome != "crashed":
                # Also after its end: the worker dies before it reports the outcome to Temporal.
                yield f"crash: {name}"
            if actor.outcome == "crashed":
                yield f"retry: {name}"

    def is_final(self) -> bool:
        """A crashed attempt need not be retried; a compensation is retried until it ends."""
        ended = all(actor.outcome for actor in self.actors.values())
        return ended and self.actors[COMPENSATION].outcome != "crashed"

    def key(self) -> Hashable:
        return self.world.key(), self.crashed, *self.actors.values()

    @staticmethod
    def _check_outcome(world: World, actor: Actor) -> None:
        """An attempt must report success exactly if its last reply was `done` for an order that was not stopped."""
        if actor.name in ATTEMPTS and actor.outcome:
            last = next(reply for reply in reversed(actor.seen) if reply[1] is not None)
            if (actor.outcome == "done") != (last[:2] == (StepStatus.DONE, False)):
                raise Violation(f"{actor.name} ended with {actor.outcome} after {actor.seen}")
            if world.status is None and not world.stopped:
                raise Violation(f"{actor.name} ended with {actor.outcome}, but that is not recorded")
            undisturbed = "declined" if world.scenario.declines else "done"
            if not world.compensating and actor.outcome != undisturbed:
                raise Violation(f"{actor.name} ended with {actor.outcome}, although nothing stopped it")

    def check(self) -> bool:
        """Check the final situation; return True for the one that a gateway without fencing cannot avoid."""
        world = self.world
        taken, left = bool(world.captured), world.captured - world.refunded
        if world.captured > 1 or world.refunded > world.captured:
            raise Violation("more than one effect")
        recorded = {True: StepStatus.COMPENSATED, False: StepStatus.FAILED}[taken]
        if left == 0 and world.status is recorded:
            return False
        crashed = self.crashed
        # Documented at `PaymentGateway.refund`: a gateway without fencing captured after the refund, for an attempt
        # whose worker died before the attempt refunded that capture (left) or recorded it (not left).
        late = not world.scenario.fences and crashed is not None and crashed.has("late capture")
        if late and crashed is not None and left == (not crashed.has("refunded")):
            return True
        raise Violation(f"{left=}, {taken=}, the record says {world.status}")


@dataclass
class Explored:
    """The number of schedules, and of those that end as only a gateway without fencing allows."""

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


# All schedules, and those in which a worker dies before it refunds a late capture of a gateway without fencing.
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


# Mutations that the exploration must catch: of a transition of the state machine ...
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
# ... and of a line of `OrderStep`.
LATE = "if record.status is not StepStatus.DONE and await self._reverse(order_id):"
LINES: dict[str, tuple[str, ...]] = {
    "the record is not read before the call": ("if record is None and stop_reason is None:", "if stop_reason is None:"),
    "the stop reason is not read before the call": ("if record is None and stop_reason is None:", "if record is None:"),
    "a late attempt keeps its effect": (LATE, "if False:"),
    "an attempt in time reverses its effect": (LATE, "if await self._reverse(order_id):"),
    "a late attempt does not record its reversal": (
        f"{LATE}\n                    await self._record(order_id, StepEvent.COMPENSATED)",
        f"{LATE}\n                    pass",
    ),
    "a stopped order continues": ("if stop_reason is not None:", "if False:"),
    "a fenced step continues": (
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
    "the gateway is called before the fence is written": (
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
    "the compensation of an unrecorded effect is not recorded": ("if had_effect or record", "if record"),
    "a compensation leaves no record": ("if had_effect or record.status is StepStatus.DONE:", "if False:"),
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
