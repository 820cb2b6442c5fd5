"""What holds for Motor only. Delete this file with Motor."""

from __future__ import annotations

import os
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClientSession
from pymongo.errors import AutoReconnect, OperationFailure

from app.mongo import Mongo
from tests.activities.test_transactions import LOST, TRANSIENT, Work
from tests.kit.faults import failing


def test_motor_has_the_documented_number_of_threads() -> None:
    assert os.environ["MOTOR_MAX_WORKERS"] == "32"


@pytest.mark.parametrize("fault", [TRANSIENT, LOST], ids=["conflict", "reply lost"])
async def test_motor_with_transaction_gives_up_at_commit(mongo: Mongo, fault: dict[str, Any]) -> None:
    """The reason for `run_transaction`. If this test fails, Motor retries commits and could replace it."""
    for collection in ("orders", "restocks"):
        await mongo.database.create_collection(collection)
    work = Work(mongo)
    session: AsyncIOMotorClientSession
    async with (
        await mongo.client.start_session() as session,
        failing(mongo, "commitTransaction", mode={"times": 2}, **fault),
    ):
        with pytest.raises((OperationFailure, AutoReconnect)):
            await session.with_transaction(work)
        # It also leaves the transaction open, which locks its documents until the server's limit of one minute.
        await mongo.client.admin.command({"killSessions": [session.session_id]})
    assert work.runs == 1
    assert await work.effects() == []
