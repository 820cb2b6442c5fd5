"""OpenID Connect access tokens (RFC 9068): verified with the issuer's public keys, which are cached."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import httpx
import jwt
from jwt import PyJWK

from app.settings import ApiSettings, https_url

logger = logging.getLogger(__name__)

# The key type (kty) of each accepted algorithm. All are asymmetric: the API can verify tokens, but never issue one.
ALGORITHMS = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
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
    """The key of the token is not known, and the issuer cannot be asked at the moment."""


class Issuer:
    def __init__(self, settings: ApiSettings) -> None:
        self._issuer, self._audience = settings.oidc_issuer, settings.oidc_audience
        self._jwks_url = settings.oidc_jwks_url
        self._keys: dict[tuple[str | None, str], PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetch: asyncio.Task[None] | None = None

    async def claims(self, token: str) -> dict[str, Any]:
        """Verify the token and return its claims.

        Raises:
            Unauthenticated
            IssuerUnavailable
        """
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = str(header["alg"]), header.get("kid")
            if algorithm not in ALGORITHMS:
                raise Unauthenticated("token refused: its algorithm is not accepted")
            key = await self._key(key_id, algorithm)
            if key is None:
                raise Unauthenticated("token refused: its issuer does not know its key")
            options: Any = {"require": CLAIMS, "enforce_minimum_key_length": True}
            return jwt.decode(
                token, key, [algorithm], audience=self._audience, issuer=self._issuer, leeway=LEEWAY, options=options
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"token refused: {type(error).__name__}") from error

    async def _key(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key, or None if the issuer does not have it; fetch the keys if necessary."""
        now = asyncio.get_running_loop().time()
        age = now - self._fetched_at
        key = self._keys.get((key_id, algorithm)) if age < STALE else None
        if key and age < FRESH:
            return key
        if now - self._tried_at >= FETCH_INTERVAL:
            self._tried_at = now
            self._fetch = asyncio.create_task(self._fetch_keys())
        if key is None and self._fetch:  # else the fetch continues in the background
            await asyncio.wait([self._fetch], timeout=PATIENCE)
            if self._fetched_at < now:  # failed, too slow, or the last fetch was a moment ago
                raise IssuerUnavailable
            key = self._keys.get((key_id, algorithm))
        return key

    async def _fetch_keys(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT), httpx.AsyncClient() as http:
                url = self._jwks_url or await self._discover(http)
                keys = _usable((await http.get(url)).raise_for_status().json()["keys"])
        except (httpx.HTTPError, TimeoutError, LookupError, TypeError, ValueError) as error:
            logger.warning("cannot fetch the keys of the token issuer: %s", type(error).__name__)
        else:
            self._keys, self._fetched_at = keys, asyncio.get_running_loop().time()

    async def _discover(self, http: httpx.AsyncClient) -> str:
        """Return the URL of the keys, by OpenID Connect Discovery 1.0, sections 4 and 4.3."""
        found = await http.get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        document = found.raise_for_status().json()
        if document["issuer"] != self._issuer:
            raise ValueError("the discovery document is for another issuer")
        return https_url(document["jwks_uri"])


def _usable(keys: list[dict[str, Any]]) -> dict[tuple[str | None, str], PyJWK]:
    """Return the signature keys by id and algorithm. A key never serves an algorithm of another type."""
    usable = {}
    for key in keys:
        for algorithm, kind in ALGORITHMS.items():
            if key["kty"] == kind and key.get("alg", algorithm) == algorithm and key.get("use", "sig") == "sig":
                with suppress(jwt.PyJWTError):  # a curve or size that is not accepted
                    usable[key.get("kid"), algorithm] = PyJWK(key, algorithm)
    if not usable:
        raise ValueError("no usable key")
    return usable
