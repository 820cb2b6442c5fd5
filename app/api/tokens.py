"""OpenID Connect access tokens (RFC 9068): verified with the issuer's public keys, which are cached."""

import asyncio
import logging
import re
from typing import Any

import httpx
import jwt
from jwt import PyJWK, PyJWKSet

from app.api.auth import Caller
from app.api.problems import Problem, Unauthenticated
from app.settings import ApiSettings, Scope, https_url
from app.validation import IDENTIFIER

logger = logging.getLogger(__name__)

ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]  # asymmetric: the API can verify tokens, but never issue one
LATEST = 2**53  # in Unix time; a float holds no later second
CLAIMS = ["exp", "iat", "iss", "aud", "sub"]

# Seconds.
LEEWAY = 30  # the maximum difference of the clocks
FRESH = 300.0  # the age up to which keys are used without a question
STALE = 86_400.0  # the age up to which keys are used while the issuer is unavailable
FETCH_INTERVAL = 10.0  # at least, so that invented key ids cause no load on the issuer
FETCH_TIMEOUT = 5.0
PATIENCE = 2.0  # for a fetch that a request needs; shorter than the deadline of a request


class Tokens:
    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._keys: dict[str | None, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetch: asyncio.Task[None] | None = None

    async def identify(self, credentials: str) -> Caller | None:
        """Return the caller with this token, or None if it is none.

        Raises:
            Unauthenticated
            Problem: 503; the token cannot be verified at the moment.
        """
        if not self._settings.oidc_issuer or credentials.count(".") != 2:
            return None
        claims = await self._claims(credentials)
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

    async def _claims(self, token: str) -> dict[str, Any]:
        """Verify the token and return its claims."""
        settings = self._settings
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise Unauthenticated("token refused: its issuer does not know its key")
            options: Any = {"require": CLAIMS, "enforce_minimum_key_length": True}
            trusted: Any = {"audience": settings.oidc_audience, "issuer": settings.oidc_issuer}
            return jwt.decode(token, key, ALGORITHMS, **trusted, leeway=LEEWAY, options=options)
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"token refused: {type(error).__name__}") from error

    async def _key(self, key_id: str | None) -> PyJWK | None:
        """Return the key, or None if the issuer does not have it; fetch the keys if necessary."""
        now = asyncio.get_running_loop().time()
        age = now - self._fetched_at
        key = self._keys.get(key_id) if age < STALE else None
        if key and age < FRESH:
            return key
        if now - self._tried_at >= FETCH_INTERVAL:
            self._tried_at = now
            self._fetch = asyncio.create_task(self._fetch_keys())
        if key is None and self._fetch:  # else the fetch continues in the background
            await asyncio.wait([self._fetch], timeout=PATIENCE)
            if self._fetched_at < now:  # failed, too slow, or the last fetch was a moment ago
                raise Problem("issuer-unavailable", "cannot verify the token yet; its issuer is slow; try again")
            key = self._keys.get(key_id)
        return key

    async def _fetch_keys(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT), httpx.AsyncClient() as http:
                url = self._settings.oidc_jwks_url or await self._discover(http)
                found = PyJWKSet.from_dict((await http.get(url)).raise_for_status().json()).keys
        except Exception as error:  # noqa: BLE001  (another program's answer)
            logger.warning("cannot fetch the keys of the token issuer: %s", type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in found if key.public_key_use != "enc"}
            self._fetched_at = asyncio.get_running_loop().time()

    async def _discover(self, http: httpx.AsyncClient) -> str:
        """Return the URL of the keys, by OpenID Connect Discovery 1.0, sections 4 and 4.3."""
        issuer = self._settings.oidc_issuer
        found = await http.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        document = found.raise_for_status().json()
        if document["issuer"] != issuer:
            raise ValueError("the discovery document is for another issuer")
        return https_url(document["jwks_uri"])
