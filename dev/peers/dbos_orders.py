"""The saga of an order on DBOS: a library that keeps the progress of workflows in PostgreSQL, beside orders and stock.

    DATABASE_URL=postgresql://... uvicorn dev.peers.dbos_orders:app

One process serves the API and runs the workflows. A transaction of a datasource commits the step's record with its
data, so it takes effect exactly once. A call of a gateway is a step, which may be repeated: it has an idempotency key.

DBOS.cancel_workflow stops a workflow and runs no compensation. So a cancel is a status of the order: one conditional
UPDATE decides between it and the shipment, and a message ends the wait for a gateway that is down.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from dbos import DBOS, AsyncSQLAlchemyDatasource, SetWorkflowID
from fastapi import FastAPI, HTTPException
from sqlalchemy import text

from dev.peers import gateways
from dev.peers.contract import (
    CANCELLED,
    IdempotencyKey,
    NewOrder,
    OrderStopped,
    Prefer,
    Product,
    new_order_id,
    order_json,
    seconds_to_wait,
)

DATABASE_URL = os.environ["DATABASE_URL"]
RETRY_INTERVAL = 1.0  # seconds, while a gateway is down
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS stock (sku text PRIMARY KEY, price integer, available integer CHECK (available >= 0))",
    "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, status text, code text, message text)",
    gateways.SCHEMA,
)
# Of a step whose gateway or database fails in another way; a decision of the gateway is not repeated.
RETRY_FOREVER: dict[str, Any] = {
    "retries_allowed": True,
    "max_attempts": 1_000_000,
    "interval_seconds": RETRY_INTERVAL,
    "backoff_rate": 1,
    "should_retry": lambda error: not isinstance(error, OrderStopped),
}

DBOS(
    config={
        "name": "orders",
        "system_database_url": DATABASE_URL,
        "sys_db_pool_size": 20,
        "log_level": "WARNING",
        "application_version": "1",
    }
)
pool = gateways.pool(DATABASE_URL)
outside = gateways.Gateways(pool)
data: AsyncSQLAlchemyDatasource

# --- the saga


@DBOS.workflow()
async def saga(order: dict[str, Any]) -> dict[str, Any]:
    order_id, reserved = str(DBOS.workflow_id), []
    try:
        total = await transaction(reserve, order_id, order["lines"])
        reserved = order["lines"]
        await until_available(charge, order_id, total, order["payment_method"])
        await transaction(advance, order_id, "reserved", "charged")
        await until_available(ship, order_id, order["shipping_address"]["postal_code"])
        await transaction(advance, order_id, "charged", "shipped")  # a cancel comes before this, or never
    except OrderStopped as stopped:
        if reserved:
            await cancel_shipment(order_id)
            await refund(order_id)
        return await transaction(release, order_id, reserved, stopped.status, stopped.code, stopped.message)
    await notify(order_id)
    return await transaction(advance, order_id, "shipped", "completed")


async def until_available(step: Callable[..., Awaitable[bool]], order_id: str, *arguments: Any) -> None:
    """Repeat a step until its gateway is available. A cancel ends the wait."""
    while not await step(order_id, *arguments):
        if await DBOS.recv_async("cancel", timeout_seconds=RETRY_INTERVAL):
            raise OrderStopped(*CANCELLED)


# --- its transactions, on orders and stock


async def transaction(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Exactly once, in a workflow. The default, serializable, would repeat most transactions on a popular product."""
    return await data.run_tx_step_async({"isolation_level": "READ COMMITTED"}, function, *arguments)


async def execute(statement: str, **values: Any) -> Any:
    return await data.sql_session().execute(text(statement), values)


async def reserve(order_id: str, lines: list[dict[str, Any]]) -> int:
    """Reserve all lines or none; return the total. Raises OrderStopped."""
    placed = "INSERT INTO orders VALUES (:id, 'reserved') ON CONFLICT DO NOTHING"
    if not (await execute(placed, id=order_id)).rowcount:
        raise OrderStopped(*CANCELLED)
    total = 0
    for line in sorted(lines, key=lambda line: str(line["sku"])):  # always in this sequence: no deadlocks
        take = "UPDATE stock SET available = available - :n WHERE sku = :sku AND available >= :n RETURNING price"
        price = (await execute(take, sku=line["sku"], n=line["quantity"])).scalar()
        if price is None:
            raise OrderStopped("out_of_stock", f"{line['sku']} is out of stock")  # rolls back the other lines
        total += price * line["quantity"]
    return total


async def advance(order_id: str, expected: str, status: str) -> dict[str, Any]:
    """Raises OrderStopped if a cancel came first."""
    move = "UPDATE orders SET status = :to WHERE id = :id AND status = :expected"
    if not (await execute(move, id=order_id, expected=expected, to=status)).rowcount:
        raise OrderStopped(*CANCELLED)
    return order_json(order_id, status)


async def release(order_id: str, lines: list[dict[str, Any]], status: str, code: str, message: str) -> dict[str, Any]:
    """Release the stock and write the order's end, which a cancel that was accepted meanwhile decides."""
    for line in sorted(lines, key=lambda line: str(line["sku"])):
        back = "UPDATE stock SET available = available + :n WHERE sku = :sku"
        await execute(back, sku=line["sku"], n=line["quantity"])
    end = """INSERT INTO orders VALUES (:id, :status, :code, :message) ON CONFLICT (id) DO UPDATE
        SET status = CASE orders.status WHEN 'cancelling' THEN 'cancelled' ELSE excluded.status END,
            code = CASE orders.status WHEN 'cancelling' THEN 'cancelled' ELSE excluded.code END,
            message = excluded.message RETURNING status, code"""
    ended = (await execute(end, id=order_id, status=status, code=code, message=message)).one()
    return order_json(order_id, ended.status, ended.code, message)


# --- its steps, at the gateways


@DBOS.step(**RETRY_FOREVER)
async def charge(order_id: str, amount: int, payment_method: str) -> bool:
    return await is_available(outside.charge(order_id, amount, payment_method))


@DBOS.step(**RETRY_FOREVER)
async def ship(order_id: str, postal_code: str) -> bool:
    return await is_available(outside.ship(order_id, postal_code))


async def is_available(call: Awaitable[None]) -> bool:
    try:
        await call
    except gateways.Unavailable:
        return False
    return True


@DBOS.step(**RETRY_FOREVER)
async def notify(order_id: str) -> None:
    await outside.send_confirmation(order_id)


@DBOS.step(**RETRY_FOREVER)
async def cancel_shipment(order_id: str) -> None:
    await outside.cancel_shipment(order_id)


@DBOS.step(**RETRY_FOREVER)
async def refund(order_id: str) -> None:
    await outside.refund(order_id)


# --- the API


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global data  # noqa: PLW0603 - its engine belongs to the event loop, which does not run at the import
    async with pool:
        async with pool.connection() as connection:
            for statement in SCHEMA:
                await connection.execute(statement)
        data = await AsyncSQLAlchemyDatasource.create(DATABASE_URL, {"pool_size": 20})
        DBOS.launch()  # continues the workflows that were interrupted
        yield
        DBOS.destroy()


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def place_order(new: NewOrder, idempotency_key: IdempotencyKey = None, prefer: Prefer = "") -> dict[str, Any]:
    order_id = new_order_id(idempotency_key)
    with SetWorkflowID(order_id):  # durable before the answer; a second one with this id is the same workflow
        handle = await DBOS.start_workflow_async(saga, new.model_dump())
    with suppress(TimeoutError):
        if seconds := seconds_to_wait(prefer):
            return await asyncio.wait_for(handle.get_result(), seconds)
    return await read(order_id)


@app.get("/orders/{order_id}")
async def read_order(order_id: str) -> dict[str, Any]:
    if await DBOS.get_workflow_status_async(order_id) is None:
        raise HTTPException(404)
    return await read(order_id)


@app.post("/orders/{order_id}/cancel", status_code=202)
async def cancel_order(order_id: str) -> dict[str, Any]:
    await read_order(order_id)
    cancel = """INSERT INTO orders VALUES (%s, 'cancelling') ON CONFLICT (id) DO UPDATE SET status = 'cancelling'
        WHERE orders.status IN ('reserved', 'charged', 'cancelling')"""
    async with pool.connection() as connection:
        accepted = (await connection.execute(cancel, (order_id,))).rowcount
    if not accepted:
        raise HTTPException(409, "cannot cancel the order: it has shipped or ended")
    await DBOS.send_async(order_id, True, topic="cancel")
    return await read(order_id)


async def read(order_id: str) -> dict[str, Any]:
    async with pool.connection() as connection:
        found = await connection.execute("SELECT id, status, code, message FROM orders WHERE id = %s", (order_id,))
        return order_json(*(await found.fetchone() or (order_id, "placed")))


@app.put("/inventory/{sku}", status_code=204)
async def put_product(sku: str, product: Product) -> None:
    put = """INSERT INTO stock VALUES (%s, %s, %s) ON CONFLICT (sku) DO UPDATE
        SET price = excluded.price, available = excluded.available"""
    async with pool.connection() as connection:
        await connection.execute(put, (sku, product.unit_price.amount, product.available))


@app.get("/inventory/{sku}")
async def read_product(sku: str) -> dict[str, int]:
    async with pool.connection() as connection:
        found = await connection.execute("SELECT available FROM stock WHERE sku = %s", (sku,))
        return {"available": (await found.fetchone() or (0,))[0]}
