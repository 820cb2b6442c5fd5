"""An issuer of access tokens on this machine, to try the API with tokens: `API_OPEN=false make dev`, `make token`.

Its key is in a file under DEV_DIR, so `make token` needs no running issuer. Not for production: no password is asked.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from fastapi import FastAPI
from jwt.algorithms import ECAlgorithm

from app.settings import Scope
from dev.servers import HOST

AUDIENCE = "orders"
LIFETIME = 3600  # seconds
KEY_ID = "dev"


def port() -> int:
    return int(os.environ.get("ISSUER_PORT") or 8400)


def url() -> str:
    return f"http://{HOST}:{port()}"


def private_key() -> EllipticCurvePrivateKey:
    """Return the key of the issuer; make one the first time."""
    path = Path(os.environ.get("DEV_DIR") or Path(__file__).parent.parent / ".dev") / "issuer.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = generate_private_key(SECP256R1())
        pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path.touch(mode=0o600)
        path.write_bytes(made.private_bytes(*pem))
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return key


def make_token(subject: str, scopes: Sequence[str] = tuple(Scope), **claims: Any) -> str:
    """Return an access token for an hour."""
    now = int(time.time())
    standard = {"iss": url(), "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + LIFETIME}
    return jwt.encode(
        {**standard, "scope": " ".join(scopes), **claims}, private_key(), "ES256", headers={"kid": KEY_ID}
    )


def create_app() -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.get("/.well-known/openid-configuration")
    async def discover() -> dict[str, str]:
        return {"issuer": url(), "jwks_uri": f"{url()}/keys"}

    @app.get("/keys")
    async def keys() -> dict[str, list[dict[str, str]]]:
        public = json.loads(ECAlgorithm.to_jwk(private_key().public_key()))
        return {"keys": [{**public, "kid": KEY_ID, "use": "sig", "alg": "ES256"}]}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="make token", description="Print an access token for the API of `make dev`.")
    parser.add_argument("--subject", default="c-1", help="the caller, and the customer whose orders it reaches")
    parser.add_argument("--scopes", nargs="+", choices=list(Scope), default=tuple(Scope), metavar="SCOPE")
    arguments = parser.parse_args()
    print(make_token(arguments.subject, arguments.scopes))


if __name__ == "__main__":
    main()
