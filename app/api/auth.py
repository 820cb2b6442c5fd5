"""Callers and their scopes. `app.api.api_keys` and `app.api.tokens` identify them.

A caller with a customer sees and changes only that customer's orders; `app.api.dependencies` limits the repository.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from app.api.problems import Problem, Unauthenticated
from app.settings import Scope

_bearer = HTTPBearer(auto_error=False, description="An API key or an access token. Without effect if the API is open")


@dataclass(frozen=True)
class Caller:
    """The sender of a request, to whom its idempotency keys belong.

    `customer` is None for a caller that may reach every order. `expires_at` is that of its token, in Unix time.
    """

    name: str
    scopes: frozenset[Scope]
    customer: str | None = None
    expires_at: float | None = None


ANYONE = Caller("(anyone)", frozenset(Scope))  # of an open API; no API key can have this name


class Authenticator(Protocol):
    async def identify(self, credentials: str) -> Caller | None:
        """Return the caller with these credentials, or None if they are of another kind.

        Raises:
            Unauthenticated: they are of this kind, but not valid.
            Problem: they cannot be verified at the moment.
        """


async def _identify(app: FastAPI, credentials: str | None) -> Caller:
    if app.state.settings.api_open:
        return ANYONE
    if credentials is None:
        raise Unauthenticated("no credentials")
    for authenticator in app.state.authenticators:
        caller: Caller | None = await authenticator.identify(credentials)
        if caller:
            return caller
    raise Unauthenticated("unknown API key")


async def authenticate(request: Request) -> Caller:
    """Return the caller of this request. `ApiRoute` calls this before it reads the body.

    Raises:
        Unauthenticated
        Problem: 503; the caller cannot be identified at the moment.
    """
    if not hasattr(request.state, "caller"):
        sent = await _bearer(request)
        request.state.caller = await _identify(request.app, sent.credentials if sent else None)
    caller: Caller = request.state.caller
    return caller


async def authorize(
    request: Request,
    needed: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],  # for the OpenAPI description
) -> Caller:
    """Return the caller, if it has the scopes that the endpoint needs.

    Raises:
        Problem: 403; also what `authenticate` raises.
    """
    caller = await authenticate(request)
    for scope in needed.scopes:
        if scope not in caller.scopes:
            raise Problem("not-allowed", f"cannot authorize: the scope {scope} is missing")
    return caller


AnyCaller = Annotated[Caller, Security(authorize)]
OrderReader = Annotated[Caller, Security(authorize, scopes=[Scope.ORDERS_READ])]
OrderWriter = Annotated[Caller, Security(authorize, scopes=[Scope.ORDERS_WRITE])]
Approver = Annotated[Caller, Security(authorize, scopes=[Scope.ORDERS_APPROVE])]
InventoryReader = Annotated[Caller, Security(authorize, scopes=[Scope.INVENTORY_READ])]
InventoryWriter = Annotated[Caller, Security(authorize, scopes=[Scope.INVENTORY_WRITE])]
