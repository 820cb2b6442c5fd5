"""Shared by the endpoints: the clients of this process, ids and idempotency keys."""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel

from app.api.problems import NotFound
from app.domain import IDENTIFIER, Order
from app.mongo import Mongo
from app.order_workflows import OrderWorkflows
from app.orders import OrderRepository
from app.products import ProductRepository
from app.settings import Settings


@dataclass(frozen=True)
class Clients:
    """One of each per process, in `app.state.clients`."""

    settings: Settings
    mongo: Mongo
    orders: OrderRepository
    products: ProductRepository
    workflows: OrderWorkflows


async def _clients(request: Request) -> Clients:
    clients: Clients = request.app.state.clients
    return clients


ClientsDep = Annotated[Clients, Depends(_clients)]


OrderId = Annotated[str, Path(pattern=IDENTIFIER)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="A request repeated with the same key takes effect once, without a limit in time.",
    ),
]


def derived_id(prefix: str, caller: str, key: str) -> str:
    """The id that this caller's key stands for. The same key is always the same document, so MongoDB's unique `_id`
    alone makes a request idempotent, without a limit in time (G2)."""
    digest = hashlib.sha256(json.dumps([prefix, caller, key]).encode()).hexdigest()
    return f"{prefix}_{digest[:26]}"


def fingerprint(request: BaseModel) -> str:
    """Tells a repeated body from another one under the same key."""
    return hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


async def get_or_404(orders: OrderRepository, order_id: str) -> Order:
    order = await orders.find(order_id)
    if order is None:
        raise NotFound(f"there is no order {order_id}")
    return order
