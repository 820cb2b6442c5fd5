"""Run orders with the payload codec of docs/operations.md."""

from __future__ import annotations

import re
from typing import Any

from cryptography.fernet import Fernet
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter
from temporalio.worker import Replayer

from app import temporal
from app.workflows.order import OrderWorkflow
from dev.servers import Server
from dev.stack import ROOT
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.orders import UNSERVICEABLE
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import delete_workflow
from tests.replay.histories import shape_of
from worker import SANDBOX

[CODE] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/operations.md").read_text(), re.MULTILINE | re.DOTALL)
READABLE = ('"order_id"', "order_step.py")


def encrypting(*keys: bytes) -> DataConverter:
    names: dict[str, Any] = {}
    exec(CODE, names)  # noqa: S102
    converter: DataConverter = names["encrypting"](*keys)
    return converter


def readable_in(history: WorkflowHistory) -> list[str]:
    return [text for text in READABLE if text in shape_of(history)]


def holds_a_failure(history: WorkflowHistory) -> bool:
    return any(event.HasField("activity_task_failed_event_attributes") for event in history.events)


async def test_encrypted_order_runs_and_replays_after_a_change_of_key(shop: Shop, temporal_server: Server) -> None:
    old, new = Fernet.generate_key(), Fernet.generate_key()
    histories = []
    await shop.stock()
    for converter in (encrypting(old), pydantic_data_converter):
        client = await temporal.connect(target_host=temporal_server.address, data_converter=converter)
        own = shop.with_client(client)
        # The order is declined, but not closed.
        async with FaultyGateways(own, RefundPayment=Fails()).worker():
            order = await own.start(shipping_address=UNSERVICEABLE)
            try:
                histories.append(await eventually(order.fetch_history, holds_a_failure))
                assert (await order.query(OrderWorkflow.status)).order_id in order.id
            finally:
                await delete_workflow(client, order)  # the last test replays all workflows, without the keys
    encrypted, plain = histories
    assert readable_in(plain) == list(READABLE)
    assert readable_in(encrypted) == []
    replayer = Replayer(workflows=[OrderWorkflow], data_converter=encrypting(new, old), workflow_runner=SANDBOX)
    for history in histories:
        await replayer.replay_workflow(history)
