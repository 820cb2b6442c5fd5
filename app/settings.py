"""Every setting, read from the environment once.

How Temporal is reached is not here: `app.temporal` leaves that to the SDK's own environment variables
(TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_API_KEY, TEMPORAL_TLS_*), which the `temporal` command reads too.
"""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

DAY = timedelta(days=1)


def _seconds(timeout: object) -> object:
    """Text that is a number, which pydantic takes for a piece of a duration."""
    return float(timeout) if isinstance(timeout, str) and timeout.replace(".", "", 1).isdecimal() else timeout


def _connection_string(uri: str) -> str:
    try:
        if not uri.startswith("mongodb+srv://"):  # to look into it would ask the network
            parse_uri(uri)
    except (PyMongoError, ValueError) as error:  # its text may hold a piece of the password
        raise ValueError("is no MongoDB connection string (mongodb://...)") from error
    return uri


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True)

    mongodb_uri: Annotated[str, AfterValidator(_connection_string)] = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
    mongodb_database: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")] = "orders"
    task_queue: Annotated[str, Field(min_length=1)] = "orders"

    # An order of this total or more, in minor units of its currency, awaits approval.
    approval_threshold: Annotated[int, Field(ge=0)] = 50_000
    # How long it waits, in seconds or as ISO 8601 duration (P1D); a timeout counts as a rejection. Temporal has no
    # timers of 10,000 years or more: a workflow would retry its task for ever.
    approval_timeout: Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0), le=3650 * DAY)] = DAY

    # Callers by name, {"shop": "its-secret"}; empty: the API is open. A key opens every order; a caller's own are only
    # its idempotency keys.
    api_keys: dict[str, Annotated[str, Field(pattern=r"^[\x21-\x7e]+$")]] = {}
    # Where the order desk links to a workflow in Temporal's Web UI; empty: no link.
    temporal_ui_url: str = ""
    # host:port where the worker serves Prometheus metrics; empty: nowhere. (The API serves its own at /metrics.)
    worker_metrics_address: str = ""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)] = "INFO"

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SystemExit: a setting is wrong; its message names each wrong variable and what is wrong with it.
        """
        try:
            return cls()
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_url=False)]
            raise SystemExit("wrong setting: " + "; ".join(wrong)) from None
        except ValueError as error:  # pydantic-settings: a value that is no JSON where JSON is due (API_KEYS)
            raise SystemExit(f"wrong setting: {error}") from None
