"""What endpoints share: the clients of this process, and how requests are read."""

import hashlib
import json
from typing import Annotated

from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel

from app.api.problems import UnsupportedMediaType
from app.mongo import Mongo
from app.orders import Orders
from app.sagas import Sagas
from app.settings import Settings


def _mongo(request: Request) -> Mongo:
    mongo: Mongo = request.app.state.mongo
    return mongo


def _orders(request: Request) -> Orders:
    orders: Orders = request.app.state.orders
    return orders


def _sagas(request: Request) -> Sagas:
    sagas: Sagas = request.app.state.sagas
    return sagas


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


SettingsDep = Annotated[Settings, Depends(_settings)]
MongoDep = Annotated[Mongo, Depends(_mongo)]
OrdersDep = Annotated[Orders, Depends(_orders)]
SagasDep = Annotated[Sagas, Depends(_sagas)]

OrderId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="Makes a request that is sent again have its effect once, without a limit in time.",
    ),
]


async def json_only(request: Request) -> None:
    """Raises: UnsupportedMediaType: there is a body, and it does not say that it is JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if has_body and media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType("send the body as Content-Type: application/json")


JsonOnly = Depends(json_only)


def derived_id(prefix: str, caller: str, key: str) -> str:
    """The id that this caller's key stands for: the same key always means the same document, so that MongoDB's unique
    `_id` alone keeps the promise, and keeps it for ever (G2)."""
    digest = hashlib.sha256(json.dumps([prefix, caller, key]).encode()).hexdigest()
    return f"{prefix}_{digest[:26]}"


def fingerprint(request: BaseModel) -> str:
    """Tells a repeated body from another one under the same key."""
    return hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
