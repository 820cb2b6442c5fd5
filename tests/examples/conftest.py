"""Fixtures of the tests of examples."""

from __future__ import annotations

import secrets

import pytest


@pytest.fixture
def task_queue() -> str:
    """A task queue for one test; the start of its workflow ids, too."""
    return f"test-{secrets.token_hex(6)}"
