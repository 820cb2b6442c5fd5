"""Fairness: on a busy worker, customers take turns, so the orders of one do not hold up those of the others."""

from __future__ import annotations

import asyncio

import pytest
from temporalio import activity

from tests.kit.faults import Call, FaultyGateways, T
from tests.kit.shop import Shop


@pytest.mark.parametrize(
    ("many", "few", "at_once"),
    [(12, 2, 2), pytest.param(150, 5, 100, marks=pytest.mark.exhaustive)],  # 100 activities at once: the default
)
async def test_few_orders_behind_many_of_another_customer_complete_before_most_of_them(
    shop: Shop, many: int, few: int, at_once: int
) -> None:
    await shop.stock(available=2 * (many + few))
    confirmed: list[str | None] = []

    async def note_and_confirm(call: Call[T]) -> T:
        confirmed.append(activity.info().workflow_id)
        return await call()

    first = [await shop.start(customer_id="has-many") for _ in range(many)]
    late = [await shop.start(customer_id="has-few") for _ in range(few)]
    async with FaultyGateways(shop, SendConfirmation=note_and_confirm).worker(max_concurrent_activities=at_once):
        await asyncio.gather(*(handle.result() for handle in [*first, *late]))

    last = max(confirmed.index(handle.id) for handle in late)
    assert len(confirmed[last:]) > many / 2, f"{last} orders were confirmed before the last of {few}"


async def test_history_names_one_of_256_groups_of_customers_and_no_customer(shop: Shop) -> None:
    handle = await shop.start(customer_id="ada-lovelace")
    history = await handle.fetch_history()
    key = history.events[0].workflow_execution_started_event_attributes.priority.fairness_key
    assert 0 <= int(key, 16) < 256
    assert "ada-lovelace" not in history.to_json()
    await handle.terminate()
