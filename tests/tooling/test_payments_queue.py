"""Make the changes of docs/make-it-yours.md for priorities and for a queue of payments, in a copy of the program."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from app.settings import Settings
from dev.servers import Server
from tests.kit.orders import CHARGING, UNSERVICEABLE, order_body
from tests.kit.program_copy import ProgramCopy, environment_of, python_blocks
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import CHARGE, REFUND

PRIORITY, FIELD, PAYMENTS, STEP_QUEUE, COMPENSATION_QUEUE, WORKERS = python_blocks(
    "make-it-yours.md", "Priorities, and a queue for payments"
)
LIMIT = '"max_task_queue_activities_per_second": 10'


@pytest.fixture
def environment(settings: Settings, temporal_server: Server) -> dict[str, str]:
    return environment_of(settings, temporal_server)


@pytest.fixture
def copy(tmp_path: Path, settings: Settings) -> ProgramCopy:
    """A copy with all changes of the section. The name of its queue is its own."""
    copy = ProgramCopy(tmp_path / "copy")
    name = f'"payments_{settings.task_queue}"'
    steps, calls = "app/workflows/steps.py", "app/workflows/calls.py"
    copy.replace_line("app/order_workflows.py", "priority=", PRIORITY)
    copy.insert_below(steps, "timed_out: Failure", FIELD)
    copy.insert_below(steps, 'code="payment_unavailable"', PAYMENTS.replace('"payments"', name))
    copy.insert_below(calls, "retry_policy=step.retry_policy", STEP_QUEUE)
    copy.replace_line(calls, "await call(step.compensation", COMPENSATION_QUEUE)
    copy.replace_line("worker.py", "async with build_worker(", WORKERS.replace('"payments"', name))
    return copy


async def test_orders_in_progress_need_no_patch(copy: ProgramCopy) -> None:
    assert await copy.replay_failures() == 0


async def test_orders_of_high_value_are_confirmed_first(
    copy: ProgramCopy, environment: dict[str, str], shop: Shop
) -> None:
    await shop.stock(price=1_000)
    copy.insert_below("worker.py", '"graceful_shutdown_timeout": GRACE,', '"max_concurrent_activities": 1,\n')
    async with copy.api(environment) as api:
        for quantity in [*[1] * 12, *[20] * 3]:
            await api.post("/orders", json=order_body(lines=[{"sku": "MUG", "quantity": quantity}]))
        async with copy.worker(environment):
            await eventually(lambda: statuses(shop), lambda found: found == {"completed": 15})
    confirmed = shop.mongo.orders.find().sort("steps.send_confirmation.at", 1)
    totals = [order["total"]["amount"] async for order in confirmed]
    assert totals[:6].count(20_000) == 3, totals


async def test_charge_and_refund_have_a_queue_of_their_own(
    copy: ProgramCopy, environment: dict[str, str], shop: Shop, settings: Settings
) -> None:
    await shop.stock()
    async with copy.api(environment) as api, copy.worker(environment):
        answer = await api.post("/orders", json=order_body(shipping_address=UNSERVICEABLE))
        await eventually(lambda: statuses(shop), lambda found: found == {"failed": 1})
    history = await shop.handle(answer.json()["order_id"]).fetch_history()
    scheduled = [event.activity_task_scheduled_event_attributes for event in history.events]
    queues = {each.activity_type.name: each.task_queue.name for each in scheduled if each.activity_id}
    assert {name for name, queue in queues.items() if queue != settings.task_queue} == {CHARGE, REFUND}


async def test_payments_beyond_the_limit_wait_while_other_steps_go_on(
    copy: ProgramCopy, environment: dict[str, str], shop: Shop
) -> None:
    await shop.stock()
    copy.replace("worker.py", LIMIT, LIMIT.replace("10", "0.0001"))
    async with copy.api(environment) as api, copy.worker(environment):
        for _ in range(3):
            await api.post("/orders", json=order_body())
        await eventually(lambda: statuses(shop), lambda found: found == {"completed": 1, CHARGING: 2})
        await api.post("/orders", json=order_body())
        await eventually(lambda: statuses(shop), lambda found: found == {"completed": 1, CHARGING: 3})


async def statuses(shop: Shop) -> Counter[str]:
    """How many orders have each status."""
    return Counter([order["status"] async for order in shop.mongo.orders.find()])
