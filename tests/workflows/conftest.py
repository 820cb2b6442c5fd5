"""Fixtures of the workflow tests."""

from __future__ import annotations

import pytest
from temporalio.testing import TimeSkipper

from tests.kit.shop import Shop


@pytest.fixture
async def skipping(shop: Shop, skipper: TimeSkipper) -> Shop:
    """The shop with a client whose workflows skip time."""
    await shop.stock(available=10)
    return shop.with_client(skipper.client)
