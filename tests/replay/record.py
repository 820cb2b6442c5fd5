"""Record a history of every path of the saga, for the replay tests.

    make replay

Uses a plain dev server, because the server of the other tests skips time, which would show in the histories. A history
whose path has changed is kept in a folder of its own, as the past that your orders in progress have. If one no longer
replays, nothing is recorded: protect these orders as docs/make-it-yours.md ("Another step") shows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHistory

from app import temporal
from app.domain import Address, OrderStatus
from app.messages import ApprovalDecision
from app.mongo import Mongo
from app.names import WORKFLOW_ID_PREFIX
from app.settings import Settings
from app.workflows.order import OrderWorkflow
from dev.servers import free_port, start_mongod, start_temporal
from tests.kit.faults import Fails, FaultyGateways, Pause
from tests.kit.orders import ADDRESS
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import (
    CHARGE,
    REFUND,
    SHIP,
    Handle,
    RestartableWorker,
    act_as_step_ends,
    pending,
    reconfigure,
    reset,
    reset_points,
    wait_for_retry_delay,
)
from tests.replay.histories import replayer, shape_of

HISTORIES = Path(__file__).parent / "histories"
MACHINE_DETAILS = {"identity", "stackTrace", "workerVersion", "workerInstanceKey", "workerControlTaskQueue"}
LARGE = 50_000  # an order with this total needs approval

Path_ = Callable[[Shop], Awaitable[Handle]]
PATHS: dict[str, Path_] = {}


def path(run: Path_) -> Path_:
    PATHS[run.__name__] = run
    return run


@path
async def completed(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        return await ended(await shop.start())


@path
async def declined(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        return await ended(await shop.start(payment_method="pm_card_declined"))


@path
async def out_of_stock(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        return await ended(await shop.start({"MUG": 101}, price=1))


@path
async def unserviceable(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        return await ended(await shop.start(shipping_address={**ADDRESS, "postal_code": "00000"}))


@path
async def retried(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        return await ended(await shop.start(payment_method="pm_card_flaky"))


@path
async def cancelled_before_the_first_task(shop: Shop) -> Handle:
    handle = await shop.start()
    await handle.signal(OrderWorkflow.cancel)
    async with FaultyGateways(shop).worker():
        return await ended(handle)


@path
async def cancelled_by_temporal_before_the_first_task(shop: Shop) -> Handle:
    handle = await shop.start()
    await handle.cancel()
    async with FaultyGateways(shop).worker():
        return await ended(handle)


@path
async def cancelled_while_charging(shop: Shop) -> Handle:
    pause = Pause(done=True)
    async with FaultyGateways(shop, ChargePayment=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        await handle.signal(OrderWorkflow.cancel)
        return await ended(handle, pause)


@path
async def cancelled_by_temporal_while_shipping(shop: Shop) -> Handle:
    pause = Pause(done=True)
    async with FaultyGateways(shop, CreateShipment=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        await handle.cancel()
        return await ended(handle, pause)


@path
async def cancelled_between_retries(shop: Shop) -> Handle:
    async with FaultyGateways(shop, CreateShipment=Fails()).worker():
        handle = await shop.start()
        await wait_for_retry_delay(handle)
        await handle.signal(OrderWorkflow.cancel)
        return await ended(handle)


@path
async def cancelled_as_a_step_completes(shop: Shop) -> Handle:
    return await _as_it_completes(shop, CHARGE, lambda handle: handle.signal(OrderWorkflow.cancel))


@path
async def cancelled_by_temporal_as_a_step_completes(shop: Shop) -> Handle:
    return await _as_it_completes(shop, CHARGE, lambda handle: handle.cancel())


@path
async def cancelled_as_the_shipment_completes(shop: Shop) -> Handle:
    return await _as_it_completes(shop, SHIP, lambda handle: handle.signal(OrderWorkflow.cancel))


@path
async def cancelled_twice(shop: Shop) -> Handle:
    pause = Pause()
    async with FaultyGateways(shop, CreateShipment=Fails(), RefundPayment=pause).worker():
        handle = await shop.start()
        await wait_for_retry_delay(handle)
        await handle.signal(OrderWorkflow.cancel)
        await pause.reached.wait()
        await handle.cancel()
        await handle.signal(OrderWorkflow.cancel)
        return await ended(handle, pause, at_once=True)


@path
async def cancelled_too_late(shop: Shop) -> Handle:
    pause = Pause()
    async with FaultyGateways(shop, SendConfirmation=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        await handle.signal(OrderWorkflow.cancel)
        await handle.cancel()
        return await ended(handle, pause, at_once=True)


@path
async def approved(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        handle = await shop.start(price=LARGE)
        await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
        return await ended(handle)


@path
async def not_approved(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        handle = await shop.start(price=LARGE)
        await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
        return await ended(handle)


@path
async def approval_timed_out(shop: Shop) -> Handle:
    shop.settings.__dict__["approval_timeout"] = timedelta(seconds=0.5)
    async with FaultyGateways(shop).worker():
        return await ended(await shop.start(price=LARGE))


@path
async def cancelled_while_awaiting_approval(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        handle = await shop.start(price=LARGE)
        await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        await handle.signal(OrderWorkflow.cancel)
        return await ended(handle)


@path
async def cancelled_by_temporal_while_awaiting_approval(shop: Shop) -> Handle:
    async with FaultyGateways(shop).worker():
        handle = await shop.start(price=LARGE)
        await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        await handle.cancel()
        return await ended(handle)


@path
async def address_changed(shop: Shop) -> Handle:
    pause = Pause()
    async with FaultyGateways(shop, ChargePayment=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        address = Address.model_validate({**ADDRESS, "city": "Bath"})
        change = await shop.orders.propose_address(handle.id.removeprefix(WORKFLOW_ID_PREFIX), address)
        assert change is not None
        await handle.execute_update(OrderWorkflow.change_shipping_address, change)
        return await ended(handle, pause, at_once=True)


@path
async def reset_while_shipping(shop: Shop) -> Handle:
    async with FaultyGateways(shop, CreateShipment=(fails := Fails())).worker():
        handle = await shop.start()
        await wait_for_retry_delay(handle)
        await reset(handle, (await reset_points(handle))[1])
        fails.times = 0
        return await ended(handle)


@path
async def recovered(shop: Shop) -> Handle:
    """The refund fails until the order needs attention, and then succeeds."""
    refund = Fails()
    async with FaultyGateways(shop, RefundPayment=refund).worker():
        handle = await shop.start(shipping_address={**ADDRESS, "postal_code": "00000"})
        await eventually(lambda: pending(handle), lambda some: any(a.activity_type.name == REFUND for a in some))
        await reconfigure(handle, REFUND, pause=timedelta(milliseconds=10))
        await shop.wait_for_status(handle, OrderStatus.NEEDS_ATTENTION)
        refund.times = 0
        return await ended(handle)


async def _as_it_completes(shop: Shop, step: str, cancel: Callable[[Handle], Awaitable[None]]) -> Handle:
    gateways = FaultyGateways(shop)
    async with RestartableWorker(gateways) as restartable:
        return await ended(await act_as_step_ends(step, gateways, restartable, shop.start, cancel))


async def ended(handle: Handle, pause: Pause | None = None, *, at_once: bool = False) -> Handle:
    """Wait until the workflow closes. Resume a paused call afterwards, or first if `at_once`."""
    if pause and at_once:
        pause.resume.set()
    with suppress(WorkflowFailureError):  # cancelled by Temporal
        await handle.result()
    if pause:
        pause.resume.set()
    return handle


async def record(into: Path, names: list[str]) -> int:
    """Record these paths, by default all. Returns 1 if a history of the past no longer replays, else 0."""
    broken = [str(path.relative_to(into)) for path in sorted(into.glob("**/*.json")) if not await _replays(path)]
    if broken:
        print(f"nothing recorded: these no longer replay, so orders in progress would stop: {', '.join(broken)}")
        print("Protect them with `since` or `workflow.patched` (docs/make-it-yours.md, Another step).")
        print("Delete them only if no such order is in progress.")
        return 1
    into.mkdir(exist_ok=True, parents=True)
    past = into / f"until-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    with tempfile.TemporaryDirectory() as folder:
        mongod = await start_mongod(Path(folder) / "data", free_port())
        server = await start_temporal(free_port(), log_dir=Path(folder))
        client = await temporal.connect(target_host=server.address)
        try:
            at_once = asyncio.Semaphore(6)  # most paths wait

            async def record_one(name: str) -> None:
                async with at_once:
                    history = await _history(client, mongod.address, name)
                print(f"{name}: {_keep(into / f'{name}.json', history, past)}", flush=True)

            await asyncio.gather(*(record_one(name) for name in names or PATHS))
        finally:
            await server.stop()
            await mongod.stop()
    return 0


def _keep(file: Path, history: dict[str, Any], past: Path) -> str:
    """Write a history, unless the file has the same path; keep the earlier one of another path as the past."""
    kept = ""
    if file.exists():
        contents = file.read_text(encoding="utf-8"), history
        earlier, new = (WorkflowHistory.from_json(file.stem, content) for content in contents)
        if shape_of(earlier) == shape_of(new):
            return "unchanged"
        past.mkdir(exist_ok=True)
        file.rename(past / file.name)
        kept = f"; the earlier one is kept in {past.name}"
    file.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    return f"recorded{kept}"


async def _replays(path: Path) -> bool:
    history = WorkflowHistory.from_json(path.stem, path.read_text(encoding="utf-8"))
    return (await replayer().replay_workflow(history, raise_on_replay_failure=False)).replay_failure is None


async def _history(client: Client, mongodb_uri: str, name: str) -> dict[str, Any]:
    mongo = Mongo(mongodb_uri, name)
    settings = Settings(mongodb_uri=mongodb_uri, mongodb_database=name, task_queue=name, approval_threshold=LARGE)
    shop = Shop(mongo, settings, client)
    await shop.stock()
    async with asyncio.timeout(60):
        handle = await PATHS[name](shop)
    history = await handle.fetch_history()
    mongo.close()
    content: dict[str, Any] = _without_machine_details(history.to_json_dict())
    return content


def _without_machine_details(part: Any) -> Any:
    """Remove details of the recording machine, which a replay does not use."""
    if isinstance(part, dict):
        if "normalName" in part:  # a sticky task queue, which is named after the host
            part = {**part, "name": part["normalName"]}
        return {key: _without_machine_details(value) for key, value in part.items() if key not in MACHINE_DETAILS}
    if isinstance(part, list):
        return [_without_machine_details(item) for item in part]
    return part


if __name__ == "__main__":
    logging.disable()  # some attempts fail on purpose
    code = asyncio.run(record(HISTORIES, sys.argv[1:]))
    sys.stdout.flush()
    os._exit(code)  # the SDK's threads may abort the interpreter as it ends: sdk-python 300
