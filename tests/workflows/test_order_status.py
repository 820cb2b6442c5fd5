"""The search attribute of an order is never stale, and finds orders in Temporal."""

from __future__ import annotations

from app.messages import ApprovalDecision
from app.names import SEARCH_ATTRIBUTE
from app.temporal import IN_PROGRESS, ORDER_STATUS
from app.workflows.order import OrderWorkflow
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import Handle

LARGE = 50_000  # needs approval


async def shown(handle: Handle) -> str | None:
    return (await handle.describe()).typed_search_attributes.get(ORDER_STATUS)


async def found(shop: Shop, status: str) -> set[str]:
    query = f"{SEARCH_ATTRIBUTE} = '{status}' AND TaskQueue = '{shop.settings.task_queue}'"
    return {workflow.id async for workflow in shop.client.list_workflows(query)}


async def test_order_status_follows_waiting_progress_and_outcome(shop: Shop) -> None:
    await shop.stock(price=LARGE)
    async with FaultyGateways(shop, ReserveInventory=Fails()).worker():
        handle = await shop.start({"MUG": 1}, price=LARGE)
        await eventually(lambda: shown(handle), lambda status: status == "awaiting_approval")
        await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
        await eventually(lambda: shown(handle), lambda status: status == IN_PROGRESS)
        await handle.signal(OrderWorkflow.cancel)
        await handle.result()
    assert await shown(handle) == "cancelled"
    await eventually(lambda: found(shop, "cancelled"), lambda ids: ids == {handle.id})
    assert await found(shop, IN_PROGRESS) == set()


async def test_order_status_of_successful_order_costs_one_event(shop: Shop, worker: None) -> None:
    await shop.stock()
    handle = await shop.start()
    assert await shown(handle) in {IN_PROGRESS, "completed"}
    await handle.result()
    assert await shown(handle) == "completed"
    history = await handle.fetch_history()
    upserts = [event.upsert_workflow_search_attributes_event_attributes for event in history.events]
    assert [SEARCH_ATTRIBUTE in each.search_attributes.indexed_fields for each in upserts].count(True) == 1
