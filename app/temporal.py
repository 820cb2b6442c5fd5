"""Temporal: client, data converter, search attributes."""

import logging
from typing import Any

from temporalio import runtime
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig

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
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "127.0.0.1:7233")
    try:
        return await Client.connect(**{**config, "data_converter": pydantic_data_converter, "lazy": lazy, **options})
    except ValueError as error:
        raise SystemExit(f"wrong setting: TEMPORAL_ADDRESS: {error}") from None


def configure_core(metrics_address: str = "") -> None:
    """Set up the SDK's core, once per process: it logs to Python's logging, and serves its metrics at host:port."""
    metrics = runtime.PrometheusConfig(
        bind_address=metrics_address, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
    )
    logging_config = runtime.LoggingConfig(
        filter=runtime.TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=runtime.LogForwardingConfig(logger=logging.getLogger("temporalio.core")),
    )
    telemetry = runtime.TelemetryConfig(logging=logging_config, metrics=metrics if metrics_address else None)
    runtime.Runtime.set_default(runtime.Runtime(telemetry=telemetry), error_if_already_set=False)
