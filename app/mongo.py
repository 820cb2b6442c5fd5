"""MongoDB through Motor: client, collections, indexes, transactions. The only file that imports Motor.

Motor is in its last year of support; its successor is PyMongo's own `AsyncMongoClient`. The differences between
the two (how to open a session, a change stream or an aggregate) stay in this file, so only this file will change.
"""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

# Motor runs each call on a thread, by default 5 per core. A worker runs 100 activities at once and the API as many
# requests; with too few threads they wait for one another, not for MongoDB.
os.environ.setdefault("MOTOR_MAX_WORKERS", "32")

from bson import Timestamp
from bson.codec_options import CodecOptions, DatetimeConversion
from motor import motor_asyncio
from pymongo import DESCENDING, IndexModel, ReadPreference, ReturnDocument
from pymongo.errors import ConfigurationError, ConnectionFailure, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from app.names import NAME

logger = logging.getLogger(__name__)

Document = dict[str, Any]
Client = motor_asyncio.AsyncIOMotorClient[Document]
Collection = motor_asyncio.AsyncIOMotorCollection[Document]
Source = Collection | motor_asyncio.AsyncIOMotorDatabase[Document]
Session = motor_asyncio.AsyncIOMotorClientSession
ChangeStream = motor_asyncio.AsyncIOMotorChangeStream[Document]
T = TypeVar("T")
Work = Callable[[Session], Awaitable[T]]

# Options of the client, in milliseconds, where the connection string has none.
DEFAULTS = {"serverSelectionTimeoutMS": 2_000, "connectTimeoutMS": 2_000, "socketTimeoutMS": 10_000}
# Seconds after which a transaction is not retried; activities have a timeout and retries of their own.
TRANSACTION_DEADLINE = 10.0
SNAPSHOT = ReadConcern("snapshot"), WriteConcern("majority"), ReadPreference.PRIMARY
_RETRY_LABELS = ("TransientTransactionError", "UnknownTransactionCommitResult")
# Error codes: a time limit or the write concern was not met, or the member is not (or no longer) the primary.
_RETRY_CODES = frozenset({50, 64, 91, 189, 10107, 11600, 11602, 13435, 13436})
_INDEX_CONFLICTS = (85, 86)  # there is an index with the same fields and another name or option, or with the same name


class StreamEnded(Exception):
    """A change stream has ended because its collection was dropped."""


class NotReplicated(ConnectionFailure):
    """A write that was read has been rolled back or may still be: retry later."""


def is_unavailable(error: BaseException) -> bool:
    """Return True if the error means that MongoDB is unavailable or has no primary, and a retry may succeed."""
    if isinstance(error, PyMongoError) and any(map(error.has_error_label, _RETRY_LABELS)):
        return True
    # A ConfigurationError: DNS does not know the members of a `mongodb+srv` address (yet); the next call asks again.
    is_away = isinstance(error, (ConnectionFailure, ConfigurationError))
    return is_away or (isinstance(error, OperationFailure) and error.code in _RETRY_CODES)


async def next_change(stream: ChangeStream) -> Document | None:
    """Return the next change, or None after about a second without one (the resume token advances anyway).

    Raises:
        StreamEnded
    """
    call = asyncio.ensure_future(stream.try_next())
    try:
        change: Document | None = await asyncio.shield(call)
    except asyncio.CancelledError:
        # The call goes on, on its thread. If the stream were closed meanwhile, the driver would open it again.
        with suppress(PyMongoError, TimeoutError):
            async with asyncio.timeout(2):
                await call
        raise
    if change is None and not stream.alive:  # type: ignore[truthy-function]
        raise StreamEnded
    return change


async def upsert(collection: Collection, document_id: str, update: Document | list[Document]) -> Document:
    """Update a document, or insert it; return it after that."""
    query, after = {"_id": document_id}, ReturnDocument.AFTER
    document: Document | None = await collection.find_one_and_update(query, update, upsert=True, return_document=after)
    assert document is not None
    return document


class Mongo:
    """The client and the collections, one instance per process and event loop; it does not survive a fork.

    All reads and writes use majority concern and the primary, whatever the client's options: no decision or answer
    rests on a write that a failover may roll back, or on old data.

    Args:
        source: a connection string, whose options override `DEFAULTS`, or an existing client of this event loop, which
            `close` does not close. For an existing database: `Mongo(database.client, database.name)`.
    """

    is_unavailable = staticmethod(is_unavailable)  # for activities, which must not import this module

    def __init__(self, source: str | Client, database: str, *, app_name: str = NAME) -> None:
        self._owns_client = isinstance(source, str)
        self.client: Client = _connect(source, app_name) if isinstance(source, str) else source
        # Tolerate invalid dates and UTF-8 in what other programs wrote.
        auto = DatetimeConversion.DATETIME_AUTO
        tolerant = CodecOptions[Document](dict, True, unicode_decode_error_handler="replace", datetime_conversion=auto)
        majority = WriteConcern("majority", self.client.write_concern.document.get("wtimeout")), ReadConcern("majority")
        self.database = self.client.get_database(database, tolerant, ReadPreference.PRIMARY, *majority)
        self.orders: Collection = self.database["orders"]
        self.inventory: Collection = self.database["inventory"]
        self.restocks: Collection = self.database["restocks"]
        self.relay: Collection = self.database["relay"]
        self._transactions: set[asyncio.Future[Any]] = set()

    def close(self) -> None:
        if self._owns_client:
            self.client.close()

    async def find_durable(self, collection: Collection, document_id: str) -> Document | None:
        """Return a document once a majority has it: what decides an answer must not be rolled back.

        Raises:
            pymongo.errors.ExecutionTimeout: no majority within two seconds.
        """
        linearizable = collection.with_options(read_concern=ReadConcern("linearizable"))
        return await linearizable.find_one({"_id": document_id}, max_time_ms=2_000)

    async def ping(self) -> Timestamp:
        """Return the time of a majority read: later reads see every change up to then.

        The operation time of MongoDB's `ping` may be later than what a majority has, and reads see.

        Raises:
            pymongo.errors.PyMongoError: MongoDB cannot be reached, or it has no primary.
        """
        read = {"find": self.orders.name, "limit": 1, "projection": {"_id": 1}, "readConcern": {"level": "majority"}}
        time: Timestamp = (await self.database.command(read))["operationTime"]
        return time

    async def create_indexes(self) -> None:
        """Create the indexes that the queries of this program need, unless they exist.

        A list without a status is read from an index with `status`, too: `app.orders` names every status then. By
        default, MongoDB builds an index only while every voting member is up: a new worker would wait for one that is
        down. With a majority as the quorum, that member builds the index when it is back. An index that conflicts with
        one of the operator's is left out, and logged: it only saves time.
        """
        newest = [("created_at", DESCENDING), ("_id", DESCENDING)]
        lists = [IndexModel([*fields, *newest]) for fields in (["status"], ["customer_id", "status"])]
        for index in (*lists, IndexModel("updated_at")):
            try:
                await self.orders.create_indexes([index], commitQuorum="majority")
            except OperationFailure as error:
                if error.code not in _INDEX_CONFLICTS:
                    raise
                logger.warning("an index of orders is left out: %s", error)

    async def run_transaction(self, work: Work[T], *, within: float = TRANSACTION_DEADLINE) -> T:
        """Run `work` in a transaction; retry it while MongoDB reports a transient error.

        Motor's own `with_transaction` commits outside of its retry loop, so a write conflict or a lost reply at commit
        would be raised. Here the whole transaction is retried on TransientTransactionError, and only the commit on
        UnknownTransactionCommitResult, as the driver specification requires.

        `work` may run several times: it must have no effect except through the session. Cancelling the caller does
        not cancel the transaction, because a session cannot be abandoned in the middle of a call.

        Raises:
            pymongo.errors.PyMongoError: the error is not transient, or `within` seconds have passed. If it is labelled
                UnknownTransactionCommitResult, the transaction may have taken effect.
        """
        task = asyncio.ensure_future(self._transact(work, within))
        self._transactions.add(task)
        task.add_done_callback(self._transactions.discard)
        return await asyncio.shield(task)

    async def _transact(self, work: Work[T], within: float) -> T:
        deadline = asyncio.get_running_loop().time() + within
        async with await self.client.start_session() as session:

            async def attempt() -> T:
                async with session.start_transaction(*SNAPSHOT):
                    result = await work(session)
                    await _retry(session.commit_transaction, "UnknownTransactionCommitResult", deadline)
                return result

            return await _retry(attempt, "TransientTransactionError", deadline)

    @asynccontextmanager
    async def watch(self, source: Source, pipeline: list[Document], **options: Any) -> AsyncIterator[ChangeStream]:
        """Open a change stream on a collection or on the database; `options` are those of the driver's `watch`.

        Without options, it starts at the time of `ping`: a read that follows sees every change before that.

        Raises:
            pymongo.errors.OperationFailure: the stream cannot start where the options say, for example too long ago
                (error 286); the caller has to read what has changed since.
        """
        options = options or {"start_at_operation_time": await self.ping()}
        opening = asyncio.ensure_future(source.watch(pipeline, **options).__aenter__())  # not by the first `next`
        try:
            # Shielded: a stream that is abandoned while it opens would stay open on the server.
            yield await asyncio.shield(opening)
        finally:
            with suppress(PyMongoError, TimeoutError):  # an error here would replace a cancellation
                async with asyncio.timeout(2):  # `try_next` in flight may take one second
                    await (await opening).close()


def _connect(uri: str, app_name: str) -> Client:
    # A keyword would override the connection string.
    defaults: dict[str, Any] = {"appName": app_name, **DEFAULTS}
    missing = {name: value for name, value in defaults.items() if f"{name}=".lower() not in uri.lower()}
    return motor_asyncio.AsyncIOMotorClient(uri, **missing)


async def _retry(call: Callable[[], Awaitable[T]], label: str, deadline: float) -> T:
    """Retry a call that fails with this label, until the deadline.

    The delay doubles from 10 ms to 0.5 s, with full jitter, so that transactions that collided do not collide again.
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
