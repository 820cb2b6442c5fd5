"""The faults: a schedule that follows the seed, and their injection where they happen in production."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from app.domain import STATUS_BEFORE, TERMINAL, StepName, StepStatus
from app.gateways.sandbox import SLOW
from app.names import NAME, WORKFLOW_ID_PREFIX
from app.order_workflows import workflow_id
from app.workflows.steps import COMPENSATABLE_STEPS, REVERSIBLE_STEPS, STEPS, activity_name
from dev.chaos.evidence import Histories
from dev.chaos.older_version import copy_older_version
from dev.chaos.orders import PlacedOrder, PlannedOrder, RetryingClients
from dev.servers import ReplicaSet, Server
from dev.stack import Stack

PROCESSES = ("api", "worker", "worker-2", "temporal", "primary", "secondary")
OLD_WORKER = "worker-old"
CHARGING = STATUS_BEFORE[StepName.CHARGE_PAYMENT]  # the status of an order while it is charged
LOCKED_SKU = "CHAOS-LAMP"
ACTIVITIES = {step.name: activity_name(step.activity) for step in STEPS}
RESERVE, CHARGE = ACTIVITIES[StepName.RESERVE_INVENTORY], ACTIVITIES[StepName.CHARGE_PAYMENT]
(RELEASE,) = (
    activity_name(step.compensation)
    for step in COMPENSATABLE_STEPS
    if step.compensation and step.name is StepName.RESERVE_INVENTORY
)
# Seconds by activity: longer than an attempt may last, but not by 5 s, when the SDK itself would interrupt the attempt.
LONG_FREEZE = {activity_name(step.activity): step.start_to_close.total_seconds() + 2.5 for step in REVERSIBLE_STEPS}
WORKFLOWS_PER_FAULT = 4  # reset or terminated together
LATE_ATTEMPTS = 10  # that must have run into a fence, or else the run does not count


@dataclass(frozen=True)
class Fault:
    target: str
    how: str
    seed: int = 0
    downtime: float = 1.0  # seconds

    @property
    def name(self) -> str:
        return f"{self.target} {self.how}"


ALL = [
    *(Fault(target, how) for target, how in product(PROCESSES, ("killed", "stopped", "frozen"))),
    Fault("worker", "frozen while reserving"),
    Fault("worker-2", "frozen while charging"),
    *[Fault("primary", "stepped down")] * 2,
    *[Fault("primary", "rolled back")] * 2,
    *[Fault("workflows", "reset")] * 5,
    *[Fault("workflows", "terminated")] * 3,
    Fault("attempts", "overtaken"),
    Fault("compensations", "interrupted"),
    Fault("Temporal's data", "deleted"),
    Fault("older worker", "joined"),
]
SHORT = [  # without those that delay an order by more than a few seconds
    *(Fault(target, "killed") for target in ("worker", "temporal", "primary")),
    *(Fault(target, "frozen") for target in ("api", "worker-2", "secondary")),
    Fault("primary", "stepped down"),
    Fault("workflows", "reset"),
    Fault("compensations", "interrupted"),
    Fault("attempts", "overtaken"),
]


def schedule(faults: Iterable[Fault], seed: int) -> list[Fault]:
    """Return the faults in the sequence of this seed, with their durations and choices."""
    chosen = random.Random(f"faults {seed}")
    given = list(faults)
    return [
        Fault(fault.target, fault.how, chosen.randrange(2**32), chosen.uniform(0.2, 3))
        for fault in chosen.sample(given, len(given))
    ]


class Faults:
    """Injects one fault after another, and recovers from each."""

    def __init__(
        self,
        stack: Stack,
        replica_set: ReplicaSet,
        temporal: Client,
        mongo: AsyncMongoClient[dict[str, Any]],
        clients: RetryingClients,
        histories: Histories,
    ) -> None:
        self.survived = Counter[str]()
        self.current = ""
        self._stack = stack
        self._replica_set = replica_set
        self._temporal = temporal
        self._mongo = mongo
        self._clients = clients
        self._histories = histories
        self._random = random.Random()

    async def inject(self, fault: Fault) -> int:
        """Inject the fault and recover from it; return the number of what it hit: processes, workflows, attempts."""
        self._random = random.Random(fault.seed)
        self.current = fault.name
        try:
            hit = await self._injection(fault)
        finally:
            self.current = ""
        self.survived[fault.name] += hit
        return hit

    def _injection(self, fault: Fault) -> Awaitable[int]:
        match fault.how:
            case "killed" | "stopped" | "frozen":
                return self._take_away(fault)
            case "frozen while charging":
                return self._freeze_while_charging(fault.target)
            case "frozen while reserving":
                return self._freeze_while_reserving(fault.target)
            case "rolled back":
                return self._roll_back(fault.downtime)
            case "deleted":
                return self._delete_temporal_data(fault.downtime)
        others = {
            "stepped down": self._step_down,
            "joined": self._join_older_worker,
            "reset": self._reset,
            "terminated": self._terminate,
            "interrupted": self._interrupt_compensations,
            "overtaken": self._overtake_attempts,
        }
        return others[fault.how]()

    # --- processes

    async def _take_away(self, fault: Fault) -> int:
        server = await self._server(fault.target)
        if fault.how == "frozen":
            server.pause()
            await asyncio.sleep(fault.downtime)
            server.resume()
        else:
            await (server.kill() if fault.how == "killed" else server.stop(timeout=20))
            await asyncio.sleep(fault.downtime)
            if server in self._replica_set.members:
                await self._replica_set.restart(server)
            else:
                await self._stack.start(fault.target)
        await self._replica_set.wait_until_complete()
        return 1

    async def _server(self, name: str) -> Server:
        if name not in {"primary", "secondary"}:
            return self._stack.processes[name]
        primary = await self._replica_set.primary()
        secondaries = [member for member in self._replica_set.members if member is not primary]
        return primary if name == "primary" else self._random.choice(secondaries)

    async def _join_older_worker(self) -> int:
        self._stack.sources[OLD_WORKER] = copy_older_version(self._stack.config.dev_dir / "older-version")
        await self._stack.start(OLD_WORKER)
        return 1

    async def _step_down(self) -> int:
        await self._replica_set.step_down()
        await self._replica_set.wait_until_complete()
        return 1

    async def _roll_back(self, downtime: float) -> int:
        """Lose the primary's unreplicated writes, among them orders that impatient clients have sent repeatedly."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._replica_set.roll_back(downtime))
            for _ in range(12):
                group.create_task(self._clients.place(PlannedOrder("placed without a majority", timeout=0.1)))
                await asyncio.sleep(0.05)
        await self._replica_set.wait_until_complete()
        return 1

    async def _delete_temporal_data(self, downtime: float) -> int:
        await self._histories.collect(self._temporal, about_to_be_lost=True)
        await self._stack.processes["temporal"].kill()
        for file in self._stack.temporal_data.parent.glob(f"{self._stack.temporal_data.name}*"):
            file.unlink()
        await asyncio.sleep(downtime)
        await self._stack.start("temporal")
        return 1

    # --- attempts and compensations in progress

    async def _freeze_while_charging(self, name: str) -> int:
        """Freeze a worker in the middle of charges until these attempts have timed out. Returns their number.

        Clients cancel half of the orders. The other worker compensates them, and takes over the rest. Then the late
        attempts continue.
        """
        worker = self._stack.processes[name]
        items: list[PlacedOrder] = []
        begun = partial(self._attempts, items, CHARGE, worker)
        for _ in range(3):
            items.extend(await self._place("charged on a frozen worker", 10))
            if await self._until(begun, 4, within=4):
                break
        return await self._freeze(worker, items, CHARGE)

    async def _freeze_while_reserving(self, name: str) -> int:
        """The same with reservations, which another transaction delays until the worker is frozen."""
        worker = self._stack.processes[name]
        items: list[PlacedOrder] = []
        begun = partial(self._attempts, items, RESERVE, worker)
        async with self._locked_product():
            for _ in range(3):
                items.extend(await self._place("reserved on a frozen worker", 8))
                if await self._until(begun, 3, within=3):
                    break
            worker.pause()
        return await self._freeze(worker, items, RESERVE)

    async def _freeze(self, worker: Server, items: list[PlacedOrder], activity: str) -> int:
        worker.pause()
        try:
            frozen = await self._attempts(items, activity, worker)
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(LONG_FREEZE[activity]))
                for item in frozen[::2]:
                    group.create_task(self._clients.act(item, "cancel"))
        finally:
            worker.resume()
        return len(frozen)

    async def _overtake_attempts(self) -> int:
        """Cancel orders whose charge waits for the payment service. Returns the number of late attempts."""
        late = 0
        for _ in range(3):
            items = await self._place("overtaken by a cancel", 12)
            late += sum(await asyncio.gather(*map(self._overtake, items)))
            if late >= LATE_ATTEMPTS:
                break
        return late

    async def _overtake(self, item: PlacedOrder) -> bool:
        """Cancel the order once its charge has reached the payment service, which goes on after the fence is written.

        A transaction that holds the service's record delays the charge. Returns True if the late attempt went on.
        """
        orders, records = self._mongo[NAME].orders, self._mongo[NAME].sandbox
        record = {"_id": f"payment:{item.order_id}"}
        charge = {"ns": records.full_name, "command.findAndModify": records.name, "command.query._id": record["_id"]}
        in_progress: list[dict[str, Any]] = [{"$currentOp": {}}, {"$match": charge}]

        async def charging() -> list[Any]:
            return await (await self._mongo.admin.aggregate(in_progress)).to_list()

        async def fenced() -> list[Any]:
            fence = {f"steps.{StepName.CHARGE_PAYMENT}.status": StepStatus.FAILED}
            return await orders.find({"_id": item.order_id, **fence}).to_list()

        async def captured() -> list[Any]:
            return await records.find({**record, "captured": {"$exists": True}}).to_list()

        await self._clients.wait_until(item, {CHARGING})  # the charge has begun, and takes SLOW seconds
        with suppress(PyMongoError):  # the charge came first, or a member was elected meanwhile
            async with self._mongo.start_session() as session:  # its end aborts the transaction
                await session.start_transaction()
                await records.insert_one(record, session=session)
                if not await self._until(charging, 1, within=2 * SLOW):
                    return False
                await self._clients.act(item, "cancel")
                if not await self._until(fenced, 1, within=10):
                    return False
            return await self._until(captured, 1, within=10)
        return False

    async def _interrupt_compensations(self) -> int:
        """Cancel workflows that are compensating by Temporal's own cancel. Returns their number."""
        items = await self._place("cancelled twice", WORKFLOWS_PER_FAULT)
        await asyncio.gather(*(self._clients.wait_until(item, {CHARGING}) for item in items))
        async with self._locked_product():  # so that the release takes as long as the lock
            await asyncio.gather(*(self._clients.act(item, "cancel") for item in items))
            await self._until(lambda: self._attempts(items, RELEASE), len(items), within=10)
            compensating = await self._attempts(items, RELEASE)
            for item in compensating:
                await self._handle(item).cancel()
            await self._until(lambda: self._handled_cancel(compensating), len(compensating), within=3)
        return len(compensating)

    @asynccontextmanager
    async def _locked_product(self) -> AsyncIterator[None]:
        """Hold a product's document in a transaction, as a slow program would: its reservations are retried."""
        products = self._mongo[NAME].inventory
        async with self._mongo.start_session() as session:
            for _ in range(50):
                await session.start_transaction()
                try:
                    await products.update_one({"_id": LOCKED_SKU}, {"$set": {"locked": True}}, session=session)
                except PyMongoError:  # a reservation holds it
                    await session.abort_transaction()
                    await asyncio.sleep(0.1)
                else:
                    break
            try:
                yield
            finally:
                with suppress(PyMongoError):  # it has timed out
                    await session.abort_transaction()

    async def _place(self, kind: str, number: int) -> list[PlacedOrder]:
        return await asyncio.gather(*(self._clients.place(PlannedOrder(kind)) for _ in range(number)))

    async def _attempts(
        self, items: Sequence[PlacedOrder], activity: str, worker: Server | None = None
    ) -> list[PlacedOrder]:
        """Return the orders with an attempt of this activity in progress, on this worker if given."""

        async def has_one(item: PlacedOrder) -> bool:
            try:
                pending = (await self._handle(item).describe()).raw_description.pending_activities
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # not started yet
                    raise
                return False
            return any(
                each.activity_type.name == activity
                and each.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
                and (worker is None or each.last_worker_identity.startswith(f"{worker.pid}@"))
                for each in pending
            )

        found = await asyncio.gather(*map(has_one, items))
        return [item for item, has in zip(items, found, strict=True) if has]

    async def _handled_cancel(self, items: Sequence[PlacedOrder]) -> list[PlacedOrder]:
        """Return the orders whose workflow has had a workflow task since Temporal's cancel."""

        async def has_handled(item: PlacedOrder) -> bool:
            types = [event.event_type for event in (await self._handle(item).fetch_history()).events]
            requested = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
            return requested in types and (
                EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED in types[types.index(requested) :]
            )

        return [item for item in items if await has_handled(item)]

    async def _until(self, find: Callable[[], Awaitable[list[Any]]], number: int, within: float) -> bool:
        """Wait until so many are found, at most `within` seconds."""
        deadline = time.monotonic() + within
        while len(await find()) < number:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    def _handle(self, item: PlacedOrder) -> WorkflowHandle[Any, Any]:
        return self._temporal.get_workflow_handle(workflow_id(item.order_id))

    # --- workflows

    async def _reset(self) -> int:
        """Reset workflows of orders in any status, final ones too, to a random point. Cancel some right after."""
        done = 0
        placed = self._clients.placed
        for item in self._random.sample(placed, len(placed)):
            status = await self._clients.status(item)
            item.final_before_reset = item.final_before_reset or (status if status in TERMINAL else "")
            handle = self._handle(item)
            try:
                done += await self._reset_one(handle)
                choice = self._random.random()
                if choice < 0.3:
                    item.operator_cancelled = True
                    await handle.cancel()
                elif choice < 0.6:
                    item.operator_cancelled = True
                    await self._clients.send("POST", f"/orders/{item.order_id}/cancel", json={})
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # closed, or deleted with Temporal's data
                    raise
            if done == WORKFLOWS_PER_FAULT:
                break
        return done

    async def _reset_one(self, handle: WorkflowHandle[Any, Any]) -> bool:
        run_id = (await handle.describe()).run_id
        points = [
            event.event_id
            for event in (await handle.fetch_history()).events
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        ]
        if not points:
            return False
        await self._temporal.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=self._temporal.namespace,
                workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=run_id),
                reason="chaos",
                workflow_task_finish_event_id=self._random.choice(points),
                request_id=str(uuid4()),
            )
        )
        return True

    async def _terminate(self) -> int:
        """Terminate running workflows of orders."""
        done = 0
        await self._place("slow", WORKFLOWS_PER_FAULT)  # so that some run
        executions = self._temporal.list_workflows("ExecutionStatus = 'Running'")
        running = [each.id async for each in executions if each.id.startswith(WORKFLOW_ID_PREFIX)]
        for each in self._random.sample(running, min(WORKFLOWS_PER_FAULT, len(running))):
            try:
                await self._temporal.get_workflow_handle(each).terminate("chaos")
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # already closed
                    raise
            else:
                done += 1
        return done
