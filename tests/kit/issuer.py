"""An issuer of access tokens on a loopback port. It rotates its keys, answers late, badly or not at all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.settings import ApiSettings
from dev.servers import HOST, free_port

AUDIENCE = "orders"
_rsa_key = cache(lambda: rsa.generate_private_key(65_537, 2048))  # takes long: at the first use, one for all issuers
_ec_key = cache(lambda: ec.generate_private_key(ec.SECP256R1()))
KEYS: dict[str, tuple[Callable[[], Any], Any]] = {
    "RS256": (_rsa_key, RSAAlgorithm),
    "PS256": (_rsa_key, RSAAlgorithm),
    "ES256": (_ec_key, ECAlgorithm),
    "EdDSA": (cache(ed25519.Ed25519PrivateKey.generate), OKPAlgorithm),
}


def public_jwk(algorithm: str, key_id: str, **more: str) -> dict[str, Any]:
    key, kind = KEYS[algorithm]
    return {**json.loads(kind.to_jwk(key().public_key())), "kid": key_id, **more}


class Issuer:
    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.keys = [public_jwk(algorithm, algorithm, alg=algorithm) for algorithm in KEYS]
        self.fetches = 0
        self.answers = asyncio.Event()  # cleared: the keys are not answered until it is set
        self.answers.set()
        self.status = "200 OK"
        self.discovery = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, HOST, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Go away. Enter again to come back."""
        self.answers.set()
        if self._server:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        if path == b"/keys":
            self.fetches += 1
            await self.answers.wait()
        body = json.dumps({"keys": self.keys} if path == b"/keys" else self.discovery).encode()
        head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()

    def settings(self, settings: ApiSettings, **changes: Any) -> ApiSettings:
        """The settings of an API that accepts this issuer's tokens."""
        accepts = {"api_open": False, "oidc_issuer": self.url, "oidc_audience": AUDIENCE, **changes}
        return ApiSettings.model_validate({**settings.model_dump(), **accepts})

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        standard = {"iss": self.url, "aud": AUDIENCE, "sub": "cus_1", "iat": now, "exp": now + 60}
        claims = {**standard, "scope": "orders:read orders:write", **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, algorithm: str = "ES256", *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token for the customer cus_1. `changes` are claims; None leaves one out."""
        headers = {"kid": algorithm, **(headers or {})}
        return jwt.encode(self.claims(**changes), KEYS[algorithm][0](), algorithm, headers=headers)
