"""The relay: every order document gets its saga, whoever wrote it (G1).

The orders are their own outbox. A change stream on them tells of each insert, and its resume token is kept in MongoDB,
so that a restart passes nothing over. A sweep at the start, and when the stream's history is lost, starts what was
placed before. Starting a saga twice does nothing, so any number of relays may run; each worker process runs one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import timedelta

from pymongo.errors import PyMongoError

from app.models import Failure, OrderStatus, why_malformed
from app.mongo import Document, HistoryLost, Mongo
from app.orders import Orders
from app.sagas import Sagas, TemporalUnavailable

logger = logging.getLogger(__name__)

PATIENCE = timedelta(seconds=10)  # for one start; there is no caller who waits
PAUSE_AT_MOST = 5.0  # seconds between tries while Temporal or MongoDB is away
SAVE_EVERY = 100  # changes; those after the last saved token are only looked at again
TOKEN = "orders"  # noqa: S105  (the _id of the document that holds the resume token)


class Relay:
    def __init__(self, mongo: Mongo, orders: Orders, sagas: Sagas) -> None:
        self._mongo = mongo
        self._orders = orders
        self._sagas = sagas

    async def run(self) -> None:
        """Run until cancelled; outages of MongoDB and Temporal are waited out."""
        failures = 0
        while True:
            try:
                await self._follow()
            except HistoryLost:
                logger.warning("the change stream's history is lost: sweeping instead")
                await self._forget_token()
            except (PyMongoError, TemporalUnavailable) as error:
                failures += 1
                pause = random.uniform(0.1, min(PAUSE_AT_MOST, 0.1 * 2**failures))  # noqa: S311
                logger.warning("relay interrupted, again in %.1f s: %s", pause, type(error).__name__)
                await asyncio.sleep(pause)
            else:
                failures = 0

    async def _follow(self) -> None:
        pipeline: list[Document] = [{"$match": {"operationType": "insert"}}]
        async with self._mongo.watch(
            self._mongo.orders, pipeline, resume_after=await self._token()
        ) as changes:
            await self._sweep()  # after the stream is open, so that nothing falls in between
            unsaved = 0
            while True:
                change = await changes.next()
                if change is not None:
                    await self._start(change["fullDocument"])
                    unsaved += 1
                if unsaved and (change is None or unsaved >= SAVE_EVERY):
                    await self._keep_token(changes.resume_token)
                    unsaved = 0

    async def _sweep(self) -> None:
        """Start what was placed and, as far as its status tells, not started."""
        async for document in self._mongo.orders.find({"status": {"$in": [OrderStatus.PLACED.value, None]}}):
            await self._start(document)

    async def _start(self, document: Document) -> None:
        try:
            order = await self._orders.adopt(document)
        except ValueError as error:
            failure = Failure(code="malformed", message=why_malformed(error))
            logger.error("order %s is malformed: %s", document["_id"], failure.message)
            await self._orders.reject(document["_id"], failure)
        else:
            await self._sagas.start(order, PATIENCE)

    async def _token(self) -> Document | None:
        kept = await self._mongo.relay.find_one({"_id": TOKEN})
        return kept["token"] if kept else None

    async def _keep_token(self, token: Document | None) -> None:
        await self._mongo.relay.update_one({"_id": TOKEN}, {"$set": {"token": token}}, upsert=True)

    async def _forget_token(self) -> None:
        await self._mongo.relay.delete_one({"_id": TOKEN})
