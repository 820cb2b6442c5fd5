"""What endpoints share: the clients of this process, and how requests are read."""

import hashlib
import json
from email.message import Message
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel

from app.api.problems import Invalid, UnsupportedMediaType
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
    """What FastAPI lets pass: JSON by another name, in another encoding, or with a field twice, of which one counts.

    Raises:
        UnsupportedMediaType, Invalid
    """
    body = await request.body()
    if not body:
        return
    content = Message()
    content["content-type"] = request.headers.get("content-type", "")
    if content.get_content_type() != "application/json" or content.get_content_charset("utf-8") != "utf-8":
        raise UnsupportedMediaType("send the body as Content-Type: application/json, which is always UTF-8")
    try:
        json.loads(body.decode(), object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        raise Invalid.field("body", "is not UTF-8") from error


def _each_once(fields: list[tuple[str, Any]]) -> None:
    if len(dict(fields)) < len(fields):
        raise Invalid.field("body", "a field is there twice")


JsonOnly = Depends(json_only)


def derived_id(prefix: str, caller: str, key: str) -> str:
    """The id that this caller's key stands for: the same key always means the same document, so that MongoDB's unique
    `_id` alone keeps the promise, and keeps it for ever (G2)."""
    digest = hashlib.sha256(json.dumps([prefix, caller, key]).encode()).hexdigest()
    return f"{prefix}_{digest[:26]}"


def fingerprint(request: BaseModel) -> str:
    """Tells a repeated body from another one under the same key."""
    return hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
