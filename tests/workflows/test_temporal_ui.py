"""Temporal's Web UI says which order a workflow is for, where it stands and why, without personal data (G11)."""

from __future__ import annotations

import re
from functools import partial

from temporalio.api.sdk.v1 import WorkflowMetadata

from app.domain import OrderStatus
from app.messages import ApprovalDecision
from app.names import SEARCH_ATTRIBUTE, WORKFLOW_ID_PREFIX
from app.workflows.order import OrderWorkflow
from app.workflows.steps import COMPENSATABLE_STEPS
from dev.stack import ROOT
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.orders import EMAIL, NAME, STREET, UNSERVICEABLE
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import Handle

LARGE = 50_000  # needs approval


async def metadata(handle: Handle) -> WorkflowMetadata:
    """Ask the workflow what the Web UI asks it."""
    answer: WorkflowMetadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return answer


async def summaries(shop: Shop, handle: Handle) -> list[str]:
    """The summaries of the activities in the history."""
    events = (await handle.fetch_history()).events
    scheduled = [event for event in events if event.HasField("activity_task_scheduled_event_attributes")]
    found = [event.user_metadata.summary for event in scheduled]
    return [(await shop.client.data_converter.decode([each]))[0] for each in found if each.data]


async def test_ui_shows_the_order_its_progress_and_the_reason(shop: Shop, worker: None) -> None:
    desk = shop.settings.model_copy(update={"order_desk_url": "http://127.0.0.1:8000"})
    shop = Shop(shop.mongo, desk, shop.client)
    await shop.stock(price=LARGE)
    handle = await shop.start({"MUG": 1}, price=LARGE, shipping_address=UNSERVICEABLE)
    await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
    order_id = handle.id.removeprefix(WORKFLOW_ID_PREFIX)

    description = await handle.describe()
    assert await description.static_summary() == f"{order_id}: products: 1, needs approval"
    assert await description.static_details() == f"[Open the order](http://127.0.0.1:8000/#/orders/{order_id})"
    waiting = await eventually(lambda: metadata(handle), lambda now: "Waits" in now.current_details)
    assert waiting.current_details.startswith("**awaiting_approval**\n\nWaits for approval until 20")
    definition = waiting.definition
    handlers = [*definition.signal_definitions, *definition.update_definitions, *definition.query_definitions]
    own = {handler.name: handler.description for handler in handlers if not handler.name.startswith("__")}
    assert own.keys() == {"cancel", "approve", "change_shipping_address", "status"}
    assert all(own.values())

    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    await handle.result()
    details = (await metadata(handle)).current_details
    assert details.split("\n\n") == [
        "**failed**",
        "Stopped by: address_unserviceable",
        f"Compensations done: {', '.join(step.name for step in reversed(COMPENSATABLE_STEPS))}",
    ]
    shown = await summaries(shop, handle)
    assert shown == [
        *["awaiting_approval"] * 2,
        "compensating: address_unserviceable",
        *["after address_unserviceable"] * len(COMPENSATABLE_STEPS),
        "failed",
    ]
    for personal in (EMAIL, NAME, STREET, UNSERVICEABLE["city"]):
        assert personal not in f"{description.raw_description}{shown}{details}"


async def test_each_saved_view_of_the_docs_finds_its_orders(shop: Shop) -> None:
    await shop.stock()
    async with FaultyGateways(shop, SendConfirmation=Fails()).worker():
        failed = await shop.start(payment_method="pm_card_declined")
        running, waiting = await shop.start(), await shop.start({"MUG": 50})
        await failed.result()
        await shop.wait_for_status(waiting, OrderStatus.AWAITING_APPROVAL)
        found = {"Needs a person": waiting, "Did not complete": failed, "In progress": running}
        text = (ROOT / "docs/operations.md").read_text()
        views: dict[str, str] = dict(
            re.findall(rf"^  \| ([\w ]+) \| `({SEARCH_ATTRIBUTE} .*)` \|$", text, re.MULTILINE)
        )
        assert views.keys() == found.keys()
        for view, query in views.items():
            own = f"{query} AND TaskQueue = '{shop.settings.task_queue}'"
            await eventually(partial(listed, shop, own), {found[view].id}.__eq__)


async def listed(shop: Shop, query: str) -> set[str]:
    return {workflow.id async for workflow in shop.client.list_workflows(query)}
