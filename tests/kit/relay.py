"""The relay, as worker.py runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.relay import OutboxRelay
from tests.kit.shop import Shop


@asynccontextmanager
async def running_relay(shop: Shop) -> AsyncIterator[asyncio.Task[None]]:
    """Run a relay. Fails if it ends by itself."""
    running = asyncio.create_task(OutboxRelay(shop.mongo, shop.orders, shop.workflows).run())
    try:
        yield running
        assert not running.done(), "the relay ended"
    finally:
        running.cancel()
        await asyncio.wait([running])
