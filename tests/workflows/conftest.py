"""Fixtures of the workflow tests."""

from __future__ import annotations

import pytest
from temporalio.testing import TimeSkipper

from tests.kit.shop import Shop


@pytest.fixture
async def skipping(shop: Shop, skipper: TimeSkipper) -> Shop:
    """The shop, whose orders do not wait for time to pass."""
    await shop.stock(available=10)
    return shop.with_client(skipper.client)
