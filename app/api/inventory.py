"""The inventory over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app.api.auth import Caller
from app.api.bodies import JsonRoute
from app.api.dependencies import ClientsDep, IdempotencyKey, derived_id, fingerprint
from app.api.problems import Conflict, NotFound, body_responses, responses
from app.domain import MAX_STOCK, Identifier, Model, Product, Text, UnitPrice

router = APIRouter(prefix="/inventory", tags=["inventory"], route_class=JsonRoute)

Sku = Annotated[Identifier, Path()]


class NewProduct(Model):
    name: Text
    unit_price: UnitPrice
    available: Annotated[int, Field(strict=True, ge=0, le=MAX_STOCK)]


class Restock(Model):
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_STOCK)]


class Inventory(BaseModel):
    items: list[Product]


@router.get("", responses=responses())
async def inventory(_: Caller, clients: ClientsDep) -> Inventory:
    return Inventory(items=await clients.products.all())


@router.get("/{sku}", responses=responses(NotFound))
async def read(_: Caller, sku: Sku, clients: ClientsDep) -> Product:
    return await clients.products.get(sku)


@router.put("/{sku}", responses={201: {"model": Product}, **body_responses()})
async def put(_: Caller, sku: Sku, new: NewProduct, clients: ClientsDep, response: Response) -> Product:
    """Create or replace a product. `available` does not count what orders hold."""
    product = Product(sku=sku, **new.model_dump())
    if await clients.products.put(product):
        response.status_code = 201
    return product


@router.post("/{sku}/restock", responses=body_responses(NotFound, Conflict))
async def restock(
    caller: Caller,
    sku: Sku,
    more: Restock,
    clients: ClientsDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Product:
    """Add to the available quantity. With an Idempotency-Key it is added once, however often the request is sent."""
    if idempotency_key is None:
        await clients.products.add(sku, more.quantity)
    else:
        restock_id = derived_id("rst", caller, idempotency_key)
        if not await clients.products.add_once(restock_id, f"{sku}:{fingerprint(more)}", sku, more.quantity):
            response.headers["Idempotency-Replayed"] = "true"
    return await clients.products.get(sku)
