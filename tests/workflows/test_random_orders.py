"""Random orders, faults, cancels and resets: the guarantees hold at every instant (G3 to G7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError
from temporalio.testing import TimeSkipper

from app.domain import TERMINAL, OrderStatus, StepName, StepStatus
from app.gateways import Unavailable
from app.messages import ApprovalDecision
from app.mongo import Session
from app.names import WORKFLOW_ID_PREFIX
from app.workflows.order import OrderWorkflow
from tests.kit.faults import Call, FaultyGateways, T
from tests.kit.orders import ADDRESS
from tests.kit.shop import Shop
from tests.kit.workflows import (
    CHARGE,
    CONFIRM,
    REFUND,
    RELEASE,
    RESERVE,
    SHIP,
    UNSHIP,
    Handle,
    RestartableWorker,
    reset,
    reset_points,
)

ACTIVITIES = [RESERVE, CHARGE, SHIP, CONFIRM, RELEASE, REFUND, UNSHIP]
FIRST_STOCK = 12
LARGE = 50_000  # needs approval


class PlannedFaults:
    """Makes the planned number of calls fail. True in `plan` stands for a lost reply, False for no effect."""

    def __init__(self) -> None:
        self.plan: list[bool] = []

    async def __call__(self, call: Call[T]) -> T:
        if not self.plan:
            return await call()
        if took_effect := self.plan.pop():
            await call()
        raise Unavailable(took_effect)


class SharedState:
    """State shared by all examples: the shop, its faults and its worker, on the event loop of the servers."""

    def __init__(self, shop: Shop, skipper: TimeSkipper, loop: asyncio.AbstractEventLoop) -> None:
        self.shop = shop
        self.skipper = skipper
        self.faults = {name: PlannedFaults() for name in ACTIVITIES}
        self.restartable = RestartableWorker(FaultyGateways(shop, **self.faults))
        self.examples = 0
        self._loop = loop

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self._loop.run_until_complete(asyncio.wait_for(awaited(), 30))


class RandomOrders(RuleBasedStateMachine):
    orders: Bundle[Handle] = Bundle("orders")
    shared: SharedState

    def __init__(self) -> None:
        super().__init__()
        self.shared.examples += 1
        self.sku = f"MUG-{self.shared.examples}"
        self.stocked = FIRST_STOCK
        self.handles: list[Handle] = []
        self.shop = self.shared.shop
        self.shared.run(self.shop.stock(self.sku, FIRST_STOCK))

    @rule(
        target=orders,
        quantity=st.integers(1, 5),
        payment_method=st.sampled_from(["pm_card_ok", "pm_card_ok", "pm_card_declined", "pm_card_flaky"]),
        postal_code=st.sampled_from(["SW1Y 4JH", "SW1Y 4JH", "00000"]),
        price=st.sampled_from([1_000, 1_000, LARGE]),
    )
    def place(self, quantity: int, payment_method: str, postal_code: str, price: int) -> Handle:
        address = {**ADDRESS, "postal_code": postal_code}
        handle = self.shared.run(
            self.shop.start({self.sku: quantity}, price=price, payment_method=payment_method, shipping_address=address)
        )
        self.handles.append(handle)
        return handle

    @rule(handle=orders)
    def cancel(self, handle: Handle) -> None:
        with suppress(RPCError):  # already closed
            self.shared.run(handle.signal(OrderWorkflow.cancel))

    @rule(handle=orders)
    def cancel_by_temporal(self, handle: Handle) -> None:
        self.shared.run(handle.cancel())

    @rule(handle=orders)
    def cancel_by_api(self, handle: Handle) -> None:
        order_id = handle.id.removeprefix(WORKFLOW_ID_PREFIX)
        self.shared.run(self.shop.orders.request_cancellation(order_id, None))

    @rule(handle=orders, point=st.integers(0, 10))
    def reset(self, handle: Handle, point: int) -> None:
        points = self.shared.run(reset_points(handle))
        if points:
            self.shared.run(reset(handle, points[point % len(points)]))

    @rule(handle=orders, approved=st.booleans())
    def approve(self, handle: Handle, approved: bool) -> None:
        with suppress(RPCError):
            self.shared.run(handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=approved)))

    @rule(quantity=st.integers(1, 5))
    def restock(self, quantity: int) -> None:
        self.shared.run(self.shop.mongo.inventory.update_one({"_id": self.sku}, {"$inc": {"available": quantity}}))
        self.stocked += quantity

    @rule(activity=st.sampled_from(ACTIVITIES), plan=st.lists(st.booleans(), min_size=1, max_size=3))
    def fault(self, activity: str, plan: list[bool]) -> None:
        self.shared.faults[activity].plan = plan

    @rule()
    def replace_worker(self) -> None:
        self.shared.run(self.shared.restartable.stop())
        self.shared.run(self._start_worker())

    @rule(seconds=st.sampled_from([0.02, 0.1]))
    def wait(self, seconds: float) -> None:
        self.shared.run(asyncio.sleep(seconds))

    async def _start_worker(self) -> None:
        self.shared.restartable.start()

    @invariant()
    def stock_is_conserved(self) -> None:
        available, held = self.shared.run(self._stock())
        assert available >= 0
        assert available + held == self.stocked

    @invariant()
    def money_is_captured_and_refunded_once(self) -> None:
        self.shared.run(self._check_money())

    def teardown(self) -> None:
        """End all faults and skip time, until every order is final. Then check all guarantees."""
        for fault in self.shared.faults.values():
            fault.plan = []
        self.shared.run(self._finish_all())
        self.stock_is_conserved()
        self.shared.run(self._check_final_orders())

    async def _stock(self) -> tuple[int, int]:
        mongo = self.shop.mongo

        async def look(session: Session) -> tuple[int, int]:
            """Read both in one snapshot."""
            product = await mongo.inventory.find_one({"_id": self.sku}, session=session)
            assert product is not None
            reserved = {"steps.reserve_inventory.status": "done", "steps.reserve_inventory.quantities.sku": self.sku}
            orders = [order async for order in mongo.orders.find(reserved, session=session)]
            return product["available"], sum(
                o["steps"]["reserve_inventory"]["quantities"][0]["quantity"] for o in orders
            )

        return await mongo.run_transaction(look)

    async def _check_money(self) -> None:
        for handle in self.handles:
            order = await self.shop.order(handle)
            assert await self.shop.net_money(order.order_id) in {0, order.total.amount}

    async def _finish_all(self) -> None:
        await asyncio.gather(*(self._finish(handle) for handle in self.handles))

    async def _finish(self, handle: Handle) -> None:
        with suppress(RPCError):  # already closed
            await self.shared.skipper.fast_forward(handle)
        with suppress(WorkflowFailureError):
            await handle.result()

    async def _check_final_orders(self) -> None:
        for handle in self.handles:
            order = await self.shop.order(handle)
            assert order.status in TERMINAL
            shipped = order.status is OrderStatus.COMPLETED
            assert await self.shop.net_money(order.order_id) == (order.total.amount if shipped else 0)
            reservation = order.step(StepName.RESERVE_INVENTORY)
            assert bool(reservation and reservation.status is StepStatus.DONE) == shipped
            assert shipped or all(step.status != "done" for step in order.steps)


@pytest.fixture
async def shared(shop: Shop, skipper: TimeSkipper) -> Any:
    shared = SharedState(shop, skipper, asyncio.get_running_loop())
    async with shared.restartable:
        shared.restartable.start()
        yield shared


def test_random_orders_faults_and_resets_keep_the_guarantees(shared: SharedState, exhaustive: bool) -> None:
    machine = type("Machine", (RandomOrders,), {"shared": shared})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30 if exhaustive else 4,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
