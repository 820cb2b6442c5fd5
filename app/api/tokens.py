"""OpenID Connect access tokens (RFC 9068): verified with the issuer's public keys, which are cached."""

import asyncio
import logging
from typing import Any

import httpx
import jwt
from jwt import PyJWK, PyJWKSet

from app.settings import ApiSettings, https_url

logger = logging.getLogger(__name__)

ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]  # asymmetric: the API can verify tokens, but never issue one
CLAIMS = ["exp", "iat", "iss", "aud", "sub"]

# Seconds.
LEEWAY = 30  # the maximum difference of the clocks
FRESH = 300.0  # the age up to which keys are used without a question
STALE = 86_400.0  # the age up to which keys are used while the issuer is unavailable
FETCH_INTERVAL = 10.0  # at least, so that invented key ids cause no load on the issuer
FETCH_TIMEOUT = 5.0
PATIENCE = 2.0  # for a fetch that a request needs; shorter than the deadline of a request


class Unauthenticated(Exception):
    """The credentials are missing, unknown or not valid any more. The text is the reason, without what was sent."""


class IssuerUnavailable(Exception):
    """The key of the token is not known, and the issuer does not answer or was asked a moment ago."""


class Issuer:
    def __init__(self, settings: ApiSettings) -> None:
        self._issuer, self._audience = settings.oidc_issuer, settings.oidc_audience
        self._jwks_url = settings.oidc_jwks_url
        self._keys: dict[str | None, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetch: asyncio.Task[None] | None = None

    async def claims(self, token: str) -> dict[str, Any]:
        """Verify the token and return its claims.

        Raises:
            Unauthenticated
            IssuerUnavailable
        """
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise Unauthenticated("token refused: its issuer does not know its key")
            options: Any = {"require": CLAIMS, "enforce_minimum_key_length": True}
            return jwt.decode(
                token, key, ALGORITHMS, audience=self._audience, issuer=self._issuer, leeway=LEEWAY, options=options
            )
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
                raise IssuerUnavailable
            key = self._keys.get(key_id)
        return key

    async def _fetch_keys(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT), httpx.AsyncClient() as http:
                url = self._jwks_url or await self._discover(http)
                found = PyJWKSet.from_dict((await http.get(url)).raise_for_status().json()).keys
        except Exception as error:  # noqa: BLE001  (another program's answer)
            logger.warning("cannot fetch the keys of the token issuer: %s", type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in found if key.public_key_use != "enc"}
            self._fetched_at = asyncio.get_running_loop().time()

    async def _discover(self, http: httpx.AsyncClient) -> str:
        """Return the URL of the keys, by OpenID Connect Discovery 1.0, sections 4 and 4.3."""
        found = await http.get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        document = found.raise_for_status().json()
        if document["issuer"] != self._issuer:
            raise ValueError("the discovery document is for another issuer")
        return https_url(document["jwks_uri"])
