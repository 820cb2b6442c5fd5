"""Settings follow docs/operations.md. An invalid value is reported in one line that names the variable."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from app.settings import ApiSettings, Settings


@pytest.mark.parametrize(
    ("text", "timeout"),
    [
        ("86400", timedelta(days=1)),
        ("1.5", timedelta(seconds=1.5)),
        ("P1D", timedelta(days=1)),
        ("PT90M", timedelta(minutes=90)),
        ("P1DT12H", timedelta(hours=36)),
    ],
)
def test_approval_timeout_accepts_seconds_or_iso_8601(
    text: str, timeout: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPROVAL_TIMEOUT", text)
    assert Settings.load().approval_timeout == timeout


def test_approval_timeout_defaults_to_one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPROVAL_TIMEOUT", raising=False)
    assert Settings.load().approval_timeout == timedelta(days=1)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.0", "-1", "-P1D", "PT0S", "P11Y", "999999999", "soon", "1e3", "nan", "inf", "9" * 400, "1.5.1", "."],
)
def test_invalid_approval_timeout_is_refused_in_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPROVAL_TIMEOUT", text)
    with pytest.raises(SystemExit) as error:
        Settings.load()
    assert str(error.value).startswith("wrong setting: APPROVAL_TIMEOUT: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("APPROVAL_THRESHOLD", "much"),
        ("LOG_LEVEL", "loud"),
        ("MONGODB_URI", "localhost"),
        ("MONGODB_URI", "mongodb://user:pass@word@127.0.0.1/"),
        ("MONGODB_DATABASE", "a.b"),
        ("WORKER_METRICS_ADDRESS", "9464"),
        ("WORKER_HEALTH_ADDRESS", "127.0.0.1"),
        ("WORKER_HEALTH_ADDRESS", "http://127.0.0.1:8080"),
        # Temporal refuses these, but only when the worker polls.
        ("TEMPORAL_DEPLOYMENT_NAME", "orders.eu"),
        ("TEMPORAL_DEPLOYMENT_NAME", "orders:eu"),
        ("TEMPORAL_DEPLOYMENT_NAME", "__orders"),
        ("TEMPORAL_WORKER_BUILD_ID", "__unversioned__"),
    ],
)
def test_invalid_setting_is_one_line_without_its_value(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as error:
        Settings.load()
    message = str(error.value)
    assert message.startswith("wrong setting: ")
    assert variable in message.upper()
    assert "\n" not in message
    assert "pass" not in message
    assert "with space" not in message


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"TEMPORAL_DEPLOYMENT_NAME": "shop/orders"}, "TEMPORAL_WORKER_BUILD_ID"),
        ({"TEMPORAL_WORKER_BUILD_ID": "1.0", "TEMPORAL_DEPLOYMENT_NAME": ""}, "TEMPORAL_DEPLOYMENT_NAME"),
    ],
)
def test_half_of_a_version_is_refused_and_the_missing_half_named(
    given: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as error:
        Settings.load()
    assert str(error.value) == f"wrong setting: {missing}: required with {next(iter(given))}"


# --- settings of the API

KEY = "8c1e0b7d4a635f2a9d0b37c1"
TOKENS = {"OIDC_ISSUER": "https://issuer.test", "OIDC_AUDIENCE": "orders"}


def api_key(**fields: object) -> dict[str, str]:
    return {"API_KEYS": json.dumps({"shop": {"key": KEY, "scopes": ["orders:read", "orders:any"], **fields}})}


def load_api_settings(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> ApiSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return ApiSettings.load()


@pytest.mark.parametrize(
    "environment",
    [
        {"API_OPEN": "true"},
        TOKENS,
        {**TOKENS, "OIDC_ISSUER": "http://127.0.0.1:9000", "OIDC_JWKS_URL": "http://localhost:9000/keys"},
        api_key(),
        {**TOKENS, **api_key(), "API_OPEN": "false"},
        api_key(scopes=["orders:read", "orders:write"], customer="c-1"),
        api_key(scopes=["inventory:write"]),
    ],
)
def test_api_starts_with_keys_or_issuer_or_explicitly_open(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_api_settings(monkeypatch, environment)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "API_OPEN"),
        ({"API_KEYS": "{}"}, "API_OPEN"),
        ({"API_KEYS": "null"}, "API_KEYS"),
        ({"API_KEYS": ""}, "API_KEYS"),
        ({"API_KEYS": "["}, "API_KEYS"),
        ({"API_KEYS": '{"shop": "with space"}'}, "API_KEYS.SHOP"),
        ({"API_OPEN": "perhaps"}, "API_OPEN"),
        ({**api_key(), "API_OPEN": "true"}, "API_OPEN"),
        ({**TOKENS, "API_OPEN": "true"}, "API_OPEN"),
        (api_key(key=""), "API_KEYS.SHOP.KEY"),
        (api_key(key="x"), "API_KEYS.SHOP.KEY"),
        (api_key(key="with space " * 3), "API_KEYS.SHOP.KEY"),
        (api_key(key="a" * 32), "API_KEYS.SHOP.KEY"),
        (api_key(key="change-me-please-0123456789"), "API_KEYS.SHOP.KEY"),
        (api_key(key="<openssl rand -hex 24>"), "API_KEYS.SHOP.KEY"),
        (api_key(key="its-secret-0123456789-abcdef"), "API_KEYS.SHOP.KEY"),
        (api_key(scopes=["orders:all"]), "API_KEYS.SHOP.SCOPES"),
        (api_key(scopes=["orders:read"]), "orders:any"),
        (api_key(customer="c-1"), "orders:any"),
        (api_key(customer="not an identifier"), "API_KEYS.SHOP.CUSTOMER"),
        (api_key(role="admin"), "API_KEYS.SHOP.ROLE"),
        ({"API_KEYS": json.dumps({"(anyone)": json.loads(api_key()["API_KEYS"])["shop"]})}, "API_KEYS"),
        ({"API_KEYS": json.dumps(dict.fromkeys(("a", "b"), json.loads(api_key()["API_KEYS"])["shop"]))}, "API_KEYS"),
        ({**TOKENS, "OIDC_AUDIENCE": ""}, "OIDC_AUDIENCE"),
        ({**TOKENS, "OIDC_ISSUER": "http://issuer.test"}, "OIDC_ISSUER"),
        ({**TOKENS, "OIDC_ISSUER": "issuer.test"}, "OIDC_ISSUER"),
        ({**TOKENS, "OIDC_ISSUER": "https://"}, "OIDC_ISSUER"),
        ({**TOKENS, "OIDC_ISSUER": " https://issuer.test"}, "OIDC_ISSUER"),
        ({**TOKENS, "OIDC_ISSUER": "http://127.0.0.1.issuer.test"}, "OIDC_ISSUER"),
        ({**TOKENS, "OIDC_JWKS_URL": "https://user:its-secret@issuer.test/keys"}, "OIDC_JWKS_URL"),
        ({"API_KEYS": "[" * 100_000}, "wrong setting"),
        ({**TOKENS, "OIDC_JWKS_URL": "file:///etc/passwd"}, "OIDC_JWKS_URL"),
    ],
)
def test_api_does_not_start_open_by_accident_or_with_a_weak_key(
    environment: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as error:
        load_api_settings(monkeypatch, environment)
    message = str(error.value)
    assert message.startswith("wrong setting: ")
    assert named.upper() in message.upper()
    assert "\n" not in message
    for secret in (KEY, "with space", "change-me", "its-secret", "aaaa"):
        assert secret not in message
