"""Clients generated from /openapi.json place, read, list and cancel an order; linters of OpenAPI find nothing in it.

`make test-tools` installs the tools for TypeScript.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from dev.stack import ROOT
from tests.kit.orders import order_body
from tests.kit.shop import Shop

CLIENTS = ROOT / "tests" / "clients"
TOOLS = CLIENTS / "node_modules" / ".bin"
QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "NO_COLOR": "1"}

# If CI is set, they fail instead.
SKIPPED = not TOOLS.exists() and not os.environ.get("CI")
needs_node = pytest.mark.skipif(SKIPPED, reason="no npm packages; `make test-tools` installs them")
pytestmark = pytest.mark.usefixtures("worker")


async def run(command: Path | str, *arguments: str, cwd: Path) -> str:
    """Run a command. Returns what it prints; fails if it fails."""
    process = await asyncio.create_subprocess_exec(
        command, *arguments, cwd=cwd, env={**os.environ, **QUIET}, stdout=-1, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    return output


@pytest.fixture
async def folder(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> Path:
    """A folder with the description of the API, and products in stock."""
    await shop.stock()
    (tmp_path / "openapi.json").write_bytes((await api.get("/openapi.json")).content)
    return tmp_path


async def test_generated_python_client_places_reads_lists_and_cancels_an_order(
    api: httpx.AsyncClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Path(sys.executable).with_name("openapi-python-client")
    (folder / "config.json").write_text('{"post_hooks": []}')  # no formatting
    options = ("--meta=none", "--output-path=generated", "--config=config.json", "--fail-on-warning")
    await run(generator, "generate", "--path=openapi.json", *options, cwd=folder)
    monkeypatch.syspath_prepend(folder)

    def module(name: str) -> Any:
        return importlib.import_module(f"generated.{name}")

    def operation(name: str) -> Any:
        return module(f"api.orders.{name}").asyncio

    models = module("models")
    async with module("client").AuthenticatedClient(str(api.base_url), "none", verify_ssl=False) as client:
        new = models.NewOrder.from_dict(order_body(payment_method="pm_card_outage"))
        placed = await operation("place_order")(client=client, body=new, idempotency_key="python")
        assert isinstance(placed, models.Order)
        read = await operation("get_order")(placed.order_id, client=client)
        assert (read.total.amount, read.cancellable) == (2_000, True)
        reached = [status for status in models.OrderStatus if status != models.OrderStatus.CANCELLED]
        page = await operation("list_orders")(client=client, status=reached)
        assert [order.order_id for order in page.items] == [placed.order_id]
        cancelled = await operation("cancel_order")(placed.order_id, client=client, prefer="wait=20")
        assert (cancelled.status, cancelled.failure.code) == (models.OrderStatus.CANCELLED, "cancelled")
        again = await operation("cancel_order")(placed.order_id, client=client, body=models.Reason("twice"))
        assert (again.type_, again.status) == ("urn:problem:too-late-to-cancel", 409)


@needs_node
async def test_generated_typescript_client_places_reads_lists_and_cancels_an_order(
    api: httpx.AsyncClient, folder: Path
) -> None:
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(CLIENTS / "orders.ts", folder)
    await run(TOOLS / "openapi-typescript", "openapi.json", "--output", "schema.d.ts", cwd=folder)
    await run(
        TOOLS / "tsc",
        "--strict",
        "--skipLibCheck",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "orders.ts",
        cwd=folder,
    )
    printed = await run("node", "orders.js", str(api.base_url), cwd=folder)
    assert json.loads(printed) == [2_000, 1, "cancelled", "cancelled", "urn:problem:not-found"]


@needs_node
async def test_linters_find_nothing_in_the_description(folder: Path) -> None:
    """Spectral's rule that is off knows no roles of HTTP authentication, which OpenAPI 3.1 permits."""
    rules = ("--ruleset", str(CLIENTS / "spectral.json"), "--fail-severity=hint")
    await run(TOOLS / "spectral", "lint", "openapi.json", *rules, cwd=folder)
    assert "Warning was" not in await run(TOOLS / "redocly", "lint", "openapi.json", cwd=folder)
