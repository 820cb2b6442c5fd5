"""The stock over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app.api.auth import Caller
from app.api.dependencies import IdempotencyKey, JsonOnly, MongoDep, derived_id, fingerprint
from app.api.problems import Conflict, Invalid, NotFound, body_responses, responses
from app.models import MAX_STOCK, Article, Identifier, Model, Text, UnitPrice, article_of
from app.mongo import DuplicateKeyError, Mongo, Session

router = APIRouter(prefix="/inventory", tags=["inventory"])

Sku = Annotated[Identifier, Path()]
Pieces = Annotated[int, Field(strict=True, ge=0, le=MAX_STOCK)]


class NewArticle(Model):
    name: Text
    unit_price: UnitPrice
    available: Pieces


class Restock(Model):
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_STOCK)]


class Stock(BaseModel):
    items: list[Article]


@router.get("", responses=responses())
async def stock(_: Caller, mongo: MongoDep) -> Stock:
    found = mongo.inventory.find().sort("_id", 1)
    return Stock(items=[article async for document in found if (article := article_of(document))])


@router.get("/{sku}", responses=responses(NotFound))
async def read(_: Caller, sku: Sku, mongo: MongoDep) -> Article:
    return await _known(mongo, sku)


@router.put("/{sku}", responses={201: {"model": Article}, **body_responses()}, dependencies=[JsonOnly])
async def put(_: Caller, sku: Sku, article: NewArticle, mongo: MongoDep, response: Response) -> Article:
    """Create an article or replace it. `available` is what nobody holds: what orders hold is not counted in it."""
    result = await mongo.inventory.update_one({"_id": sku}, {"$set": article.model_dump()}, upsert=True)
    if result.upserted_id is not None:
        response.status_code = 201
    return Article(sku=sku, **article.model_dump())


@router.post("/{sku}/restock", responses=body_responses(NotFound, Conflict), dependencies=[JsonOnly])
async def restock(
    caller: Caller,
    sku: Sku,
    more: Restock,
    mongo: MongoDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Article:
    """Add pieces. With an Idempotency-Key they are added once, however often the request is sent."""
    if idempotency_key is None:
        await _add(mongo, sku, more.quantity, None)
        return await _known(mongo, sku)

    restock_id = derived_id("rst", caller, idempotency_key)
    mark = f"{sku}:{fingerprint(more)}"

    async def once(session: Session) -> None:
        await mongo.restocks.insert_one({"_id": restock_id, "fingerprint": mark}, session=session)
        await _add(mongo, sku, more.quantity, session)

    try:
        await mongo.run_transaction(once)
    except DuplicateKeyError as error:
        done = await mongo.restocks.find_one({"_id": restock_id})
        if done is None or done["fingerprint"] != mark:
            raise Invalid.field("Idempotency-Key", "was used for another restock") from error
        response.headers["Idempotency-Replayed"] = "true"
    return await _known(mongo, sku)


async def _known(mongo: Mongo, sku: str) -> Article:
    document = await mongo.inventory.find_one({"_id": sku})
    article = None if document is None else article_of(document)
    if article is None:
        raise NotFound(f"there is no article {sku}")
    return article


async def _add(mongo: Mongo, sku: str, quantity: int, session: Session | None) -> None:
    result = await mongo.inventory.update_one(
        {"_id": sku, "available": {"$lte": MAX_STOCK - quantity}},
        {"$inc": {"available": quantity}},
        session=session,
    )
    if result.matched_count == 0:
        await _known(mongo, sku)
        raise Conflict(f"there cannot be more than {MAX_STOCK} pieces of an article")
