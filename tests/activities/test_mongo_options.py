"""MongoDB's options follow docs/operations.md: what MONGODB_URI decides, and what no option can change."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pymongo import ReadPreference
from pymongo.errors import NetworkTimeout

from app.mongo import Mongo
from app.orders import OrderRepository
from dev.servers import Server
from dev.stack import ROOT
from tests.kit.faults import failing
from tests.kit.orders import order_document

_, SECTION = (ROOT / "docs/operations.md").read_text().split("\n## On a network")[0].split("\n## MongoDB's options")
OPTIONS, SHARDING = (
    re.findall(r"^\| `(\w+)` \| (.+?) \|", part, re.MULTILINE) for part in SECTION.split("**Sharding**")
)

# Another value of each option, and how the driver holds it.
OTHERS: dict[str, tuple[str, Any]] = {
    "serverSelectionTimeoutMS": ("1500", 1.5),
    "connectTimeoutMS": ("1500", 1.5),
    "socketTimeoutMS": ("1500", 1.5),
    "timeoutMS": ("1500", 1.5),
    "maxPoolSize": ("7", 7),
    "minPoolSize": ("3", 3),
    "maxIdleTimeMS": ("1500", 1.5),
    "waitQueueTimeoutMS": ("1500", 1.5),
    "compressors": ("zlib", ["zlib"]),
    "appName": ("stall", "stall"),
    "wTimeoutMS": ("1500", 1500),
    "retryReads": ("false", False),
}


def effective(mongo: Mongo) -> dict[str, Any]:
    """The options with which the driver works."""
    options: Any = mongo.client.options
    pool = options.pool_options
    return {
        "serverSelectionTimeoutMS": options.server_selection_timeout,
        "connectTimeoutMS": pool.connect_timeout,
        "socketTimeoutMS": pool.socket_timeout,
        "timeoutMS": options.timeout,
        "maxPoolSize": pool.max_pool_size,
        "minPoolSize": pool.min_pool_size,
        "maxIdleTimeMS": pool.max_idle_time_seconds,
        "waitQueueTimeoutMS": pool.wait_queue_timeout,
        "compressors": pool._compression_settings.compressors if pool._compression_settings else None,
        "appName": pool.appname,
        "wTimeoutMS": mongo.orders.write_concern.document.get("wtimeout"),
        "retryReads": options.retry_reads,
    }


@pytest.mark.parametrize(("option", "default"), OPTIONS)
async def test_option_of_the_connection_string_overrides_the_documented_default(
    mongod: Server, option: str, default: str
) -> None:
    value, held = OTHERS[option]
    # In another case, as the connection string allows.
    plain, changed = (Mongo(f"{mongod.address}{more}", "test") for more in ("", f"&{option.upper()}={value}"))
    try:
        assert effective(changed) == effective(plain) | {option: held}
        before = effective(plain)[option]
        shown = f"{before * 1000:.0f}" if isinstance(before, float) else str(before or "none").lower()
        assert default.strip("`") == shown
    finally:
        plain.close()
        changed.close()


def test_every_option_and_the_shard_key_of_every_collection_is_documented(mongo: Mongo) -> None:
    assert [option for option, _ in OPTIONS] == list(OTHERS)
    collections = [name for name, each in vars(mongo).items() if isinstance(each, type(mongo.orders))]
    assert [name for name, _ in SHARDING] == collections


async def test_call_fails_after_socket_timeout_of_the_connection_string(mongod: Server, mongo: Mongo) -> None:
    name = mongo.database.name
    impatient = Mongo(f"{mongod.address}&socketTimeoutMS=50&retryReads=false", name, app_name=name)
    try:
        async with failing(mongo, "find", blockConnection=True, blockTimeMS=1_000):
            with pytest.raises(NetworkTimeout):
                await impatient.orders.find_one({})
    finally:
        impatient.close()


async def test_commands_are_compressed_if_the_connection_string_says_so(mongod: Server, mongo: Mongo) -> None:
    async def compressed() -> int:
        status = await mongo.client.admin.command("serverStatus")
        return int(status["network"]["compression"]["zlib"]["decompressor"]["bytesIn"])

    compressing = Mongo(f"{mongod.address}&compressors=zlib", mongo.database.name)
    try:
        before = await compressed()
        await compressing.orders.insert_one({"note": "x" * 10_000})
        assert await compressed() > before
    finally:
        compressing.close()


WEAK = "w=1&readConcernLevel=local&readPreference=secondaryPreferred"


@pytest.mark.parametrize("given", ["connection string", "client"])
async def test_weak_concerns_are_overridden(mongod: Server, mongo: Mongo, given: str) -> None:
    uri = f"{mongod.address}&{WEAK}"
    owner = Mongo(uri, mongo.database.name)
    other = Mongo(owner.client if given == "client" else uri, mongo.database.name)
    try:
        document = order_document()
        for collection in (other.orders, other.inventory, other.restocks, other.relay):
            assert collection.write_concern.document == {"w": "majority"}
            assert collection.read_concern.level == "majority"
            assert collection.read_preference == ReadPreference.PRIMARY
        await other.orders.insert_one(document)
        assert await other.run_transaction(lambda session: other.orders.count_documents({}, session=session)) == 1
        order = await OrderRepository(other).get(document["_id"])
        assert order.created_at.tzinfo is not None  # though the client returns naive times
        other.close()
        await owner.client.admin.command("ping")  # a client belongs to its owner
    finally:
        other.close()
        owner.close()
