"""Callers and their scopes: API keys, and OpenID Connect access tokens.

A caller with a customer sees and changes only that customer's orders; `app.api.dependencies` limits the repository.
"""

import hmac
import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from app.api.problems import Problem
from app.api.tokens import Issuer, Unauthenticated
from app.settings import ApiSettings, Scope
from app.validation import IDENTIFIER

LATEST = 2**53  # in Unix time; a float holds no later second
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


class Authenticator:
    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._issuer = Issuer(settings) if settings.oidc_issuer else None

    async def identify(self, credentials: str | None) -> Caller:
        """Return the caller with this API key or token.

        Raises:
            Unauthenticated
            IssuerUnavailable: the token cannot be verified at the moment.
        """
        if self._settings.api_open:
            return ANYONE
        if credentials is None:
            raise Unauthenticated("no credentials")
        for name, known in self._settings.api_keys.items():
            if hmac.compare_digest(credentials.encode(), known.key.encode()):
                return Caller(name, known.scopes, known.customer)
        if self._issuer is None or credentials.count(".") != 2:
            raise Unauthenticated("unknown API key")
        return self._caller(await self._issuer.claims(credentials))

    def _caller(self, claims: dict[str, Any]) -> Caller:
        granted = claims.get("scope", claims.get("scp"))  # RFC 9068; Okta and Entra ID send `scp`
        names = granted.split() if isinstance(granted, str) else granted if isinstance(granted, list) else []
        scopes = frozenset(scope for scope in Scope if scope in names)
        customer = claims.get(self._settings.oidc_customer_claim)
        if Scope.ORDERS_ANY in scopes:
            customer = None
        elif not (isinstance(customer, str) and re.fullmatch(IDENTIFIER, customer)):
            customer = ""  # no order has this customer
        if not claims["sub"].isprintable():
            raise Unauthenticated("token refused: its subject is not printable")
        # The prefix keeps a subject from taking over the idempotency keys of an API key.
        return Caller(f"oidc:{claims['sub']}", scopes, customer, min(int(claims["exp"]), LATEST))


async def authenticate(request: Request) -> Caller:
    """Return the caller of this request. `ApiRoute` calls this before it reads the body.

    Raises:
        Unauthenticated
        IssuerUnavailable
    """
    if not hasattr(request.state, "caller"):
        sent = await _bearer(request)
        request.state.caller = await request.app.state.authenticator.identify(sent and sent.credentials)
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
