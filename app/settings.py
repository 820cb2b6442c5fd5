"""All settings, read from the environment once.

Temporal's address and credentials are not among them: `app.temporal` uses the SDK's own environment variables
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
    """Convert a number of seconds given as text, which pydantic would read as part of a duration."""
    return float(timeout) if isinstance(timeout, str) and timeout.replace(".", "", 1).isdecimal() else timeout


def _connection_string(uri: str) -> str:
    try:
        if not uri.startswith("mongodb+srv://"):  # parsing it would query the DNS
            parse_uri(uri)
    except (PyMongoError, ValueError) as error:  # its text may contain part of the password
        raise ValueError("must be a MongoDB connection string (mongodb://...)") from error
    return uri


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True)

    mongodb_uri: Annotated[str, AfterValidator(_connection_string)] = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
    mongodb_database: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")] = "orders"
    task_queue: Annotated[str, Field(min_length=1)] = "orders"

    # An order of this total or more, in minor units of its currency, awaits approval.
    approval_threshold: Annotated[int, Field(ge=0)] = 50_000
    # The time that it waits, in seconds or as an ISO 8601 duration (P1D); a timeout counts as a rejection. Bounded,
    # because Temporal has no timers of 10,000 years or more: the workflow task would fail and be retried for ever.
    approval_timeout: Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0), le=3650 * DAY)] = DAY

    # API keys by caller, {"shop": "its-secret"}; empty: the API is open. A key gives access to every order; only
    # idempotency keys are separate for each caller.
    api_keys: dict[str, Annotated[str, Field(pattern=r"^[\x21-\x7e]+$")]] = {}
    # The address of Temporal's Web UI, to which the order desk links; empty: no link.
    temporal_ui_url: str = ""
    # host:port of the worker's Prometheus metrics; empty: none. (The API serves its own at /metrics.)
    worker_metrics_address: str = ""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)] = "INFO"

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SystemExit: a setting is wrong; the message names each wrong variable and the reason.
        """
        try:
            return cls()
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_url=False)]
            raise SystemExit("wrong setting: " + "; ".join(wrong)) from None
        except ValueError as error:  # of pydantic-settings: API_KEYS is not JSON
            raise SystemExit(f"wrong setting: {error}") from None
