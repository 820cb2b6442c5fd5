"""API keys. With API_KEYS set, requests need one, but for health, metrics and the page; without, the API is open."""

import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.dependencies import ClientsDep
from app.api.problems import Problem

ANYONE = "anyone"

_bearer = HTTPBearer(auto_error=False, description="An API key, where the operator has set some")


async def caller(clients: ClientsDep, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """The name of the caller, to whom idempotency keys belong.

    Raises:
        Problem: 401; keys are set, and this is none of them.
    """
    if not clients.settings.api_keys:
        return ANYONE
    given = sent.credentials.encode() if sent else b""
    for name, key in clients.settings.api_keys.items():
        if hmac.compare_digest(given, key.encode()):
            return name
    raise Problem(401, "send Authorization: Bearer with an API key")


Caller = Annotated[str, Depends(caller)]
