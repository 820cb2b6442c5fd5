"""MongoDB through Motor: client, collections, indexes, transactions. The one file that imports motor.

Motor is in its last year of support; its successor is PyMongo's own `AsyncMongoClient`. What differs between the two
(how a session, a change stream or an aggregate is opened) is kept in this file, so that the change is this file.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

# Motor runs each call on a thread, by default 5 for each core. A worker runs 100 activities at once and the API as many
# requests; with too few threads they wait for one another, not for MongoDB.
os.environ.setdefault("MOTOR_MAX_WORKERS", "32")

from bson import Timestamp
from motor import motor_asyncio
from pymongo import DESCENDING, IndexModel
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

Document = dict[str, Any]
Collection = motor_asyncio.AsyncIOMotorCollection[Document]
Source = Collection | motor_asyncio.AsyncIOMotorDatabase[Document]
Session = motor_asyncio.AsyncIOMotorClientSession
ChangeStream = motor_asyncio.AsyncIOMotorChangeStream[Document]
T = TypeVar("T")
Work = Callable[[Session], Awaitable[T]]

# Seconds after which a transaction is not retried; activities have a timeout and retries of their own.
TRANSACTION_DEADLINE = 10.0
_TRY_LATER = ("TransientTransactionError", "UnknownTransactionCommitResult")
# A time limit or the write concern was not met; the member is not (or is no longer) the primary.
_RETRIABLE = frozenset({50, 64, 91, 189, 10107, 11600, 11602, 13435, 13436})


class StreamEnded(Exception):
    """A change stream has ended, because its collection was dropped."""


class NotReplicated(ConnectionFailure):
    """A write that was seen has been rolled back, or may still be: retry later."""


def is_unavailable(error: BaseException) -> bool:
    """Whether an error says that MongoDB is away (or without a primary), and the same call may go through later."""
    if isinstance(error, PyMongoError) and any(map(error.has_error_label, _TRY_LATER)):
        return True
    return isinstance(error, ConnectionFailure) or (isinstance(error, OperationFailure) and error.code in _RETRIABLE)


async def next_change(stream: ChangeStream) -> Document | None:
    """The next change; None when there was none for about a second (the resume token has moved on all the same).

    Raises:
        StreamEnded
    """
    change: Document | None = await stream.try_next()
    if change is None and not stream.alive:  # type: ignore[truthy-function]
        raise StreamEnded
    return change


class Mongo:
    """One per process and event loop; it does not survive a fork.

    Reads and writes are of the majority: nothing is decided by, or answered from, what a failover may roll back.
    """

    is_unavailable = staticmethod(is_unavailable)  # for activities, which must not import this module

    def __init__(self, uri: str, database: str, *, app_name: str = "order-saga") -> None:
        self.client: motor_asyncio.AsyncIOMotorClient[Document] = motor_asyncio.AsyncIOMotorClient(
            uri,
            appname=app_name,
            tz_aware=True,
            # Tolerate invalid dates and UTF-8 in what other programs wrote.
            datetime_conversion="DATETIME_AUTO",
            unicode_decode_error_handler="replace",
            w="majority",
            readConcernLevel="majority",
            serverSelectionTimeoutMS=2_000,
            connectTimeoutMS=2_000,
            socketTimeoutMS=10_000,
        )
        self.database = self.client[database]
        self.orders: Collection = self.database["orders"]
        self.inventory: Collection = self.database["inventory"]
        self.restocks: Collection = self.database["restocks"]
        self.relay: Collection = self.database["relay"]
        # The books of the sandbox gateways; delete them together with app/gateways/sandbox.py.
        self.sandbox: Collection = self.database["sandbox"]
        self._transactions: set[asyncio.Future[Any]] = set()

    def close(self) -> None:
        self.client.close()

    async def find_settled(self, collection: Collection, document_id: str) -> Document | None:
        """A document, read only once a majority has it: what decides an answer must not be rolled back.

        Raises:
            pymongo.errors.ExecutionTimeout: no majority within two seconds.
        """
        linearizable = collection.with_options(read_concern=ReadConcern("linearizable"))
        return await linearizable.find_one({"_id": document_id}, max_time_ms=2_000)

    async def ping(self) -> Timestamp:
        """MongoDB's own time, from which a change stream can be opened.

        Raises:
            pymongo.errors.PyMongoError: MongoDB cannot be reached, or it has no primary.
        """
        time: Timestamp = (await self.database.command("ping"))["operationTime"]
        return time

    async def create_indexes(self) -> None:
        """Create the indexes that this program's queries need; does nothing where they exist."""
        newest = [("created_at", DESCENDING), ("_id", DESCENDING)]
        searched: list[list[str]] = [[], ["status"], ["customer_id"], ["customer_id", "status"]]
        lists = [IndexModel([*fields, *newest]) for fields in searched]
        await self.orders.create_indexes([*lists, IndexModel("updated_at")])

    async def run_transaction(self, work: Work[T], *, within: float = TRANSACTION_DEADLINE) -> T:
        """Run `work` in a transaction; retry it while MongoDB says that this can help.

        Motor's own `with_transaction` commits outside of its retry loop, so a write conflict or a lost reply at commit
        would be raised. Here the whole is retried on TransientTransactionError, and the commit alone on
        UnknownTransactionCommitResult, as the driver specification asks for.

        `work` may run several times: it must have no effect but through the session. Cancelling the caller does not
        cancel the transaction, because a session cannot be given up in the middle of a call.

        Raises:
            pymongo.errors.PyMongoError: the error of the last try, for good or after `within` seconds. If it is the
                commit's unknown result, the transaction may have taken effect.
        """
        task = asyncio.ensure_future(self._transact(work, within))
        self._transactions.add(task)
        task.add_done_callback(self._transactions.discard)
        return await asyncio.shield(task)

    async def _transact(self, work: Work[T], within: float) -> T:
        deadline = asyncio.get_running_loop().time() + within
        async with await self.client.start_session() as session:

            async def attempt() -> T:
                async with session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority")):
                    result = await work(session)
                    await _retry(session.commit_transaction, "UnknownTransactionCommitResult", deadline)
                return result

            return await _retry(attempt, "TransientTransactionError", deadline)

    @asynccontextmanager
    async def watch(self, source: Source, pipeline: list[Document], **options: Any) -> AsyncIterator[ChangeStream]:
        """Open a change stream on a collection or on the database; `options` are those of the driver's `watch`.

        Raises:
            pymongo.errors.OperationFailure: it cannot begin where the options say, for instance because that is too
                long ago (error 286); what happened in between has to be looked up.
        """
        stream = await source.watch(pipeline, **options).__aenter__()  # opened here, not by the first `next`
        try:
            yield stream
        finally:
            with suppress(PyMongoError, TimeoutError):  # raised here, it would replace a cancellation
                async with asyncio.timeout(1):
                    await stream.close()


async def _retry(call: Callable[[], Awaitable[T]], label: str, deadline: float) -> T:
    """Repeat a call that fails with this label, until the deadline.

    After 10 ms doubling up to half a second, with full jitter, so that transactions that collided do not collide again.
    """
    delay = 0.01
    while True:
        try:
            return await call()
        except PyMongoError as error:
            if not error.has_error_label(label) or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(random.uniform(0, delay))  # noqa: S311
        delay = min(2 * delay, 0.5)
