"""Live events: all listeners share one change stream, and each receives every change."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from pymongo.read_concern import ReadConcern

from app import domain, names
from app.api import auth, hub, route
from app.api.hub import each
from app.api.main import create_app
from app.domain import OrderStatus
from app.names import WORKFLOW_ID_PREFIX
from app.settings import ApiSettings, Scope
from dev.servers import Server
from tests.kit.faults import change_streams, delayed_majority, failing
from tests.kit.http import bearer, closed, key_of, kind_of, limited_to, serve
from tests.kit.listening import Event, Listener
from tests.kit.orders import order_body
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

LISTENERS = 200


async def move(shop: Shop, order_id: str, status: str) -> None:
    """Change an order as an activity would."""
    change = {"status": status, "updated_at": datetime.now(UTC)}
    await shop.mongo.orders.update_one({"_id": order_id}, {"$set": change})


async def place_in_turn(shop: Shop, count: int) -> list[domain.Order]:
    """Place orders a second apart: those of the same millisecond are listed by `_id`."""
    first = datetime.now(UTC) - timedelta(seconds=count)
    return [await shop.place(created_at=first + timedelta(seconds=number)) for number in range(count)]


def event_id(age: timedelta) -> str:
    return f"{int((datetime.now(UTC) - age).timestamp())}.1"


async def test_order_events_end_with_its_final_status(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    await shop.stock()
    order_id = (await api.post("/orders", json=order_body(payment_method="pm_card_flaky"))).json()["order_id"]
    listener = await Listener.connect(api, f"/orders/{order_id}/events")
    assert (listener.status, listener.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    received: list[Event] = []
    while event := await listener.next():  # the stream ends after a final status
        received.append(event)
    statuses = [event.data["status"] for event in received]
    assert {event.name for event in received} == {"order"}
    assert statuses[-1] == "completed"
    assert {"reserved", "charged"} & set(statuses)
    assert received[-1].data == (await api.get(f"/orders/{order_id}")).json()

    late = await Listener.connect(api, f"/orders/{order_id}/events")
    only = await late.next()
    assert only is not None
    assert only.data == received[-1].data
    assert await late.next() is None
    assert await eventually(lambda: change_streams(shop.mongo), lambda count: count == 0) == 0


async def test_every_answer_and_event_has_the_workflow_url(
    settings: ApiSettings, temporal_server: Server, shop: Shop
) -> None:
    linked = settings.model_copy(update={"temporal_ui_url": "http://temporal.test/"})
    await shop.stock()
    order = (await shop.place()).order_id
    async with serve(linked, temporal_server.address) as api:
        placed = (await api.post("/orders", json=order_body())).json()
        url = "http://temporal.test/namespaces/default/workflows/" + WORKFLOW_ID_PREFIX
        assert placed["workflow_url"] == url + placed["order_id"]
        listener = await Listener.connect(api, f"/orders/{order}/events")
        current = await listener.next()
        cancelled = (await api.post(f"/orders/{order}/cancel")).json()
        changed = await listener.next()
        assert current
        assert changed
        answers = [current.data, changed.data, cancelled, (await api.get(f"/orders/{order}")).json()]
        assert [answer["workflow_url"] for answer in answers] == [url + order] * 4
        listed = (await api.get("/orders")).json()["items"]
        assert [item["workflow_url"] for item in listed] == [url + item["order_id"] for item in listed]
        listener.disconnect()
    async with serve(settings, temporal_server.address) as api:
        assert (await api.get(f"/orders/{order}")).json()["workflow_url"] is None


async def test_200_listeners_share_one_change_stream(api: httpx.AsyncClient, shop: Shop, worker: None) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4_096)), hard))
    await shop.stock()
    first = await shop.place(status="shipped")
    half = LISTENERS // 2
    paths = ["/orders/events"] * half + [f"/orders/{first.order_id}/events"] * half
    listeners = await asyncio.gather(*(Listener.connect(api, path) for path in paths))
    assert all([(received := await each.next()) and received.data["status"] == "shipped" for each in listeners])
    await eventually(lambda: change_streams(shop.mongo), lambda count: count == 1)

    await move(shop, first.order_id, "completed")
    order_id = (await api.post("/orders", json=order_body())).json()["order_id"]
    last_events = await asyncio.gather(*(each.wait_for(first.order_id, "completed") for each in listeners))
    assert len(last_events) == LISTENERS
    assert all([await each.next() is None for each in listeners[half:]])
    await asyncio.gather(*(each.wait_for(order_id, "completed") for each in listeners[:half]))
    await eventually(lambda: change_streams(shop.mongo), lambda count: count == 1)

    for listener in listeners:
        listener.disconnect()
    await eventually(lambda: change_streams(shop.mongo), lambda count: count == 0)


async def test_listener_does_not_keep_the_orders_it_was_sent_first(api: httpx.AsyncClient, shop: Shop) -> None:
    """Fifty orders of each of 500 listeners took a quarter of a gigabyte, as long as the listeners stayed."""
    orders = [await shop.place(status="shipped") for _ in range(20)]
    listeners = [await Listener.connect(api, "/orders/events") for _ in range(10)]
    for listener in listeners:
        for _ in orders:
            assert await listener.next()

    def kept() -> int:
        gc.collect()
        return sum(issubclass(type(each), domain.Order) for each in gc.get_objects())

    del orders
    assert kept() < 5 * len(listeners)  # the last one sent, and its form for the API
    for listener in listeners:
        listener.disconnect()


async def test_change_that_no_majority_has_yet_is_sent_later(api: httpx.AsyncClient, shop: Shop) -> None:
    order_id = (await shop.place()).order_id
    local = shop.mongo.orders.with_options(read_concern=ReadConcern("local"))
    async with asyncio.TaskGroup() as moving:
        async with delayed_majority(shop.mongo):
            moving.create_task(move(shop, order_id, "reserved"))
            await eventually(lambda: local.find_one({"_id": order_id, "status": "reserved"}))
            listener = await Listener.connect(api, f"/orders/{order_id}/events")
            current = await listener.next()
        changed = await listener.next()
    listener.disconnect()
    assert current is not None
    assert changed is not None
    assert [event.data["status"] for event in (current, changed)] == ["placed", "reserved"]


async def test_reconnect_sends_all_missed_events(api: httpx.AsyncClient, shop: Shop) -> None:
    orders = await place_in_turn(shop, 5)
    connected = await Listener.connect(api, "/orders/events")
    disconnecting = await Listener.connect(api, "/orders/events")
    for listener in (connected, disconnecting):
        current = [await listener.next() for _ in orders]
        assert [received and received.data["order_id"] for received in current] == [order.order_id for order in orders]
    await move(shop, orders[0].order_id, "reserved")
    seen = await disconnecting.wait_for(orders[0].order_id, "reserved")
    disconnecting.disconnect()
    for order in orders:
        await move(shop, order.order_id, "charged")
    await connected.wait_for(orders[-1].order_id, "charged")

    reconnected = await Listener.connect(api, "/orders/events", seen.id)
    states = [received.data for _ in orders if (received := await reconnected.next())]
    assert [(order["order_id"], order["status"]) for order in states] == [(o.order_id, "charged") for o in orders]
    connected.disconnect()
    reconnected.disconnect()


async def test_disconnect_during_catch_up_repeats_it(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.mongo.create_indexes()
    orders = await place_in_turn(shop, 5)
    connected = await Listener.connect(api, "/orders/events")
    recent = event_id(timedelta(minutes=50))
    disconnecting = await Listener.connect(api, "/orders/events", recent)
    first = await disconnecting.next()
    disconnecting.disconnect()
    assert first is not None
    assert (first.name, first.id) == ("order", "")
    reconnected = await Listener.connect(api, "/orders/events", first.id or recent)
    again = [await reconnected.next() for _ in orders]
    assert [received and received.data["order_id"] for received in again] == [order.order_id for order in orders]
    assert [bool(received and received.id) for received in again] == [False, False, False, False, True]
    connected.disconnect()
    reconnected.disconnect()


async def test_reconnect_while_stream_lags_sends_late_events(api: httpx.AsyncClient, shop: Shop) -> None:
    orders = await place_in_turn(shop, 3)
    connected = await Listener.connect(api, "/orders/events")
    await move(shop, orders[0].order_id, "reserved")
    seen = await connected.wait_for(orders[0].order_id, "reserved")
    async with failing(shop.mongo, "getMore", appName=names.NAME, blockConnection=True, blockTimeMS=1_000):
        await move(shop, orders[1].order_id, "reserved")  # completes the pending getMore; the next one blocks
        await connected.wait_for(orders[1].order_id, "reserved")
        await move(shop, orders[2].order_id, "reserved")
        reconnected = await Listener.connect(api, "/orders/events", seen.id)
        await reconnected.wait_for(orders[2].order_id, "reserved")
    connected.disconnect()
    reconnected.disconnect()


async def test_reconnect_to_another_process_sends_all_missed_events(
    settings: ApiSettings, temporal_server: Server, shop: Shop
) -> None:
    await shop.mongo.create_indexes()
    old = datetime(2026, 1, 1, tzinfo=UTC)
    untouched = await shop.place(created_at=old, updated_at=old)
    orders = await place_in_turn(shop, 60)  # more than a new listener receives
    async with serve(settings, temporal_server.address) as api:
        listener = await Listener.connect(api, "/orders/events")
        await move(shop, orders[0].order_id, "reserved")
        seen = await listener.wait_for(orders[0].order_id, "reserved")
        listener.disconnect()
    for order in orders:
        await move(shop, order.order_id, "charged")
    async with serve(settings, temporal_server.address) as api:
        reconnected = await Listener.connect(api, "/orders/events", seen.id)
        received_ids = {received.data["order_id"] for _ in orders if (received := await reconnected.next())}
        assert received_ids == {order.order_id for order in orders}
        assert untouched.order_id not in received_ids
        await move(shop, orders[5].order_id, "completed")
        await reconnected.wait_for(orders[5].order_id, "completed")
        reconnected.disconnect()


async def test_last_event_id_older_than_an_hour_begins_anew(api: httpx.AsyncClient, shop: Shop) -> None:
    orders = await place_in_turn(shop, 3)
    for old in ("1.1", event_id(timedelta(minutes=61)), event_id(timedelta(days=-1))):
        listener = await Listener.connect(api, "/orders/events", old)
        received = [event for _ in range(4) if (event := await listener.next())]
        listener.disconnect()
        assert [event.name for event in received] == ["reset", "order", "order", "order"]
        assert (received[0].data, received[0].id) == ({}, "")
        assert [event.data["order_id"] for event in received[1:]] == [order.order_id for order in orders]
        assert [bool(event.id) for event in received] == [False, False, False, True]

    listener = await Listener.connect(api, "/orders/events", received[-1].id)
    await move(shop, orders[0].order_id, "reserved")
    again = await listener.wait_for(orders[0].order_id, "reserved")
    assert again.id
    listener.disconnect()


async def test_too_many_streams_are_refused_until_one_ends(
    settings: ApiSettings, temporal_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_STREAMS_OF_CALLER", 2)
    monkeypatch.setattr(hub, "MAX_STREAMS", 3)
    async with serve(closed(settings, "shop", "desk", "till"), temporal_server.address) as api:

        async def connect(caller: str) -> Listener:
            stream = await Listener.connect(api, "/orders/events", caller=caller)
            if stream.status != 200:
                stream.disconnect()
            return stream

        streams = [await connect(caller) for caller in ("shop", "shop", "shop", "desk", "till")]
        assert [stream.status for stream in streams] == [200, 200, 503, 200, 503]
        assert streams[2].headers["retry-after"] == streams[4].headers["retry-after"] == "2"
        answer = await api.get("/orders/events", headers=bearer(key_of("till")))
        assert kind_of(answer) == "too-many-streams"

        streams.pop(0).disconnect()
        streams.append(await eventually(lambda: connect("till"), lambda stream: stream.status == 200))
        assert (await connect("shop")).status == 503
        for stream in streams:
            stream.disconnect()


async def test_caller_of_one_customer_has_few_streams(
    settings: ApiSettings, temporal_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_STREAMS_OF_CUSTOMER", 1)
    ann = limited_to("ann", Scope.ORDERS_READ, customer="cus_ann")
    async with serve(closed(settings, "shop", ann=ann), temporal_server.address) as api:
        streams = [await Listener.connect(api, "/orders/events", caller=who) for who in ("ann", "ann", "shop", "shop")]
        assert [stream.status for stream in streams] == [200, 503, 200, 200]
        for stream in streams:
            stream.disconnect()


async def test_client_that_leaves_at_once_is_no_error(
    api: httpx.AsyncClient, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        await shop.place()
    first = await Listener.connect(api, "/orders/events")  # keeps the change stream open
    for _ in range(20):
        (await Listener.connect(api, "/orders/events")).disconnect()
        await api.get("/healthz")  # one turn of the event loop at least
    first.disconnect()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_stream_sends_only_what_its_caller_may_read(
    settings: ApiSettings, temporal_server: Server, shop: Shop
) -> None:
    await shop.stock()
    ann, bob = [await shop.place(customer_id=f"cus_{name}") for name in ("ann", "bob")]
    limited = {
        "ann": limited_to("ann", Scope.ORDERS_READ, customer="cus_ann"),
        "clerk": limited_to("clerk", Scope.ORDERS_READ, Scope.ORDERS_ANY),
        "store": limited_to("store", Scope.ORDERS_READ, Scope.INVENTORY_READ, customer="None"),
    }
    expected = {"ann": ["ann"], "clerk": ["bob", "ann"], "store": ["stock", "last"]}
    async with serve(closed(settings, **limited), temporal_server.address) as api:
        listeners = {name: await Listener.connect(api, "/orders/events", caller=name) for name in limited}
        begins = {"ann": 1, "clerk": 2, "store": 0}  # the orders that each sees
        for name, listener in listeners.items():
            assert len([await listener.next() for _ in range(begins[name])]) == begins[name]
        await shop.stock(available=1)
        await move(shop, bob.order_id, "reserved")
        await move(shop, ann.order_id, "reserved")
        await shop.mongo.orders.insert_one({"_id": "malformed"})  # of no customer: not of the one with that name
        last = await shop.place(customer_id="None")
        named = {ann.order_id: "ann", bob.order_id: "bob", last.order_id: "last"}
        for name, listener in listeners.items():
            received = [event for _ in expected[name] if (event := await listener.next())]
            assert [named.get(event.data.get("order_id", ""), event.name) for event in received] == expected[name]
            listener.disconnect()


async def test_stream_ends_with_the_token_of_its_caller(
    api: httpx.AsyncClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = await shop.place()
    for path in ("/orders/events", f"/orders/{order.order_id}/events"):
        for seconds in (0.5, 2, 8, 30):  # on a busy machine, a token may expire before its stream begins
            monkeypatch.setattr(auth, "ANYONE", replace(auth.ANYONE, expires_at=time.time() + seconds))
            listener = await Listener.connect(api, path)
            if await listener.next() is not None:
                break
            listener.disconnect()
        assert await listener.next(within=60) is None
    late = await Listener.connect(api, "/orders/events")  # as a token in its leeway
    assert await late.next() is None


async def test_1000_listeners_leave_turns_to_other_requests(
    settings: ApiSettings, temporal_server: Server, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "DEADLINE", 30.0)
    await shop.stock()
    received = turns = 0

    async def read(messages: AsyncIterator[bytes]) -> None:
        nonlocal received
        await anext(messages)
        received += 1

    app = create_app(settings, target_host=temporal_server.address)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as api,
        AsyncExitStack() as streams,
    ):
        hub = app.state.hub
        all_orders = [await streams.enter_async_context(hub.subscribe(None, auth.ANYONE)) for _ in range(1_000)]
        reading = [asyncio.create_task(read(stream.messages(each([])))) for stream in all_orders]
        assert (await api.post("/orders", json=order_body())).status_code == 202
        while received < len(all_orders):
            turns += received > 0
            await asyncio.sleep(0)
        await asyncio.gather(*reading)
    assert turns >= 100


async def test_slow_listener_is_disconnected_without_delaying_others(
    api: httpx.AsyncClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream ends once its queue, which the test shortens, is full. It can resume with the id of its last event."""
    monkeypatch.setattr(hub, "MAX_QUEUED", 16)
    many_lines = {f"sku-{number}": 1 for number in range(50)}
    order = await shop.place(many_lines)
    long_names = {"lines.$[].name": "n" * 200}
    await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": long_names})
    slow = await Listener.connect(api, "/orders/events", slow=True)
    fast = await Listener.connect(api, "/orders/events")
    changes = 450  # of 20 KB each, far more than socket buffers and queue hold

    async def change() -> None:
        for number in range(changes):
            update = {"$set": {"payment_method": f"pm_{number}", "updated_at": datetime.now(UTC)}}
            await shop.mongo.orders.update_one({"_id": order.order_id}, update)

    changing = asyncio.create_task(change())
    received = await fast.next()
    while received and received.data["payment_method"] != f"pm_{changes - 1}":
        received = await fast.next()
    assert received is not None
    await changing

    last: Event | None = None
    while event := await slow.next():
        last = event
    assert last is not None
    assert last.data["payment_method"] != f"pm_{changes - 1}"
    reconnected = await Listener.connect(api, "/orders/events", last.id)
    while (event := await reconnected.next()) and event.data["payment_method"] != f"pm_{changes - 1}":
        pass
    assert event is not None
    for listener in (fast, reconnected):
        listener.disconnect()


async def test_listener_without_events_is_kept_connected(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies close idle connections, so a comment is sent every 15 s. The test shortens that interval."""
    monkeypatch.setattr(hub, "PING_INTERVAL", 0.1)
    listener = await Listener.connect(api, "/orders/events")
    silence = asyncio.create_task(listener.next())

    async def comments() -> int:
        return listener.comments

    await eventually(comments, lambda count: count >= 2)
    silence.cancel()
    listener.disconnect()


async def test_stock_change_is_sent(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.stock(available=1)
    listener = await Listener.connect(api, "/orders/events")
    await shop.mongo.inventory.insert_one({"_id": "malformed"})
    await api.post("/inventory/MUG/restock", json={"quantity": 4})
    received = await listener.next()
    assert received is not None
    assert (received.name, received.data["sku"], received.data["available"]) == ("stock", "MUG", 5)

    listener.disconnect()


async def test_malformed_last_event_id_is_refused(api: httpx.AsyncClient) -> None:
    for last_event_id in ("x", "1", "1.2.3", "-1.0", "1.-1", "99999999999.1", "1.x", "1e3.1"):
        answer = await api.get("/orders/events", headers={"Last-Event-ID": last_event_id})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Last-Event-ID"), last_event_id


async def test_malformed_documents_do_not_stop_the_stream(api: httpx.AsyncClient, shop: Shop) -> None:
    listener = await Listener.connect(api, "/orders/events")
    await shop.mongo.orders.insert_one({"_id": "strange", "status": ["x"], "steps": {"reserve_inventory": 1}})
    await shop.mongo.orders.insert_one({"_id": 5})
    await shop.mongo.orders.delete_one({"_id": 5})
    received = await listener.wait_for("strange", "failed")
    assert received.data["failure"]["code"] == "malformed"
    order = await shop.place(status=OrderStatus.PLACED.value)
    await listener.wait_for(order.order_id, "placed")
    listener.disconnect()


async def test_stream_recovers_after_database_drop(api: httpx.AsyncClient, shop: Shop) -> None:
    await shop.place()
    listener = await Listener.connect(api, "/orders/events")
    assert await listener.next() is not None
    await shop.mongo.client.drop_database(shop.mongo.database.name)
    assert await listener.next() is None  # the API closes the stream, and the listener reconnects
    order = await shop.place()

    async def next_event() -> Event | None:
        again = await Listener.connect(api, "/orders/events")
        received = await again.next()
        again.disconnect()
        return received

    received = await eventually(next_event)
    assert received is not None
    assert received.data["order_id"] == order.order_id
