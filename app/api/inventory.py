"""The inventory over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from app.api.auth import InventoryReader, InventoryWriter
from app.api.dependencies import ClientsDep, IdempotencyKey, document_id, fingerprint
from app.api.problems import BODY_PROBLEMS, responses
from app.api.route import ApiRoute
from app.domain import MAX_STOCK, Identifier, Model, Product, Text, UnitPrice

router = APIRouter(prefix="/inventory", tags=["inventory"], route_class=ApiRoute)


class NewProduct(Model):
    name: Text
    unit_price: UnitPrice
    available: Annotated[int, Field(strict=True, ge=0, le=MAX_STOCK)]


class Restock(Model):
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_STOCK)]


class Inventory(BaseModel):
    items: list[Product]


@router.get("", responses=responses())
async def inventory(_: InventoryReader, clients: ClientsDep) -> Inventory:
    return Inventory(items=list((await clients.products.by_sku()).values()))


@router.get("/{sku}", responses=responses(404))
async def read(_: InventoryReader, sku: Identifier, clients: ClientsDep) -> Product:
    return await clients.products.get(sku)


@router.put("/{sku}", responses={201: {"model": Product}, **responses(*BODY_PROBLEMS)})
async def put(_: InventoryWriter, sku: Identifier, new: NewProduct, clients: ClientsDep, response: Response) -> Product:
    """Create or replace a product. `available` excludes the quantities that orders hold."""
    product = Product(sku=sku, **new.model_dump())
    if await clients.products.put(product):
        response.status_code = 201
    return product


@router.post("/{sku}/restock", responses=responses(404, 409, *BODY_PROBLEMS))
async def restock(
    caller: InventoryWriter,
    sku: Identifier,
    more: Restock,
    clients: ClientsDep,
    response: Response,
    key: IdempotencyKey = None,
) -> Product:
    """Add to the available quantity. With an Idempotency-Key, a repeated request takes effect once."""
    restock_id = document_id("rst", caller.name, key)
    if not await clients.products.restock(restock_id, f"{sku}:{fingerprint(more)}", sku, more.quantity):
        response.headers["Idempotency-Replayed"] = "true"
    return await clients.products.get(sku)
