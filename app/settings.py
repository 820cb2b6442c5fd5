"""All settings, read from the environment once: `Settings` by the worker, `ApiSettings` by the API.

Temporal's address and credentials are not among them: `app.temporal` uses the SDK's own environment variables
(TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_API_KEY, TEMPORAL_TLS_*), which the `temporal` command reads too.
"""

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from app.names import NAME
from app.validation import IDENTIFIER

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _seconds(timeout: object) -> object:
    """Convert a number of seconds given as text, which pydantic would read as part of a duration."""
    return float(timeout) if isinstance(timeout, str) and timeout.replace(".", "", 1).isdecimal() else timeout


def _connection_string(uri: str) -> str:
    without_dns = re.sub(r"\+srv(?=://)|srv(MaxHosts|ServiceName)=[^&]*&?", "", uri)  # `+srv` would query it
    try:
        parse_uri(without_dns)
        MongoClient[dict[str, object]](without_dns, connect=False).close()  # reads its certificates, too
    except OSError as error:
        raise ValueError(f"a certificate cannot be used: {error}") from error
    except (PyMongoError, ValueError) as error:  # its text may contain part of the password
        raise ValueError("must be a MongoDB connection string (mongodb://...), a certificate with its key") from error
    return uri


class Scope(StrEnum):
    """The permissions of a caller of the API. Roles, which map people to scopes, belong to the identity provider."""

    ORDERS_READ = "orders:read"
    ORDERS_WRITE = "orders:write"
    ORDERS_APPROVE = "orders:approve"
    ORDERS_ANY = "orders:any"  # orders of every customer; without it, of the caller's own
    INVENTORY_READ = "inventory:read"
    INVENTORY_WRITE = "inventory:write"


def _random(key: str) -> str:
    if len(set(key)) < 10 or re.search("secret|password|change.?me|example|default", key, re.IGNORECASE):
        raise ValueError("must be random, for example from: openssl rand -hex 24")
    return key


def https_url(url: str) -> str:
    """Return the URL; raises ValueError if it is neither https nor on this machine."""
    parts = urlsplit(url)
    is_encrypted = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if url and not (is_encrypted and parts.hostname and not parts.username and url.isprintable() and " " not in url):
        raise ValueError("must be an https URL, without credentials")
    return url


Url = Annotated[str, AfterValidator(https_url)]
HostPort = Annotated[str, Field(pattern=r"^([^\s/]+:[0-9]{1,5})?$")]  # host:port


class ApiKey(BaseModel):
    """A caller with an API key. It sees and changes the orders of `customer` or, with `orders:any`, all orders."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{24,200}$"), AfterValidator(_random)]
    scopes: frozenset[Scope]
    customer: Annotated[str, Field(pattern=IDENTIFIER)] | None = None

    @model_validator(mode="after")
    def _owns_orders(self) -> Self:
        any_order, reaches_orders = Scope.ORDERS_ANY in self.scopes, any(s.startswith("orders:") for s in self.scopes)
        if any_order == bool(self.customer) and reaches_orders:
            raise ValueError("needs either a customer or the scope orders:any")
        return self


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True)

    mongodb_uri: Annotated[str, AfterValidator(_connection_string)] = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
    mongodb_database: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")] = NAME
    task_queue: Annotated[str, Field(min_length=1)] = NAME

    # An order of this total or more, in minor units of its currency, awaits approval.
    approval_threshold: Annotated[int, Field(ge=0)] = 50_000
    # The time that it waits, in seconds or as an ISO 8601 duration (P1D); a timeout counts as a rejection. Bounded,
    # because Temporal has no timers of 10,000 years or more: the workflow task would fail and be retried for ever.
    approval_timeout: Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0), le=3650 * DAY)] = DAY

    # How often orders are compared with the payment service's records, in seconds or as an ISO 8601 duration; 0: never.
    reconciliation_interval: Annotated[timedelta, BeforeValidator(_seconds), Field(ge=timedelta(), le=DAY)] = HOUR

    # The address of Temporal's Web UI, to which the order desk links; empty: no link.
    temporal_ui_url: str = ""
    # The address of the order desk, to which Temporal's Web UI links; empty: no link.
    order_desk_url: str = ""
    # host:port of the worker's Prometheus metrics; empty: none. (The API serves its own at /metrics.)
    worker_metrics_address: HostPort = ""
    # host:port of the worker's /healthz and /readyz; empty: none. (The API has both.)
    worker_health_address: HostPort = ""
    # The worker's version; both empty: none. Orders are pinned to the version that they began with.
    temporal_deployment_name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_/-]{0,99})?$")] = ""
    temporal_worker_build_id: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.:/+-]{0,99})?$")] = ""
    # Start the worker with the sandbox gateways, which charge no card and ship nothing.
    sandbox_gateways: bool = False
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)] = "INFO"

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if self.temporal_deployment_name and not self.temporal_worker_build_id:
            raise ValueError("TEMPORAL_WORKER_BUILD_ID: required with TEMPORAL_DEPLOYMENT_NAME")
        if self.temporal_worker_build_id and not self.temporal_deployment_name:
            raise ValueError("TEMPORAL_DEPLOYMENT_NAME: required with TEMPORAL_WORKER_BUILD_ID")
        return self

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SystemExit: a setting is wrong; the message names each wrong variable and the reason.
        """
        try:
            return cls()
        except ValidationError as error:
            found = [(".".join(map(str, e["loc"])).upper(), e["msg"]) for e in error.errors(include_url=False)]
            wrong = [f"{variable}: {message}" if variable else message for variable, message in found]
            raise SystemExit("wrong setting: " + "; ".join(wrong).replace("Value error, ", "")) from None
        except (ValueError, RecursionError) as error:  # of pydantic-settings: API_KEYS is not JSON
            raise SystemExit(f"wrong setting: {error}") from None


class ApiSettings(Settings):
    """Settings of the API alone. It starts with API keys, with an issuer of tokens, or explicitly open."""

    # API keys by caller: {"shop": {"key": "...", "scopes": ["orders:read", ...], "customer": "c-1"}}.
    api_keys: dict[Annotated[str, Field(pattern=IDENTIFIER)], ApiKey] = {}
    # The issuer of OpenID Connect access tokens, and the audience that they must name.
    oidc_issuer: Url = ""
    oidc_audience: str = ""
    # The issuer's public keys; empty: the URL that its discovery document names.
    oidc_jwks_url: Url = ""
    # The claim with the customer whose orders the token is for, unless it has the scope orders:any.
    oidc_customer_claim: Annotated[str, Field(min_length=1)] = "sub"
    # Serve every caller, but only under loopback host names.
    api_open: bool = False

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if self.api_open is bool(self.api_keys or self.oidc_issuer):
            raise ValueError("set either API_KEYS or OIDC_ISSUER, or API_OPEN=true, which serves every local caller")
        return self

    @model_validator(mode="after")
    def _no_tokens_for_others(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("OIDC_AUDIENCE: required with OIDC_ISSUER: tokens for other services must be refused")
        return self

    @model_validator(mode="after")
    def _no_shared_key(self) -> Self:
        if len({caller.key for caller in self.api_keys.values()}) < len(self.api_keys):
            raise ValueError("API_KEYS: two callers have the same key")
        return self
