"""Temporal: client, data converter, search attributes."""

import logging
import ssl
from typing import Any

from temporalio import runtime
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.service import TLSConfig

from app.names import SEARCH_ATTRIBUTE

# The status of orders that wait, are compensated or have ended, for Temporal's Web UI and for
# `temporal workflow list --query`. Any other order is `in_progress`: each change costs an event.
ORDER_STATUS = SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE)

IN_PROGRESS = "in_progress"
PLUGINS: list[Any] = []  # of every client


async def connect(**options: Any) -> Client:
    """Connect as the SDK's environment variables specify (TEMPORAL_ADDRESS, ...); by default to 127.0.0.1:7233.

    Args:
        options: further options of `Client.connect`. With `lazy=True` it connects at the first call, so that a program
            starts while Temporal is unavailable.

    Raises:
        RuntimeError: Temporal cannot be reached (not raised when lazy).
        SystemExit: a setting is wrong (a wrong address: not raised when lazy).
    """
    defaults = {"target_host": "127.0.0.1:7233", **load_config(), "data_converter": pydantic_data_converter}
    try:
        return await Client.connect(**{**defaults, "plugins": PLUGINS, **options})
    except ValueError as error:
        raise SystemExit(f"wrong setting: TEMPORAL_ADDRESS: {error}") from None


def load_config() -> ClientConnectConfig:
    """Read the SDK's environment variables, and check the files that they name.

    The SDK itself reports a file without a certificate as a server that does not answer.

    Raises:
        SystemExit: a setting is wrong.
    """
    setting = "TEMPORAL_TLS_* or TEMPORAL_CONFIG_FILE"
    try:
        config = ClientConfig.load_client_connect_config()
        tls = config.get("tls")
        if isinstance(tls, TLSConfig):
            certificates = {"SERVER_CA_CERT": tls.server_root_ca_cert, "CLIENT_CERT": tls.client_cert}
            for name, pem in certificates.items():
                setting = f"TEMPORAL_TLS_{name}_PATH"
                if pem is not None:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode())
            setting = "TEMPORAL_TLS_CLIENT_KEY_PATH"
            if (tls.client_cert is not None) is not (b"PRIVATE KEY-----" in (tls.client_private_key or b"")):
                raise ValueError("must be the key of TEMPORAL_TLS_CLIENT_CERT_PATH, as PEM")
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"wrong setting: {setting}: {str(error).splitlines()[0]}") from None
    return config


def configure_core(metrics_address: str = "") -> None:
    """Set up the SDK's core, once per process: it logs to Python's logging, and serves its metrics at host:port.

    Raises:
        SystemExit: a setting is wrong.
    """
    load_config()  # before the API starts: an error in its start-up would be a traceback
    metrics = runtime.PrometheusConfig(
        bind_address=metrics_address,
        counters_total_suffix=True,
        unit_suffix=True,
        durations_as_seconds=True,
        histogram_bucket_overrides={"order_duration": [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3_600, 86_400, 604_800]},
    )
    forwarding = runtime.LogForwardingConfig(logger=logging.getLogger("temporalio.core"))
    logging_config = runtime.LoggingConfig(filter=runtime.LoggingConfig.default.filter, forwarding=forwarding)
    telemetry = runtime.TelemetryConfig(logging=logging_config, metrics=metrics if metrics_address else None)
    try:
        runtime.Runtime.set_default(runtime.Runtime(telemetry=telemetry), error_if_already_set=False)
    except ValueError as error:
        raise SystemExit(f"wrong setting: WORKER_METRICS_ADDRESS: {error}") from None
