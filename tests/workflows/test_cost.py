"""The history of a completed order is as small as docs/scale.md says."""

from __future__ import annotations

import pytest

from app.names import WORKFLOW_ID_PREFIX
from app.workflows.steps import STEPS
from dev.order_cost import history_of
from tests.kit.shop import Shop
from tests.unit.test_scale import documented_cost


@pytest.mark.usefixtures("worker")
async def test_history_of_completed_order_has_the_documented_size(shop: Shop) -> None:
    cost = documented_cost()
    await shop.stock()
    handle = await shop.start()
    await handle.result()
    events, size, actions = await history_of(shop.client, handle.id.removeprefix(WORKFLOW_ID_PREFIX))
    added = sum(bool(step.since) for step in STEPS)  # each costs an activity, and the mark of its patch
    assert actions == cost.actions + 2 * added
    assert events == pytest.approx(cost.events + 8 * added, abs=2)  # the server may join two workflow tasks
    assert size == pytest.approx(cost.history, rel=0.1 + 0.3 * added)
