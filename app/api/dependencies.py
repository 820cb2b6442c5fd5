"""Shared by the endpoints: the clients of this process, ids and idempotency keys."""

import hashlib
import json
import secrets
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel
from temporalio.client import Client

from app.mongo import Mongo
from app.order_workflows import OrderWorkflows
from app.orders import OrderRepository
from app.products import ProductRepository
from app.settings import Settings
from app.validation import IDEMPOTENCY_KEY, IDENTIFIER


class Clients:
    """One of each per process, in `app.state.clients`."""

    def __init__(self, settings: Settings, temporal: Client) -> None:
        self.settings = settings
        self.mongo = Mongo(settings.mongodb_uri, settings.mongodb_database)
        self.orders = OrderRepository(self.mongo)
        self.products = ProductRepository(self.mongo)
        self.workflows = OrderWorkflows(temporal, settings)


async def _clients(request: Request) -> Any:
    return request.app.state.clients


ClientsDep = Annotated[Clients, Depends(_clients)]
OrderId = Annotated[str, Path(pattern=IDENTIFIER)]
TAKES_EFFECT_ONCE = "A request repeated with the same key takes effect once, without a limit in time."
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", pattern=IDEMPOTENCY_KEY, description=TAKES_EFFECT_ONCE)
]


def document_id(prefix: str, caller: str, key: str | None) -> str:
    """The id that this caller's key stands for. The same key is always the same document, so MongoDB's unique `_id`
    alone makes a request idempotent, without a limit in time (G2). Without a key, the id is a new one."""
    digest = hashlib.sha256(json.dumps([prefix, caller, key or secrets.token_hex()]).encode()).hexdigest()
    return f"{prefix}_{digest[:26]}"


def fingerprint(request: BaseModel) -> str:
    """Tells a repeated body from another one under the same key."""
    return hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
