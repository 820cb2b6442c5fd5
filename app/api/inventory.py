"""The inventory over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.auth import InventoryReader, InventoryWriter
from app.api.dependencies import ClientsDep, IdempotencyKey, document_id, fingerprint
from app.api.problems import BODY_PROBLEMS, responses
from app.api.route import ApiRoute, link_to_next
from app.domain import MAX_STOCK, Identifier, Model, Product, Text, UnitPrice
from app.validation import IDENTIFIER

router = APIRouter(prefix="/inventory", tags=["inventory"], route_class=ApiRoute)
RESTOCK_PROBLEMS = ("not-found", "stock-limit-reached", "idempotency-key-reused")


class NewProduct(Model):
    name: Text
    unit_price: UnitPrice
    available: Annotated[int, Field(strict=True, ge=0, le=MAX_STOCK)]


class Restock(Model):
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_STOCK)]


class ProductPage(BaseModel):
    items: list[Product]
    next_cursor: str | None


@router.get("", responses=responses())
async def list_products(
    _: InventoryReader,
    clients: ClientsDep,
    request: Request,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=IDENTIFIER)] = None,
) -> ProductPage:
    """List products by SKU. A page may have fewer than `limit`: a malformed product counts, but is not listed."""
    items, next_cursor = await clients.products.page(limit, cursor)
    link_to_next(request, response, next_cursor)
    return ProductPage(items=items, next_cursor=next_cursor)


@router.get("/{sku}", responses=responses("not-found"))
async def get_product(_: InventoryReader, sku: Identifier, clients: ClientsDep) -> Product:
    """Return a product with its unit price and its available quantity."""
    return await clients.products.get(sku)


@router.put("/{sku}", responses={201: {"model": Product}, **responses(*BODY_PROBLEMS)})
async def put_product(
    _: InventoryWriter, sku: Identifier, new: NewProduct, clients: ClientsDep, response: Response
) -> Product:
    """Create or replace a product. `available` excludes the quantities that orders hold."""
    product = Product(sku=sku, **new.model_dump())
    if await clients.products.put(product):
        response.status_code = 201
    return product


@router.post("/{sku}/restock", responses=responses(*RESTOCK_PROBLEMS, *BODY_PROBLEMS))
async def restock_product(
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
