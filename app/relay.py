"""The relay: every order document gets its saga, whoever wrote it (G1).

The orders are their own outbox. A change stream on them tells of each insert, and its resume token is kept in MongoDB,
so that a restart passes nothing over. A sweep at the start, now and then, and soon after anything went wrong, starts
what was placed and not started, so no order waits for another. Starting a saga twice does nothing, so any number of
relays may run; each worker process runs one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress

from pymongo.errors import PyMongoError

from app.models import FINAL, Failure, OrderStatus, why_malformed
from app.mongo import Document, Mongo, is_unavailable
from app.orders import Orders
from app.sagas import Sagas

logger = logging.getLogger(__name__)

# Seconds.
PATIENCE = 3.0  # for one start: there is no caller who waits, but there are other orders
PAUSE = 1.0  # before another try, after something went wrong
SWEEP_EVERY = 60.0
SAVE_EVERY = 100  # changes; those after the last saved token are only looked at again
TOKEN = "orders"  # noqa: S105  (the _id of the document that holds the resume token)


class Relay:
    def __init__(self, mongo: Mongo, orders: Orders, sagas: Sagas) -> None:
        self._mongo = mongo
        self._orders = orders
        self._sagas = sagas
        self._sweep_at = 0.0  # on the event loop's clock

    async def run(self) -> None:
        """Run until cancelled. Whatever goes wrong, it begins again: nobody else would start what is left."""
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001
                logger.warning("relay interrupted: %s", type(error).__name__)
                if not is_unavailable(error):
                    # The stream cannot go on from where it was: its history is lost, or the token is of another
                    # cluster, or a change is too large to be told. The sweep finds what it does not tell.
                    with suppress(PyMongoError):
                        await self._mongo.relay.delete_one({"_id": TOKEN})
                await asyncio.sleep(random.uniform(PAUSE / 2, PAUSE))  # noqa: S311

    async def _follow(self) -> None:
        pipeline: list[Document] = [{"$match": {"operationType": "insert"}}]
        async with self._mongo.watch(self._mongo.orders, pipeline, resume_after=await self._token()) as changes:
            self._sweep_at = 0.0  # now: after the stream is open, so that nothing falls in between
            unsaved = 1  # the place where the stream begins
            while True:
                if asyncio.get_running_loop().time() >= self._sweep_at:
                    await self._sweep()
                change = await changes.next()
                if change is not None:
                    await self._start(change["fullDocument"])
                    unsaved += 1
                if unsaved and (change is None or unsaved >= SAVE_EVERY):
                    await self._keep_token(changes.resume_token)
                    unsaved = 0

    async def _sweep(self) -> None:
        """Start what was placed and, as far as its status tells, not started."""
        self._sweep_in(SWEEP_EVERY)
        async for document in self._mongo.orders.find({"status": {"$in": [OrderStatus.PLACED.value, None]}}):
            await self._start(document)

    def _sweep_in(self, seconds: float) -> None:
        self._sweep_at = asyncio.get_running_loop().time() + seconds

    async def _start(self, document: Document) -> None:
        """Start one order. Where that fails, the others do not wait for it: the next sweep tries again."""
        try:
            await self._start_or_reject(document)
        except Exception as error:
            if is_unavailable(error):
                raise
            logger.warning("order %s cannot be started yet: %s", document["_id"], type(error).__name__)
            self._sweep_in(PAUSE)

    async def _start_or_reject(self, document: Document) -> None:
        try:
            order = await self._orders.adopt(document)
        except ValueError as error:
            failure = Failure(code="malformed", message=why_malformed(error))
            logger.error("order %s is malformed: %s", document["_id"], failure.message)
            await self._orders.reject(document["_id"], failure)
        else:
            if order.status not in FINAL:  # one that is restored from a backup has had its saga
                await self._sagas.start(order, PATIENCE)

    async def _token(self) -> Document | None:
        kept = await self._mongo.relay.find_one({"_id": TOKEN})
        return kept["token"] if kept else None

    async def _keep_token(self, token: Document | None) -> None:
        await self._mongo.relay.update_one({"_id": TOKEN}, {"$set": {"token": token}}, upsert=True)
