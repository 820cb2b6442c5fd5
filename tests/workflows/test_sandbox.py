"""Workflow code reaches nothing that could make a replay differ: no database, no settings, no web framework."""

from __future__ import annotations

import asyncio
import sys
from subprocess import PIPE

import pytest

from app.domain import OrderStatus
from tests.kit.orders import ADDRESS
from tests.kit.shop import Shop, build_shop_worker
from tests.workflows.careless import CarelessWorkflow

OUT_OF_REACH = ["motor", "app.mongo", "app.settings", "pydantic_settings", "fastapi", "app.gateways.sandbox"]


async def test_workflow_imports_no_database_settings_or_web_module() -> None:
    code = f"import sys, app.workflows.order; print([name for name in {OUT_OF_REACH} if name in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE, stderr=PIPE)
    output, errors = await process.communicate()
    assert output.decode().strip() == "[]", errors.decode()


async def test_workflow_imports_only_passed_through_modules(shop: Shop) -> None:
    """The worker's policy is to raise for an import that was not passed through on purpose; one that comes late is a
    warning, which is an error here."""
    await shop.stock()
    async with build_shop_worker(shop):
        completed = await shop.start()
        failed = await shop.start(shipping_address={**ADDRESS, "postal_code": "00000"})
        assert (await completed.result()).status is OrderStatus.COMPLETED
        assert (await failed.result()).status is OrderStatus.FAILED


async def test_unlisted_import_in_workflow_is_refused(shop: Shop) -> None:
    with pytest.raises(RuntimeError) as refused:
        build_shop_worker(shop, workflows=[CarelessWorkflow])
    assert "app.settings" in str(refused.value.__cause__)


async def test_every_workflow_task_replays_on_a_new_worker(shop: Shop) -> None:
    """Nothing is kept in memory between two workflow tasks: each is replayed from the history, on the way and back."""
    await shop.stock()
    async with build_shop_worker(shop, max_cached_workflows=0):
        completed = await shop.start()
        failed = await shop.start(shipping_address={**ADDRESS, "postal_code": "00000"})
        assert (await completed.result()).status is OrderStatus.COMPLETED
        assert (await failed.result()).status is OrderStatus.FAILED
