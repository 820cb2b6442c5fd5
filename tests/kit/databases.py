"""The databases of the tests. Each test has one for itself."""

from __future__ import annotations

import asyncio

from app.mongo import Mongo


class Databases:
    """Databases of earlier tests, emptied in the background: a new one takes four times as long."""

    def __init__(self) -> None:
        self.free: list[str] = []
        self._cleaning: set[asyncio.Task[None]] = set()

    def clean(self, mongo: Mongo) -> None:
        self._cleaning.add(asyncio.create_task(self._clean(mongo)))

    async def _clean(self, mongo: Mongo) -> None:
        found = [each async for each in await mongo.database.list_collections()]
        own = {each.name for each in (mongo.orders, mongo.inventory, mongo.restocks, mongo.relay, mongo.sandbox)}
        if all(each["name"] in own and not each["options"] for each in found):
            for each in found:
                await mongo.database[each["name"]].delete_many({})
            self.free.append(mongo.database.name)
        else:  # with a view, a validator or a profile
            await mongo.client.drop_database(mongo.database.name)
        mongo.close()

    async def finish(self) -> None:
        await asyncio.gather(*self._cleaning)


async def create_collections(mongo: Mongo, *names: str) -> None:
    """Create collections, because a transaction that creates one takes a different course."""
    for name in {*names} - {*await mongo.database.list_collection_names()}:
        await mongo.database.create_collection(name)
