"""Shared by the endpoints: clients, ids and idempotency keys."""

import asyncio
import hashlib
import json
import secrets
from copy import copy
from typing import Annotated, Self

from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel
from temporalio.client import Client

from app import domain, logs
from app.api.auth import Caller, authenticate
from app.mongo import Mongo
from app.order_workflows import OrderWorkflows
from app.orders import OrderRepository
from app.products import ProductRepository
from app.settings import ApiSettings
from app.validation import IDEMPOTENCY_KEY, IDENTIFIER

STARTS_AFTER_ANSWER = 1


class Order(domain.Order):
    """An order in an answer of the API. `workflow_url`: in Temporal's Web UI, if TEMPORAL_UI_URL is set."""

    workflow_url: str | None


class Clients:
    """The clients and repositories of this process, in `app.state.clients`; an endpoint gets those `of` its caller."""

    def __init__(self, settings: ApiSettings, temporal: Client) -> None:
        self.mongo = Mongo(settings.mongodb_uri, settings.mongodb_database)
        self.orders = OrderRepository(self.mongo)
        self.products = ProductRepository(self.mongo)
        self.workflows = OrderWorkflows(temporal, settings)
        # A POST is answered before the workflow is started. If so many starts are under way, Temporal is the slower
        # part: then the answer waits for the start, and so slows down the clients.
        self.starts_after_answer = asyncio.Semaphore(STARTS_AFTER_ANSWER)

    def of(self, caller: Caller) -> Self:
        """Limit every query and update to the caller's own orders: any other order does not exist for it."""
        own = copy(self)
        own.orders = self.orders.of(caller.customer)
        return own

    def shown(self, order: domain.Order) -> Order:
        # Not validated again: a malformed order is shown, too.
        return Order.model_construct(**vars(order), workflow_url=self.workflows.workflow_url(order.order_id))


async def _clients(request: Request) -> Clients:
    clients: Clients = request.app.state.clients
    return clients.of(await authenticate(request))


async def _order_id(order_id: Annotated[str, Path(pattern=IDENTIFIER)]) -> str:
    logs.order_id.set(order_id)
    return order_id


ClientsDep = Annotated[Clients, Depends(_clients)]
OrderId = Annotated[str, Depends(_order_id)]
TAKES_EFFECT_ONCE = "A request repeated with the same key takes effect once. Keys do not expire."
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", pattern=IDEMPOTENCY_KEY, description=TAKES_EFFECT_ONCE)
]


def document_id(prefix: str, caller: str, key: str | None) -> str:
    """Derive a document's id from the caller's idempotency key, or make a new id without one.

    The same key always gives the same id, so MongoDB's unique `_id` makes a request idempotent, without expiry (G2).
    """
    digest = hashlib.sha256(json.dumps([prefix, caller, key or secrets.token_hex()]).encode()).hexdigest()
    return f"{prefix}_{digest[:26]}"


def fingerprint(request: BaseModel) -> str:
    """Hash a body, to tell a repeated request from a different one with the same key."""
    return hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
