"""The worker process: runs the workflows, the activities and the relay.

    python worker.py

On SIGTERM or SIGINT it takes no new work, gives running activities `GRACE` to finish, and leaves the rest to another
worker, which retries it.
"""

import asyncio
import faulthandler
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from pymongo.errors import OperationFailure, PyMongoError
from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import PollerBehaviorAutoscaling, Worker, WorkerConfig, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import SandboxImportNotificationPolicy

from app import logs, metrics, temporal, tracing
from app.activities.order_step import Dependencies
from app.activities.reconciliation import Reconciliation
from app.activities.redaction import RedactErrors
from app.gateways import Gateways
from app.gateways.sandbox import sandbox
from app.mongo import Mongo
from app.names import NAME
from app.order_workflows import OrderWorkflows
from app.orders import OrderRepository
from app.products import ProductRepository
from app.relay import OutboxRelay
from app.settings import Settings
from app.worker_health import WorkerHealth
from app.workflows.order import OrderWorkflow
from app.workflows.reconciliation import ReconciliationWorkflow, keep_schedule
from app.workflows.steps import all_activities, check_table

logger = logging.getLogger("worker")
T = TypeVar("T")
GatewaysFactory = Callable[[Mongo], AbstractAsyncContextManager[Gateways]]

# A module that a workflow imports by accident is an error at the start; by default it is reloaded for every order.
POLICY = SandboxImportNotificationPolicy.RAISE_ON_UNINTENTIONAL_PASSTHROUGH
SANDBOX = SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_import_notification_policy(POLICY))
STOP_LIMIT = 13.0  # seconds from the signal to the exit: docker-compose.yml grants 15
UNAUTHORIZED = 13  # MongoDB's error code
GRACE = timedelta(seconds=10)  # for running activities when the worker stops


def build_worker(client: Client, mongo: Mongo, gateways: Gateways, task_queue: str, **options: Any) -> Worker:
    """Build the worker of the saga, with the activities that its table of steps names.

    Args:
        options: further options of `temporalio.worker.Worker`, which override the defaults chosen here.

    Raises:
        TypeError: the table of steps is not complete; the message names what is missing.
    """
    check_table()
    dependencies = Dependencies(mongo, OrderRepository(mongo), ProductRepository(mongo), gateways)
    instance_of = cache(lambda owner: owner(dependencies))  # one instance per class

    def bound(function: Callable[..., Any]) -> Any:
        owner, name = function.__qualname__.split(".")
        return getattr(instance_of(getattr(sys.modules[function.__module__], owner)), name)

    defaults: WorkerConfig = {
        "workflows": [OrderWorkflow, ReconciliationWorkflow],
        "activities": [bound(function) for function in (*all_activities(), Reconciliation.compare)],
        "workflow_runner": SANDBOX,
        "workflow_task_poller_behavior": PollerBehaviorAutoscaling(),
        "activity_task_poller_behavior": PollerBehaviorAutoscaling(),
        "graceful_shutdown_timeout": GRACE,
    }
    interceptors = [RedactErrors(), *options.pop("interceptors", [])]
    return Worker(client, task_queue=task_queue, interceptors=interceptors, **{**defaults, **options})


async def main(gateways: GatewaysFactory) -> None:
    """Run until SIGTERM or SIGINT; wait for servers that are not up yet.

    Raises:
        SystemExit: a setting is wrong, Temporal lacks the search attribute, or MongoDB refuses to create the indexes.
    """
    settings = Settings.load()
    logs.configure(settings.log_level)
    serving = asyncio.create_task(serve(settings, gateways))

    def stop() -> None:
        serving.cancel()
        # If a server does not answer or a thread hangs: print all stacks, and exit as in a crash, which loses nothing.
        faulthandler.dump_traceback_later(STOP_LIMIT, exit=True)

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop)
    with suppress(asyncio.CancelledError):
        await serving
    tracing.shutdown()
    # The SDK's own threads end a moment later; without this pause the interpreter sometimes aborts at exit
    # (https://github.com/temporalio/sdk-python/issues/300).
    await asyncio.sleep(0.1)


async def serve(settings: Settings, build_gateways: GatewaysFactory) -> None:
    """Connect, then run the worker and the relay until cancelled."""
    tracing.configure(f"{NAME}-worker")
    mongo = Mongo(settings.mongodb_uri, settings.mongodb_database)
    async with build_gateways(mongo) as gateways:
        check_gateways(gateways, allow_sandbox=settings.sandbox_gateways)
        temporal.configure_core(settings.worker_metrics_address)
        health = WorkerHealth(mongo.ping, OrderWorkflows(await temporal.connect(lazy=True), settings).ping)
        await health.serve(settings.worker_health_address)
        client = await wait_for("Temporal", temporal.connect)
        await wait_for("MongoDB", lambda: create_indexes(mongo))
        # Last, because the rest may take long: the SDK's worker ends if Temporal has left, or has not the namespace.
        await wait_for("Temporal", lambda: check_search_attribute(client))
        relay = OutboxRelay(mongo, OrderRepository(mongo), OrderWorkflows(client, settings))
        version = await deployment_config(client, settings)
        async with build_worker(client, mongo, gateways, settings.task_queue, deployment_config=version):
            logger.info("worker ready: task queue %s", settings.task_queue)
            await asyncio.gather(
                asyncio.Event().wait(),  # none of the others is needed to work
                relay.run(),
                keep_schedule(client, settings.task_queue, settings.reconciliation_interval),
                metrics.watch(OrderRepository(mongo), relay, is_on=bool(settings.worker_metrics_address)),
                health.work(),
            )


async def deployment_config(client: Client, settings: Settings) -> WorkerDeploymentConfig | None:
    """Return the version that the settings name, if any. Warn if no version is current: new orders would wait."""
    name, build_id, current = settings.temporal_deployment_name, settings.temporal_worker_build_id, ""
    if not name:
        return None
    with suppress(RPCError):  # not found until the first worker has started
        request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=name)
        info = (await client.workflow_service.describe_worker_deployment(request)).worker_deployment_info
        current = info.routing_config.current_deployment_version.build_id
    if not current:
        command = f"temporal worker deployment set-current-version --yes --deployment-name {name} --build-id {build_id}"
        logger.warning("no version of %s is current: no new order reaches this worker before: %s", name, command)
    version, pinned = WorkerDeploymentVersion(name, build_id), VersioningBehavior.PINNED
    return WorkerDeploymentConfig(version, use_worker_versioning=True, default_versioning_behavior=pinned)


def check_gateways(gateways: Gateways, *, allow_sandbox: bool) -> None:
    """Raises SystemExit if some are sandboxes, which must not replace real ones by accident."""
    kinds = {name: type(gateway).__module__ for name, gateway in vars(gateways).items()}
    sandboxes = ", ".join(name for name, module in kinds.items() if module == "app.gateways.sandbox")
    if sandboxes and not allow_sandbox:
        raise SystemExit(
            f"{sandboxes}: only a sandbox. Use your own in worker.py, or set SANDBOX_GATEWAYS=true to try it"
        )
    if sandboxes:
        logger.warning("%s: a sandbox, which charges no card, ships nothing and sends no mail", sandboxes)


async def wait_for(name: str, connect: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await connect()
        except (RuntimeError, RPCError, PyMongoError) as error:
            logger.warning("waiting for %s: %s", name, error)
        await asyncio.sleep(1)


async def create_indexes(mongo: Mongo) -> None:
    """Raises SystemExit if the account has not the right: it would wait for ever."""
    try:
        await mongo.create_indexes()
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        missing = f"createIndex on the collection {mongo.orders.full_name}"
        raise SystemExit(f"MongoDB refuses {missing}. Grant the role worker of deploy/mongodb-roles.json") from None


async def check_search_attribute(client: Client) -> None:
    """Check that Temporal has the namespace and the search attribute.

    Raises:
        RPCError: Temporal does not answer, or it does not know the namespace (yet).
        SystemExit: the attribute is missing: every workflow would hang silently at its first change of status.
    """
    name = temporal.ORDER_STATUS.name
    try:
        await client.count_workflows(f"{name} = '{temporal.IN_PROGRESS}'")
    except RPCError as error:
        if error.status is not RPCStatusCode.INVALID_ARGUMENT:
            raise
        command = f"temporal operator search-attribute create --name {name} --type Keyword"
        raise SystemExit(f"Temporal has no search attribute {name}. Add it: {command}") from None


if __name__ == "__main__":
    asyncio.run(main(sandbox))  # put your own gateways here, in place of `sandbox`
