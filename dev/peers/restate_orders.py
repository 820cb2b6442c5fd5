"""The saga of an order on Restate: a server that calls the handlers of a service and keeps a journal of what they did.

    python -m dev.peers.restate_orders 127.0.0.1:9080    the handlers, which the server calls over HTTP/2
    uvicorn dev.peers.restate_orders:app                 the API, which places orders through the server

Orders and stock are Restate's own state, as its users keep it: a product is a virtual object, whose handlers run one at
a time, and an order's status is in its workflow. The gateways are outside, in PostgreSQL: `ctx.run` calls one and
writes the result to the journal. It may be repeated, so it has an idempotency key.

A durable promise, which is resolved once, decides between a cancel and the shipment, and ends the wait for a gateway
that is down. Restate's own cancel of an invocation would interrupt it too, but says nothing of which came first.
"""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import hypercorn.asyncio
import restate
import uvloop
from fastapi import FastAPI, HTTPException
from hypercorn.config import Config
from restate import ObjectContext, TerminalError, VirtualObject, Workflow, WorkflowContext, WorkflowSharedContext

from dev.peers import gateways
from dev.peers.contract import (
    CANCELLED,
    FINAL,
    IdempotencyKey,
    NewOrder,
    OrderStopped,
    Prefer,
    Product,
    new_order_id,
    order_json,
    seconds_to_wait,
)

RETRY_INTERVAL = timedelta(seconds=1)  # while a gateway is down

pool = gateways.pool(os.environ["DATABASE_URL"])  # opened by the service alone
outside = gateways.Gateways(pool)

# --- a product: its stock, changed by one call at a time

product = VirtualObject("Product")


@product.handler()
async def put(ctx: ObjectContext, value: dict[str, int]) -> None:
    ctx.set("price", value["price"])
    ctx.set("available", value["available"])


@product.handler()
async def reserve(ctx: ObjectContext, quantity: int) -> int | None:
    """Return the price of them, or None if there are too few."""
    available = await ctx.get("available", type_hint=int) or 0
    if available < quantity:
        return None
    ctx.set("available", available - quantity)
    return quantity * (await ctx.get("price", type_hint=int) or 0)


@product.handler()
async def release(ctx: ObjectContext, quantity: int) -> None:
    ctx.set("available", (await ctx.get("available", type_hint=int) or 0) + quantity)


@product.handler(kind="shared")
async def available(ctx: restate.ObjectSharedContext) -> int:
    return await ctx.get("available", type_hint=int) or 0


# --- an order: the saga

saga = Workflow("OrderRun")


@saga.main()
async def run(ctx: WorkflowContext, order: dict[str, Any]) -> dict[str, Any]:
    order_id = ctx.key()
    compensations: list[Callable[[], Awaitable[Any]]] = []
    try:
        total = 0
        for line in order["lines"]:
            price = await ctx.object_call(reserve, key=line["sku"], arg=line["quantity"])
            if price is None:
                raise OrderStopped("out_of_stock", f"{line['sku']} is out of stock")
            compensations.append(partial(ctx.object_call, release, key=line["sku"], arg=line["quantity"]))
            total += price
        ctx.set("status", "reserved")
        compensations.append(lambda: ctx.run_typed("refund", outside.refund, key=order_id))
        await until_available(ctx, "charge", lambda: outside.charge(order_id, total, order["payment_method"]))
        ctx.set("status", "charged")
        compensations.append(lambda: ctx.run_typed("cancel shipment", outside.cancel_shipment, key=order_id))
        postal_code = order["shipping_address"]["postal_code"]
        await until_available(ctx, "ship", lambda: outside.ship(order_id, postal_code))
        if await decide(ctx, "shipped") == "cancelled":
            raise OrderStopped(*CANCELLED)
    except OrderStopped as stopped:
        for compensate in reversed(compensations):
            await compensate()
        ended = order_json(order_id, stopped.status, stopped.code, stopped.message)
        if await decide(ctx, "stopped") == "cancelled":  # accepted meanwhile
            ended = order_json(order_id, "cancelled", *CANCELLED)
    else:
        ctx.set("status", "shipped")
        await ctx.run_typed("confirm", outside.send_confirmation, key=order_id)
        ended = order_json(order_id, "completed")
    return ended


async def until_available(ctx: WorkflowContext, name: str, call: Callable[[], Awaitable[None]]) -> None:
    """Call a gateway until it is available. A cancel ends the wait. Raises OrderStopped."""

    async def attempt() -> list[str] | None:
        try:
            await call()
        except gateways.Unavailable:
            return None
        except OrderStopped as stopped:
            return [stopped.code, stopped.message]
        return []

    while (result := await ctx.run_typed(name, attempt)) is None:
        decision = ctx.promise("decision", type_hint=str)
        match await restate.select(decision=decision.value(), again=ctx.sleep(RETRY_INTERVAL)):
            case ["decision", _]:
                raise OrderStopped(*CANCELLED)
    if result:
        raise OrderStopped(*result)


async def decide(ctx: WorkflowContext | WorkflowSharedContext, decision: str) -> str:
    """Resolve the promise, or learn how it has been resolved."""
    promise = ctx.promise("decision", type_hint=str)
    with suppress(TerminalError):
        await promise.resolve(decision)
    return await promise


@saga.handler()
async def cancel(ctx: WorkflowSharedContext) -> bool:
    """Return False if it is too late."""
    return await decide(ctx, "cancelled") == "cancelled"


@saga.handler()
async def status(ctx: WorkflowSharedContext) -> str:
    return await ctx.get("status", type_hint=str) or "placed"


async def serve(address: str) -> None:
    config = Config.from_mapping(bind=[address])
    async with pool:
        async with pool.connection() as connection:
            await connection.execute(gateways.SCHEMA)
        await hypercorn.asyncio.serve(restate.app([product, saga], protocol="bidi"), config)


# --- the API


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global ingress
    async with httpx.AsyncClient(
        base_url=os.environ["RESTATE_INGRESS"], timeout=60, limits=httpx.Limits(max_connections=200)
    ) as ingress:
        yield


app = FastAPI(lifespan=lifespan)
ingress: httpx.AsyncClient


@app.post("/orders", status_code=202)
async def place_order(new: NewOrder, idempotency_key: IdempotencyKey = None, prefer: Prefer = "") -> dict[str, Any]:
    order_id = new_order_id(idempotency_key)
    # In the log of the server before the answer; a second one with this key is the same workflow.
    await call(f"/OrderRun/{order_id}/run/send", new.model_dump())
    if seconds := seconds_to_wait(prefer):
        with suppress(httpx.ReadTimeout):
            return (await ingress.get(f"/restate/workflow/OrderRun/{order_id}/attach", timeout=seconds)).json()
    return order_json(order_id, "placed")


@app.get("/orders/{order_id}")
async def read_order(order_id: str) -> Any:
    output = await ingress.get(f"/restate/workflow/OrderRun/{order_id}/output")
    if output.is_success:
        return output.json()
    if output.status_code == 404:
        raise HTTPException(404)
    return order_json(order_id, await call(f"/OrderRun/{order_id}/status"))  # it has not ended


@app.post("/orders/{order_id}/cancel", status_code=202)
async def cancel_order(order_id: str) -> Any:
    ended = (await read_order(order_id))["status"] in FINAL
    if ended or not await call(f"/OrderRun/{order_id}/cancel"):
        raise HTTPException(409, "cannot cancel the order: it has shipped or ended")
    return await read_order(order_id)


@app.put("/inventory/{sku}", status_code=204)
async def put_product(sku: str, new: Product) -> None:
    await call(f"/Product/{sku}/put", {"price": new.unit_price.amount, "available": new.available})


@app.get("/inventory/{sku}")
async def read_product(sku: str) -> dict[str, int]:
    return {"available": await call(f"/Product/{sku}/available")}


async def call(path: str, body: Any = None) -> Any:
    answer = await (ingress.post(path) if body is None else ingress.post(path, json=body))
    if not answer.is_success:
        raise HTTPException(answer.status_code, answer.text)
    return answer.json() if answer.content else None


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
