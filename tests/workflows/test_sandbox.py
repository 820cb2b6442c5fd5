"""Workflow code cannot import nondeterministic modules: no database, no settings, no web framework."""

from __future__ import annotations

import asyncio
import sys
from subprocess import PIPE

import pytest

from app.domain import OrderStatus
from tests.kit.orders import ADDRESS
from tests.kit.shop import Shop, build_shop_worker
from tests.workflows.forbidden_import import ForbiddenImportWorkflow

FORBIDDEN = ["motor", "app.mongo", "app.settings", "pydantic_settings", "fastapi", "app.gateways.sandbox"]


async def test_workflow_imports_no_database_settings_or_web_module() -> None:
    code = f"import sys, app.workflows.order; print([name for name in {FORBIDDEN} if name in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE, stderr=PIPE)
    output, errors = await process.communicate()
    assert output.decode().strip() == "[]", errors.decode()


async def test_workflow_imports_only_passed_through_modules(shop: Shop) -> None:
    """The worker refuses an import that is not passed through. A late import is a warning, which the tests treat as
    an error."""
    await shop.stock()
    async with build_shop_worker(shop):
        completed = await shop.start()
        failed = await shop.start(shipping_address={**ADDRESS, "postal_code": "00000"})
        assert (await completed.result()).status is OrderStatus.COMPLETED
        assert (await failed.result()).status is OrderStatus.FAILED


async def test_unlisted_import_in_workflow_is_refused(shop: Shop) -> None:
    with pytest.raises(RuntimeError) as refused:
        build_shop_worker(shop, workflows=[ForbiddenImportWorkflow])
    assert "app.settings" in str(refused.value.__cause__)


async def test_every_workflow_task_replays_on_a_new_worker(shop: Shop) -> None:
    """Without a cache, each workflow task replays the history, for a completed and for a compensated order."""
    await shop.stock()
    async with build_shop_worker(shop, max_cached_workflows=0):
        completed = await shop.start()
        failed = await shop.start(shipping_address={**ADDRESS, "postal_code": "00000"})
        assert (await completed.result()).status is OrderStatus.COMPLETED
        assert (await failed.result()).status is OrderStatus.FAILED
