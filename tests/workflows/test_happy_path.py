"""Orders complete."""

from __future__ import annotations

from temporalio.api.enums.v1 import EventType

from app.domain import OrderStatus, StepName
from app.workflows import steps
from tests.kit.orders import UNSERVICEABLE, steps_of
from tests.kit.shop import Shop
from tests.kit.workflows import ACTIVITIES, activities_of


async def test_order_with_valid_input_completes(shop: Shop, worker: None) -> None:
    await shop.stock(available=10)
    handle = await shop.start({"MUG": 3})
    result = await handle.result()
    order = await shop.order(handle)

    assert result.status is order.status is OrderStatus.COMPLETED
    assert steps_of(order) == dict.fromkeys(StepName, "done")
    assert (await shop.available(), await shop.held()) == (7, 3)
    assert await shop.net_money(order.order_id) == order.total.amount == 3_000
    assert await activities_of(handle) == ACTIVITIES


async def test_timeouts_and_retries_match_the_steps_table(shop: Shop, worker: None) -> None:
    await shop.stock()
    handle = await shop.start(shipping_address=UNSERVICEABLE)
    await handle.result()
    history = await handle.fetch_history()
    told_of = [
        event.activity_task_scheduled_event_attributes
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    scheduled = {options.activity_type.name: options for options in told_of}
    for step in steps.REVERSIBLE_STEPS:
        options = scheduled[steps.activity_name(step.activity)]
        assert options.start_to_close_timeout.ToTimedelta() == step.start_to_close
        assert options.schedule_to_close_timeout.ToTimedelta() == step.schedule_to_close
        assert options.retry_policy.maximum_interval.ToTimedelta() == step.retry_policy.maximum_interval
        assert step.compensation is not None
        options = scheduled[steps.activity_name(step.compensation)]
        assert options.retry_policy.maximum_attempts == steps.RETRY_BEFORE_ATTENTION.maximum_attempts
        assert not options.schedule_to_close_timeout.ToTimedelta()  # retried forever
