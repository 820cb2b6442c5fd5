"""Many orders at once, and whatever comes to pass in any order: the guarantees hold at every instant (G3 to G7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError
from temporalio.testing import TimeSkipper

from app.models import FINAL, ApprovalDecision, OrderStatus
from app.mongo import Session
from app.workflows.order import OrderWorkflow
from tests.support import ADDRESS, Shop
from tests.workflows.faults import (
    CHARGE,
    CONFIRM,
    REFUND,
    RELEASE,
    RESERVE,
    SHIP,
    UNSHIP,
    Call,
    Handle,
    Hands,
    Services,
    T,
    Unavailable,
)

ACTIVITIES = [RESERVE, CHARGE, SHIP, CONFIRM, RELEASE, REFUND, UNSHIP]
FIRST_STOCK = 12
LARGE = 50_000  # needs an approval


class Trouble:
    """Calls that fail, as many as are planned: without effect, or with an effect whose answer is lost."""

    def __init__(self) -> None:
        self.plan: list[bool] = []

    async def __call__(self, call: Call[T]) -> T:
        if not self.plan:
            return await call()
        if happens := self.plan.pop():
            await call()
        raise Unavailable(happens)


class World:
    """Stock, orders and troubles of all examples, in the event loop of the servers."""

    def __init__(self, shop: Shop, skipper: TimeSkipper, loop: asyncio.AbstractEventLoop) -> None:
        self.shop = shop
        self.skipper = skipper
        self.troubles = {name: Trouble() for name in ACTIVITIES}
        self.hands = Hands(Services(shop, **self.troubles))
        self.examples = 0
        self._loop = loop

    def do(self, work: Awaitable[T]) -> T:
        async def doing() -> T:
            return await work

        return self._loop.run_until_complete(asyncio.wait_for(doing(), 30))


class RandomOrders(RuleBasedStateMachine):
    orders: Bundle[Handle] = Bundle("orders")
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.examples += 1
        self.sku = f"MUG-{self.world.examples}"
        self.stocked = FIRST_STOCK
        self.handles: list[Handle] = []
        self.shop = self.world.shop
        self.world.do(self.shop.stock(self.sku, FIRST_STOCK))

    @rule(
        target=orders,
        pieces=st.integers(1, 5),
        payment_method=st.sampled_from(["pm_card_ok", "pm_card_ok", "pm_card_declined", "pm_card_flaky"]),
        postal_code=st.sampled_from(["SW1Y 4JH", "SW1Y 4JH", "00000"]),
        price=st.sampled_from([1_000, 1_000, LARGE]),
    )
    def place(self, pieces: int, payment_method: str, postal_code: str, price: int) -> Handle:
        address = {**ADDRESS, "postal_code": postal_code}
        handle = self.world.do(
            self.shop.start({self.sku: pieces}, price=price, payment_method=payment_method, shipping_address=address)
        )
        self.handles.append(handle)
        return handle

    @rule(handle=orders)
    def cancel(self, handle: Handle) -> None:
        with suppress(RPCError):  # it has ended
            self.world.do(handle.signal(OrderWorkflow.cancel))

    @rule(handle=orders)
    def cancel_by_temporal(self, handle: Handle) -> None:
        self.world.do(handle.cancel())

    @rule(handle=orders, approved=st.booleans())
    def approve(self, handle: Handle, approved: bool) -> None:
        with suppress(RPCError):
            self.world.do(handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=approved)))

    @rule(pieces=st.integers(1, 5))
    def restock(self, pieces: int) -> None:
        self.world.do(self.shop.mongo.inventory.update_one({"_id": self.sku}, {"$inc": {"available": pieces}}))
        self.stocked += pieces

    @rule(activity=st.sampled_from(ACTIVITIES), plan=st.lists(st.booleans(), min_size=1, max_size=3))
    def trouble(self, activity: str, plan: list[bool]) -> None:
        self.world.troubles[activity].plan = plan

    @rule()
    def lose_the_worker(self) -> None:
        self.world.do(self.world.hands.stop())
        self.world.do(self._new_worker())

    @rule(seconds=st.sampled_from([0.02, 0.1]))
    def wait(self, seconds: float) -> None:
        self.world.do(asyncio.sleep(seconds))

    async def _new_worker(self) -> None:
        self.world.hands.start()

    @invariant()
    def stock_is_conserved(self) -> None:
        available, held = self.world.do(self._stock())
        assert available >= 0
        assert available + held == self.stocked

    @invariant()
    def money_is_taken_and_given_back_once(self) -> None:
        self.world.do(self._money())

    def teardown(self) -> None:
        """Time passes, what is broken is mended: every order ends, and all is right."""
        for trouble in self.world.troubles.values():
            trouble.plan = []
        self.world.do(self._all_end())
        self.stock_is_conserved()
        self.world.do(self._all_right())

    async def _stock(self) -> tuple[int, int]:
        mongo = self.shop.mongo

        async def look(session: Session) -> tuple[int, int]:
            """Both on one snapshot."""
            article = await mongo.inventory.find_one({"_id": self.sku}, session=session)
            assert article is not None
            reservations = mongo.reservations.find({"state": "reserved", "lines.sku": self.sku}, session=session)
            return article["available"], sum([r["lines"][0]["quantity"] async for r in reservations])

        return await mongo.run_transaction(look)

    async def _money(self) -> None:
        for handle in self.handles:
            order = await self.shop.order(handle)
            assert await self.shop.net_money(order.order_id) in {0, order.total.amount}

    async def _all_end(self) -> None:
        await asyncio.gather(*(self._end(handle) for handle in self.handles))

    async def _end(self, handle: Handle) -> None:
        with suppress(RPCError):  # it has ended
            await self.world.skipper.fast_forward(handle)
        with suppress(WorkflowFailureError):
            await handle.result()

    async def _all_right(self) -> None:
        for handle in self.handles:
            order = await self.shop.order(handle)
            assert order.status in FINAL
            shipped = order.status is OrderStatus.COMPLETED
            assert await self.shop.net_money(order.order_id) == (order.total.amount if shipped else 0)
            reservation: dict[str, Any] = await self.shop.mongo.reservations.find_one({"_id": order.order_id}) or {}
            assert (reservation.get("state") == "reserved") == shipped
            assert shipped or all(step.status != "done" for step in order.steps)


@pytest.fixture
async def world(shop: Shop, skipper: TimeSkipper) -> Any:
    world = World(shop, skipper, asyncio.get_running_loop())
    async with world.hands:
        world.hands.start()
        yield world


def test_whatever_happens_in_any_order(world: World) -> None:
    machine = type("Machine", (RandomOrders,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=6,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
