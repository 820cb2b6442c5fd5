"""Temporal: client, data converter, search attributes."""

import logging
import os
import ssl
from pathlib import Path
from typing import Any

from temporalio import runtime
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.service import TLSConfig

# The status of orders that wait, are compensated or have ended, for Temporal's Web UI and for
# `temporal workflow list --query 'OrderStatus="failed"'`. Any other order is `in_progress`: each change costs an event.
ORDER_STATUS = SearchAttributeKey.for_keyword("OrderStatus")

IN_PROGRESS = "in_progress"


async def connect(*, lazy: bool = False, **options: Any) -> Client:
    """Connect as the SDK's environment variables specify (TEMPORAL_ADDRESS, ...); by default to 127.0.0.1:7233.

    Args:
        lazy: connect at the first call, so that a program starts while Temporal is unavailable.

    Raises:
        RuntimeError: Temporal cannot be reached (not raised when lazy).
        SystemExit: a setting is wrong (a wrong address: not raised when lazy).
    """
    config = {"target_host": "127.0.0.1:7233", **load_config(), "data_converter": pydantic_data_converter, "lazy": lazy}
    try:
        return await Client.connect(**{**config, **options})
    except ValueError as error:
        raise _wrong("TEMPORAL_ADDRESS", error) from None


def load_config() -> ClientConnectConfig:
    """Read the SDK's environment variables, and check the files that they name.

    The SDK itself reports a file without a certificate as a server that does not answer.

    Raises:
        SystemExit: a setting is wrong.
    """
    try:
        config = ClientConfig.load_client_connect_config()
    except OSError as error:
        path = Path(error.filename)
        names = (n for n in os.environ if n.startswith("TEMPORAL_TLS_") and Path(os.environ[n]) == path)
        raise _wrong(next(names, "TEMPORAL_CONFIG_FILE"), f"{path}: {error.strerror}") from None
    except RuntimeError as error:
        raise _wrong("TEMPORAL_CONFIG_FILE", error) from None
    tls = config.get("tls")
    if isinstance(tls, TLSConfig):
        for name, pem in ("SERVER_CA_CERT", tls.server_root_ca_cert), ("CLIENT_CERT", tls.client_cert):
            try:
                if pem is not None:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode())
            except (ssl.SSLError, ValueError):
                raise _wrong(f"TEMPORAL_TLS_{name}_PATH", "must be a certificate in PEM format") from None
        if (tls.client_cert is not None) is not (b"PRIVATE KEY-----" in (tls.client_private_key or b"")):
            raise _wrong("TEMPORAL_TLS_CLIENT_KEY_PATH", "must be the key of TEMPORAL_TLS_CLIENT_CERT_PATH, as PEM")
    return config


def _wrong(variable: str, reason: object) -> SystemExit:
    return SystemExit(f"wrong setting: {variable}: {str(reason).splitlines()[0]}")


def configure_core(metrics_address: str = "") -> None:
    """Set up the SDK's core, once per process: it logs to Python's logging, and serves its metrics at host:port.

    Raises:
        SystemExit: a setting is wrong.
    """
    load_config()  # before the API starts: an error in its start-up would be a traceback
    metrics = runtime.PrometheusConfig(
        bind_address=metrics_address, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
    )
    logging_config = runtime.LoggingConfig(
        filter=runtime.TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=runtime.LogForwardingConfig(logger=logging.getLogger("temporalio.core")),
    )
    telemetry = runtime.TelemetryConfig(logging=logging_config, metrics=metrics if metrics_address else None)
    runtime.Runtime.set_default(runtime.Runtime(telemetry=telemetry), error_if_already_set=False)
