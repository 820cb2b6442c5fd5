"""`Mongo.run_transaction`, with faults injected into the server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from app.mongo import Mongo, Session, is_unavailable
from dev.servers import Server, free_port, start_mongod
from tests.kit.faults import AFTER_THE_EFFECT, Gate, failing
from tests.kit.waiting import eventually

TRANSIENT = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}  # WriteConflict
LOST = {"closeConnection": True}


class Work:
    """Counts its runs, and inserts one document per run into each of two collections."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self.runs = 0

    async def __call__(self, session: Session) -> int:
        self.runs += 1
        await self._mongo.orders.insert_one({"run": self.runs}, session=session)
        await self._mongo.restocks.insert_one({"run": self.runs}, session=session)
        return self.runs

    async def effects(self) -> list[int]:
        """The runs that took effect. Checks that both collections agree."""
        orders = [document["run"] async for document in self._mongo.orders.find()]
        restocks = [document["run"] async for document in self._mongo.restocks.find()]
        assert orders == restocks
        return orders


@pytest.fixture
async def work(mongo: Mongo) -> Work:
    await mongo.database.create_collection("orders")
    await mongo.database.create_collection("restocks")
    return Work(mongo)


async def test_transaction_with_fault_takes_effect_once(mongo: Mongo, work: Work) -> None:
    assert await mongo.run_transaction(work) == 1
    assert await work.effects() == [1]


@pytest.mark.parametrize("fault", [LOST, AFTER_THE_EFFECT], ids=["before the effect", "after the effect"])
async def test_lost_commit_reply_retries_only_the_commit(mongo: Mongo, work: Work, fault: dict[str, Any]) -> None:
    async with failing(mongo, "commitTransaction", mode={"times": 3}, **fault):  # the driver itself tries twice
        assert await mongo.run_transaction(work) == 1  # retried the commit, but not the callback
    assert await work.effects() == [1]


@pytest.mark.parametrize("command", ["insert", "commitTransaction"])
async def test_write_conflict_retries_the_whole_transaction(mongo: Mongo, work: Work, command: str) -> None:
    async with failing(mongo, command, mode={"times": 3}, **TRANSIENT):
        assert await mongo.run_transaction(work) == 4
    assert await work.effects() == [4]


async def test_concurrent_transactions_on_one_document_all_take_effect(mongo: Mongo) -> None:
    await mongo.inventory.insert_one({"_id": "MUG", "available": 0})

    async def increment(session: Session) -> None:
        product = await mongo.inventory.find_one({"_id": "MUG"}, session=session)
        assert product is not None
        available = product["available"] + 1
        await mongo.inventory.update_one({"_id": "MUG"}, {"$set": {"available": available}}, session=session)

    await asyncio.gather(*(mongo.run_transaction(increment) for _ in range(20)))
    assert await mongo.inventory.find_one() == {"_id": "MUG", "available": 20}


async def test_error_in_callback_aborts_the_transaction(mongo: Mongo, work: Work) -> None:
    async def fails(session: Session) -> None:
        await work(session)
        raise LookupError("not what it should be")

    with pytest.raises(LookupError):
        await mongo.run_transaction(fails)
    assert work.runs == 1
    assert await work.effects() == []
    await mongo.run_transaction(work)  # no lock is left
    assert await work.effects() == [2]


async def test_non_retryable_mongodb_error_is_raised_at_once(mongo: Mongo, work: Work) -> None:
    async with failing(mongo, "insert", errorCode=121):  # DocumentValidationFailure
        with pytest.raises(OperationFailure):
            await mongo.run_transaction(work)
    assert work.runs == 1
    assert await work.effects() == []


async def test_transaction_retries_end_at_deadline(mongo: Mongo, work: Work) -> None:
    """After `within` seconds, the last error is raised, and counts as unavailable."""
    async with failing(mongo, "insert", **TRANSIENT):
        with pytest.raises(OperationFailure) as conflict:
            await asyncio.wait_for(mongo.run_transaction(work, within=0.2), 10)
    assert is_unavailable(conflict.value)
    assert work.runs > 1
    assert await work.effects() == []


async def test_commit_retries_end_at_deadline(mongo: Mongo, work: Work) -> None:
    async with failing(mongo, "commitTransaction", **AFTER_THE_EFFECT):
        with pytest.raises(OperationFailure) as unknown:
            await asyncio.wait_for(mongo.run_transaction(work, within=0.2), 10)
    assert is_unavailable(unknown.value)
    assert work.runs == 1
    assert await work.effects() == [1]  # the commit took effect, but the caller cannot know


async def test_cancelled_caller_does_not_cancel_the_transaction(mongo: Mongo, work: Work) -> None:
    gate, finished = Gate(), asyncio.Event()

    async def held(session: Session) -> None:
        await work(session)
        await gate.hold()
        finished.set()

    caller = asyncio.create_task(mongo.run_transaction(held))
    await gate.reached()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not finished.is_set()
    gate.open()
    await eventually(mongo.orders.find_one)
    assert await work.effects() == [1]


@pytest.fixture
async def lone_mongo(tmp_path: Path) -> AsyncIterator[Mongo]:
    """A Mongo on its own server, so that a step-down affects no other test."""
    server = await start_mongod(tmp_path / "data", free_port(), test_commands=True)
    mongo = Mongo(server.address, "test")
    yield mongo
    mongo.close()
    await server.kill()


async def test_primary_step_down_retries_the_whole_transaction(lone_mongo: Mongo) -> None:
    mongo = lone_mongo
    await mongo.create_indexes()
    work = Work(mongo)

    async def steps_down(session: Session) -> int:
        run = await work(session)
        if run == 1:
            await _step_down(mongo)
        return run

    assert await mongo.run_transaction(steps_down) > 1
    assert await work.effects() == [work.runs]


async def _step_down(mongo: Mongo) -> None:
    """Make the only member step down. It is elected again after a second."""
    await mongo.client.admin.command({"replSetStepDown": 1, "force": True})


KILLED = """
import sys, time, pymongo
uri, database = sys.argv[1:]
client = pymongo.MongoClient(uri)
with client.start_session() as session, session.start_transaction():
    client[database]["orders"].update_one({"_id": 1}, {"$set": {"by": "killed"}}, session=session)
    print("written", flush=True)
    time.sleep(600)
"""


async def test_transaction_of_killed_client_is_aborted_soon(mongo: Mongo, mongod: Server) -> None:
    """MongoDB does not notice that the client is gone. The servers' time limit for transactions is 15 s, not 60."""
    await mongo.orders.insert_one({"_id": 1})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, mongod.address, mongo.database.name, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    assert await process.stdout.readline() == b"written\n"
    process.kill()
    await process.wait()

    async def write(session: Session) -> None:
        await mongo.orders.update_one({"_id": 1}, {"$set": {"by": "other"}}, session=session)

    await mongo.run_transaction(write, within=45)
    assert await mongo.orders.find_one({"_id": 1}) == {"_id": 1, "by": "other"}
