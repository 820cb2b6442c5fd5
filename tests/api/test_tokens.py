"""Access tokens of an OpenID Connect issuer: verified, and never confused with an issuer that cannot be asked."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from app.api import tokens
from app.domain import OrderStatus
from app.mongo import Mongo
from app.settings import ApiKey, ApiSettings, Scope
from dev.servers import Server
from tests.kit.http import bearer, kind_of, serve
from tests.kit.issuer import KEYS, Issuer, public_jwk
from tests.kit.orders import order_body, order_document
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

OWN_KEY = ApiKey(key="8c1e0b7d4a635f2a9d0b37c1", scopes=frozenset(Scope))
STRANGER = ec.generate_private_key(ec.SECP256R1())
weak_key = cache(lambda: rsa.generate_private_key(65_537, 1024))  # noqa: S505  (takes long)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer() as issuer:
        yield issuer


@pytest.fixture
async def api(settings: ApiSettings, temporal_server: Server, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    accepting = issuer.settings(settings)
    accepting = accepting.model_copy(update={"api_keys": {"shop": OWN_KEY}})
    async with serve(accepting, temporal_server.address, patient=False) as http:
        yield http


async def status(api: httpx.AsyncClient, token: str) -> int:
    return (await api.get("/orders", headers=bearer(token))).status_code


# --- accepted


@pytest.mark.parametrize("algorithm", KEYS)
async def test_token_of_each_algorithm_is_accepted(api: httpx.AsyncClient, issuer: Issuer, algorithm: str) -> None:
    assert await status(api, issuer.token(algorithm)) == 200


async def test_token_reaches_the_orders_of_its_subject_with_its_scopes(
    api: httpx.AsyncClient, issuer: Issuer, shop: Shop, mongo: Mongo
) -> None:
    await shop.stock()
    await mongo.orders.insert_one(order_document(customer_id="cus_2"))
    answer = await api.post("/orders", json=order_body(), headers=bearer(issuer.token()))
    order_id = answer.json()["order_id"]
    listed = (await api.get("/orders", headers=bearer(issuer.token(scope=None, scp=["orders:read"])))).json()["items"]
    assert [order["order_id"] for order in listed] == [order_id]
    foreign = order_body(customer_id="cus_2")
    assert (await api.post("/orders", json=foreign, headers=bearer(issuer.token()))).status_code == 422
    any_customer = bearer(issuer.token(scope="orders:write orders:any"))
    assert (await api.post("/orders", json=foreign, headers=any_customer)).status_code == 202
    reads_only = bearer(issuer.token(scope="orders:read openid profile"))
    assert (await api.post(f"/orders/{order_id}/cancel", headers=reads_only)).status_code == 403
    order = await mongo.orders.find_one({"_id": order_id})
    assert order is not None
    assert order["placed_by"] == "oidc:cus_1"


async def test_customer_comes_from_the_configured_claim(
    settings: ApiSettings, temporal_server: Server, issuer: Issuer, mongo: Mongo
) -> None:
    await mongo.orders.insert_one(order_document(customer_id="cus_9"))
    claim = issuer.settings(settings, oidc_customer_claim="customer", oidc_jwks_url=f"{issuer.url}/keys")
    issuer.discovery = {}  # not asked, if the URL of the keys is configured
    async with serve(claim, temporal_server.address) as api:
        answer = await api.get("/orders", headers=bearer(issuer.token(sub="auth0|1", customer="cus_9")))
        assert len(answer.json()["items"]) == 1
        for customer in (None, "", 9, True, ["cus_9"], {"$ne": 1}, "cus_9\ud800"):  # such a caller reaches no order
            token = bearer(issuer.token(customer=customer))
            assert (await api.get("/orders", headers=token)).json()["items"] == [], customer
            assert (await api.post("/orders", json=order_body(), headers=token)).status_code == 422
            assert (
                await api.get("/inventory", headers=bearer(issuer.token(scope="inventory:read")))
            ).status_code == 200


async def test_clocks_may_differ_by_30_seconds(api: httpx.AsyncClient, issuer: Issuer) -> None:
    now = int(time.time())
    assert await status(api, issuer.token(exp=now - 20)) == 200
    assert await status(api, issuer.token(iat=now + 20, nbf=now + 20)) == 200
    assert await status(api, issuer.token(exp=now - 40)) == 401
    assert await status(api, issuer.token(iat=now + 40)) == 401


# --- refused


def segment(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(issuer: Issuer) -> str:
    return f"{segment({'alg': 'none', 'kid': 'ES256'})}.{segment(issuer.claims())}."


def signed_with_public_key(issuer: Issuer) -> str:
    """HS256 with the public key as the secret: the confusion of algorithms."""
    pem = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public: bytes = KEYS["RS256"][0]().public_key().public_bytes(*pem)
    signed = f"{segment({'alg': 'HS256', 'kid': 'RS256'})}.{segment(issuer.claims())}"
    digest = hmac.digest(public, signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def by_stranger(issuer: Issuer, **headers: Any) -> str:
    return jwt.encode(issuer.claims(), STRANGER, "ES256", headers={"kid": "ES256", **headers})


def with_embedded_key(issuer: Issuer) -> str:
    own = json.loads(ECAlgorithm.to_jwk(STRANGER.public_key()))
    return by_stranger(issuer, jwk=own, jku="http://127.0.0.1:1/keys", x5u="http://127.0.0.1:1/cert")


def changed_after_signing(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    return f"{head}.{segment(issuer.claims(scope='orders:any'))}.{signature}"


def with_key_of_another_type(issuer: Issuer) -> str:
    return issuer.token("ES256", headers={"kid": "RS256"})


def with_weak_key(issuer: Issuer) -> str:
    issuer.keys.append({**json.loads(RSAAlgorithm.to_jwk(weak_key().public_key())), "kid": "weak"})
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        return jwt.encode(issuer.claims(), weak_key(), "RS256", headers={"kid": "weak"})


def with_encryption_key(issuer: Issuer) -> str:
    issuer.keys[:] = [public_jwk("ES256", "ES256", use="enc"), *issuer.keys[:1]]
    return issuer.token()


Forgery = Callable[[Issuer], str]
FORGERIES: dict[str, Forgery] = {
    "unsigned": unsigned,
    "signed with the public key": signed_with_public_key,
    "signed by a stranger": by_stranger,
    "embedded key": with_embedded_key,
    "changed after signing": changed_after_signing,
    "weak key": with_weak_key,
    "unknown crit": lambda issuer: issuer.token(headers={"crit": ["exp2"], "exp2": 1}),
    "ES384": lambda issuer: jwt.encode(issuer.claims(), ec.generate_private_key(ec.SECP384R1()), "ES384"),
    "other audience": lambda issuer: issuer.token(aud="billing"),
    "other issuer": lambda issuer: issuer.token(iss="https://issuer.test"),
    "odd subject": lambda issuer: issuer.token(sub="cus\ud800"),
    "not valid yet": lambda issuer: issuer.token(nbf=int(time.time()) + 60),
    "no algorithm": lambda issuer: f"{segment({'kid': 'ES256'})}.{segment(issuer.claims())}.x",
    "neither algorithm nor key id": lambda _: f"{segment({})}.{segment({})}.x",
    "algorithm is a list": lambda issuer: f"{segment({'alg': ['ES256']})}.{segment(issuer.claims())}.x",
    "no JSON": lambda issuer: f"{segment('x')}.{segment('y')}.z",
    "not base64": lambda _: "not.base.64!",
    **{f"no {claim}": lambda issuer, claim=claim: issuer.token(**{claim: None}) for claim in tokens.CLAIMS},  # type: ignore[misc]
}


async def test_forged_token_is_refused(
    api: httpx.AsyncClient, issuer: Issuer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "FETCH_INTERVAL", 0.0)
    for name, forge in FORGERIES.items():
        token = forge(issuer)
        answer = await api.get("/orders", headers=bearer(token))
        assert answer.status_code == 401, (name, answer.text)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert token not in caplog.text + answer.text
    assert await status(api, issuer.token()) == 200
    monkeypatch.undo()
    assert await status(api, unsigned(issuer)) == 401  # not 503: it needs no fetch


@pytest.mark.parametrize("forgery", [with_key_of_another_type, with_encryption_key])
async def test_key_serves_only_its_own_algorithm_and_use(
    api: httpx.AsyncClient, issuer: Issuer, forgery: Forgery
) -> None:
    assert await status(api, forgery(issuer)) == 401


# --- the issuer's keys


async def test_rotated_key_is_fetched_and_removed_key_expires(
    api: httpx.AsyncClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "FETCH_INTERVAL", 0.0)
    assert await status(api, issuer.token()) == 200
    issuer.keys = [public_jwk("ES256", "new")]
    assert await status(api, issuer.token(headers={"kid": "new"})) == 200
    assert issuer.fetches == 2
    assert await status(api, issuer.token("RS256")) == 401
    monkeypatch.setattr(tokens, "FRESH", 0.0)
    issuer.keys = [public_jwk("RS256", "newest")]
    # Refreshed in the background.
    await eventually(lambda: status(api, issuer.token(headers={"kid": "new"})), lambda answer: answer == 401)


async def test_invented_key_ids_cause_one_fetch(api: httpx.AsyncClient, issuer: Issuer) -> None:
    answers = await asyncio.gather(
        *(api.get("/orders", headers=bearer(issuer.token(headers={"kid": f"key-{n}"}))) for n in range(30))
    )
    assert {answer.status_code for answer in answers} <= {401, 503}
    assert await status(api, issuer.token()) == 200
    assert issuer.fetches == 1


async def test_slow_issuer_is_503_and_api_keys_work_meanwhile(
    api: httpx.AsyncClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PATIENCE", 0.1)
    issuer.answers.clear()
    slow = await api.get("/orders", headers=bearer(issuer.token()))
    assert (slow.status_code, slow.headers["Retry-After"]) == (503, "2")
    assert kind_of(slow) == "issuer-unavailable"
    assert (await api.get("/orders", headers=bearer(OWN_KEY.key))).status_code == 200
    issuer.answers.set()
    await eventually(lambda: status(api, issuer.token()), lambda answer: answer == 200)
    assert issuer.fetches == 1  # the fetch went on


async def test_issuer_that_goes_away_and_comes_back(
    api: httpx.AsyncClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await status(api, issuer.token()) == 200
    await issuer.__aexit__()
    for constant in ("FETCH_INTERVAL", "FRESH"):
        monkeypatch.setattr(tokens, constant, 0.0)
    assert await status(api, issuer.token()) == 200  # with the keys that are known
    assert await status(api, issuer.token(headers={"kid": "new"})) == 503
    monkeypatch.setattr(tokens, "STALE", 0.0)
    assert await status(api, issuer.token()) == 503
    assert (await api.get("/orders", headers=bearer(OWN_KEY.key))).status_code == 200
    monkeypatch.undo()
    monkeypatch.setattr(tokens, "FETCH_INTERVAL", 0.0)
    async with issuer:
        issuer.keys.append(public_jwk("ES256", "new"))
        assert await status(api, issuer.token(headers={"kid": "new"})) == 200


@pytest.mark.parametrize(
    "fault", ["error", "redirect", "no keys", "no list", "no url", "other issuer", "keys elsewhere"]
)
async def test_cold_or_broken_issuer_is_503(api: httpx.AsyncClient, issuer: Issuer, fault: str) -> None:
    match fault:
        case "error":
            issuer.status = "500 Internal Server Error"
        case "redirect":
            issuer.status = "302 Found\r\nLocation: http://127.0.0.1:1/"
        case "no keys":
            issuer.keys = []
        case "no list":
            issuer.keys = [{"kty": 1}, "key"]  # type: ignore[list-item]
        case "no url":
            issuer.discovery["jwks_uri"] = 5  # type: ignore[assignment]
        case "other issuer":
            issuer.discovery["issuer"] = "https://issuer.test"
        case "keys elsewhere":
            issuer.discovery["jwks_uri"] = f"http://127.1:{issuer.port}/keys"  # reached, if it were asked
    assert await status(api, issuer.token()) == 503


# --- where a token must not be


async def test_token_reaches_neither_temporal_nor_mongodb_nor_the_log(
    api: httpx.AsyncClient, issuer: Issuer, shop: Shop, mongo: Mongo, worker: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await shop.stock()
    token = issuer.token()
    order_id = (await api.post("/orders", json=order_body(), headers=bearer(token))).json()["order_id"]
    await shop.wait_for_status(order_id, OrderStatus.COMPLETED)
    history = (await shop.handle(order_id).fetch_history()).to_json()
    documents = [str(document) for name in await mongo.database.list_collection_names()
                 async for document in mongo.database[name].find()]  # fmt: skip
    for part in token.split("."):
        assert part not in history + caplog.text + "".join(documents)
    assert "oidc:" not in history
