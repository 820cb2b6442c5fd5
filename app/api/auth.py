"""API keys. If API_KEYS is set, requests need one, except for health, metrics and the page; else the API is open."""

import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.dependencies import ClientsDep
from app.api.problems import Problem

ANYONE = "anyone"

_bearer = HTTPBearer(auto_error=False, description="An API key, if the operator has set any")


async def caller(clients: ClientsDep, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """Return the caller's name, to which its idempotency keys belong.

    Raises:
        Problem: 401; keys are set, and the request has none of them.
    """
    if not clients.settings.api_keys:
        return ANYONE
    given = sent.credentials.encode() if sent else b""
    for name, key in clients.settings.api_keys.items():
        if hmac.compare_digest(given, key.encode()):
            return name
    raise Problem(401, "cannot authenticate: send an API key as Authorization: Bearer")


Caller = Annotated[str, Depends(caller)]
