"""G9: invalid input gets a 4xx as problem+json that names the field, and nothing is written."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from app.mongo import Mongo
from tests.kit.http import kind_of, raw
from tests.kit.orders import ADDRESS, order_body
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

JSON = {"Content-Type": "application/json"}
LINE = {"sku": "MUG", "quantity": 1}


def body(*path: str | int, value: Any) -> dict[str, Any]:
    """A valid order with `value` at one path."""
    changed: Any = json.loads(json.dumps(order_body(lines=[LINE])))
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return dict(changed)


def text(fields: object, **replacements: str) -> bytes:
    """JSON that an encoder cannot produce: each word is replaced with raw text."""
    encoded = json.dumps(fields)
    for word, other in replacements.items():
        encoded = encoded.replace(f'"{word}"', other)
    return encoded.encode()


# Name of the case -> body, and the field that the error must name.
WRONG_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no lines": (body("lines", value=[]), "lines"),
    "51 lines": (body("lines", value=[{"sku": f"S{i}", "quantity": 1} for i in range(51)]), "lines"),
    "a sku twice": (body("lines", value=[LINE, LINE]), "lines"),
    "quantity 0": (body("lines", 0, "quantity", value=0), "lines.0.quantity"),
    "quantity 1001": (body("lines", 0, "quantity", value=1001), "lines.0.quantity"),
    "quantity as text": (body("lines", 0, "quantity", value="1"), "lines.0.quantity"),
    "quantity 1.5": (body("lines", 0, "quantity", value=1.5), "lines.0.quantity"),
    "quantity true": (body("lines", 0, "quantity", value=True), "lines.0.quantity"),
    "quantity NaN": (body("lines", 0, "quantity", value=float("nan")), "lines.0.quantity"),
    "quantity infinite": (body("lines", 0, "quantity", value=float("inf")), "lines.0.quantity"),
    "quantity of 4,000 digits": (body("lines", 0, "quantity", value=10**3_999), "lines.0.quantity"),
    "an unknown sku": (body("lines", 0, "sku", value="NOPE"), "lines.0.sku"),
    "an operator as sku": (body("lines", 0, "sku", value={"$gt": ""}), "lines.0.sku"),
    "an operator as customer": (body("customer_id", value={"$gt": ""}), "customer_id"),
    "a field path as customer": (body("customer_id", value="$email"), "customer_id"),
    "NUL in the customer": (body("customer_id", value="a\x00b"), "customer_id"),
    "NUL in the name": (body("shipping_address", "name", value="a\x00b"), "shipping_address.name"),
    "a lone surrogate": (body("shipping_address", "city", value="\ud800"), "shipping_address.city"),
    "a name of spaces": (body("shipping_address", "name", value="   "), "shipping_address.name"),
    "a name too long": (body("shipping_address", "name", value="x" * 201), "shipping_address.name"),
    "a country of three": (body("shipping_address", "country", value="GBR"), "shipping_address.country"),
    "no e-mail address": (body("email", value="ada"), "email"),
    "two lines of e-mail": (body("email", value="ada@example.org\nBcc: x@example.org"), "email"),
    "two recipients": (body("email", value="ada@example.org,eve@example.com"), "email"),
    "two recipients, semicolon": (body("email", value="ada@example.org;eve@example.com"), "email"),
    "a recipient in brackets": (body("email", value="Ada<ada@example.org>"), "email"),
    "a quoted recipient": (body("email", value='"ada"@example.org'), "email"),
    "a space in the e-mail": (body("email", value="ada @example.org"), "email"),
    "a line separator in the e-mail": (body("email", value="ada@example.org\u2028.org"), "email"),
    "a zero-width space in the e-mail": (body("email", value="ada\u200b@example.org"), "email"),
    "a name turned around": (body("shipping_address", "name", value="Ada \u202egnp.exe"), "shipping_address.name"),
    "an isolate in the city": (body("shipping_address", "city", value="1 \u2066x\u2069"), "shipping_address.city"),
    "a mark in the city": (body("shipping_address", "city", value="a\u200fb"), "shipping_address.city"),
    "two lines of a city": (body("shipping_address", "city", value="a\u2028b"), "shipping_address.city"),
    "a byte order mark inside": (
        body("shipping_address", "postal_code", value="1\ufeff2"),
        "shipping_address.postal_code",
    ),
    "an unknown field": (body("discount", value=100), "discount"),
    "a price": (body("lines", 0, "unit_price", value=1), "lines.0.unit_price"),
    "a key with dots": (body("shipping_address.name", value="x"), "shipping_address.name"),
    "a key with a dollar": (body("$where", value="1"), "$where"),
    "nothing of the address": (body("shipping_address", value=None), "shipping_address"),
}

ALL = ["customer_id", "email", "payment_method", "lines", "shipping_address"]
BAD_BODIES: dict[str, tuple[bytes, int, list[str]]] = {
    "nothing": (b"", 422, ["body"]),
    "no JSON": (b"{", 422, ["body"]),
    "a list": (b"[]", 422, ["body"]),
    "a text": (b'"order"', 422, ["body"]),
    "null": (b"null", 422, ["body"]),
    "nothing in it": (b"{}", 422, ALL),
    "a number of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", 422, ["body"]),
    "nested 30,000 deep": (b"[" * 30_000 + b"]" * 30_000, 422, ["body"]),
    "no UTF-8": (b'{"a": "\xff"}', 422, ["body"]),
    "a byte order mark": (codecs.BOM_UTF8 + json.dumps(order_body()).encode(), 422, ["body"]),
    "only a byte order mark": (codecs.BOM_UTF8, 422, ["body"]),
    "UTF-16": (json.dumps(order_body()).encode("utf-16"), 422, ["body"]),
    "a surrogate as key": (b'{"\\ud800": 1}', 422, ["body"]),
    "NUL as key": (b'{"\\u0000": 1}', 422, [*ALL, "\x00"]),
    "a field twice": (text(order_body(), customer_id='"customer_id": "a", "customer_id"'), 422, ["body"]),
    "a field twice, inside": (text(order_body(), quantity='"quantity": 1, "quantity"'), 422, ["body"]),
    "2 MB": (b'{"a": "' + b"x" * 2_000_000 + b'"}', 413, []),
    "64 KiB and one": (b" " * (64 * 1024) + b"{", 413, []),
}

ANSWERED_422 = ("http_request_seconds_count", {"method": "POST", "route": "/orders", "status": "422"})
PATHS_WITH_BODY = ["/orders", "/inventory/MUG/restock", "/orders/ord_1/cancel"]
UNKNOWN_PATHS = [
    ("GET", "/nowhere", 404),
    ("GET", "/orders/", 404),
    ("GET", "/static/nothing.js", 404),
    ("GET", "/static/%2e%2e/main.py", 404),
    ("GET", "/orders/ord_none", 404),
    ("GET", "/orders/ord_none/status", 404),
    ("GET", "/orders/ord_none/events", 404),
    ("POST", "/orders/ord_none/cancel", 404),
    ("GET", "/inventory/NONE", 404),
    ("DELETE", "/orders", 405),
    ("PATCH", "/inventory/MUG", 405),
    ("TRACE", "/healthz", 405),
]
BAD_TYPES = ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "", "json"]


def names(answer: httpx.Response) -> list[str]:
    """Check that the answer is a well-formed problem. Returns the fields that it names."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    members = {"type", "title", "status", "detail", "request_id"}
    assert members <= problem.keys() <= members | {"errors"}
    assert "Traceback" not in answer.text
    for error in problem.get("errors", []):
        assert {"field", "code", "message"} <= error.keys() <= {"field", "code", "message", "pointer"}, error
        assert re.fullmatch("[a-z_]+", error["code"]), error
        assert not re.search(r"\^|\\x|pattern|[Ii]nput|should", error["message"]), error
    return [error["field"] for error in problem.get("errors", [])]


@pytest.fixture(autouse=True)
async def check_nothing_is_written(shop: Shop, mongo: Mongo) -> AsyncIterator[None]:
    """After each test, check that the database is unchanged and that no workflow was started."""
    await shop.stock()
    before = await contents(mongo)
    yield
    assert await contents(mongo) == before
    count = await shop.client.count_workflows(f"TaskQueue = '{shop.settings.task_queue}'")
    assert count.count == 0


async def contents(mongo: Mongo) -> dict[str, list[dict[str, Any]]]:
    return {
        name: await mongo.database[name].find().to_list(None) for name in await mongo.database.list_collection_names()
    }


async def test_post_order_with_invalid_field_answers_422_and_writes_nothing(api: httpx.AsyncClient) -> None:
    answers = {
        case: await api.post("/orders", content=json.dumps(fields), headers=JSON)
        for case, (fields, _) in WRONG_FIELDS.items()
    }
    actual = {case: (answer.status_code, names(answer)) for case, answer in answers.items()}
    assert actual == {case: (422, [field]) for case, (_, field) in WRONG_FIELDS.items()}


# Name of the case -> code, message and JSON Pointer of the error.
EXPECTED_ERRORS = {
    "no lines": ("too_short", "choose at least one product", "/lines"),
    "51 lines": ("too_long", "choose at most 50 products", "/lines"),
    "a sku twice": ("value_error", "must list each product once; repeated: MUG", "/lines"),
    "quantity 0": ("greater_than_equal", "must be at least 1", "/lines/0/quantity"),
    "quantity 1001": ("less_than_equal", "must be at most 1000", "/lines/0/quantity"),
    "quantity as text": ("int_type", "must be a whole number", "/lines/0/quantity"),
    "an unknown sku": ("unknown_product", "no such product", "/lines/0/sku"),
    "an operator as sku": ("string_type", "must be text", "/lines/0/sku"),
    "a field path as customer": (
        "not_an_identifier",
        "must be 1 to 64 letters, digits, dots, underscores or hyphens",
        "/customer_id",
    ),
    "NUL in the name": (
        "not_printable",
        "must not contain control characters or characters that change the direction of text",
        "/shipping_address/name",
    ),
    "a name of spaces": ("string_too_short", "must not be empty", "/shipping_address/name"),
    "a name too long": ("string_too_long", "must have at most 200 characters", "/shipping_address/name"),
    "a country of three": (
        "not_a_country_code",
        "must be a two-letter country code, such as DE",
        "/shipping_address/country",
    ),
    "no e-mail address": ("not_an_email_address", "must be one e-mail address, such as ada@example.com", "/email"),
    "an unknown field": ("extra_forbidden", "unknown field", "/discount"),
    "a key with dots": ("extra_forbidden", "unknown field", "/shipping_address.name"),
    "nothing of the address": ("model_attributes_type", "must be an object", "/shipping_address"),
}


@pytest.mark.parametrize("case", EXPECTED_ERRORS)
async def test_invalid_field_has_stable_code_readable_message_and_pointer(api: httpx.AsyncClient, case: str) -> None:
    answer = await api.post("/orders", json=WRONG_FIELDS[case][0])
    (error,) = answer.json()["errors"]
    assert (error["code"], error["message"], error["pointer"]) == EXPECTED_ERRORS[case]
    assert kind_of(answer) == ("unknown-product" if case == "an unknown sku" else "invalid-request")
    assert answer.json()["detail"] == f"{error['field']}: {error['message']}"


async def test_invalid_parameter_or_header_has_no_pointer(api: httpx.AsyncClient) -> None:
    answers = [
        await api.get("/orders", params={"status": "x"}),
        await api.get("/orders", params={"limit": "x"}),
        await api.get("/orders/*"),
        await api.post("/orders", json=order_body(), headers={b"Idempotency-Key": "\u00fc".encode()}),
    ]
    errors = [error for answer in answers for error in answer.json()["errors"]]
    assert [(error["field"], error["code"], error.get("pointer")) for error in errors] == [
        ("status", "enum", None),
        ("limit", "int_parsing", None),
        ("order_id", "not_an_identifier", None),
        ("Idempotency-Key", "not_printable", None),
    ]


async def test_pointer_escapes_keys_of_the_request(api: httpx.AsyncClient) -> None:
    answer = await api.post("/orders", json=order_body(**{"a/b~c": 1}))
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/a~1b~0c"]


async def test_each_missing_field_is_named(api: httpx.AsyncClient) -> None:
    answer = await api.post("/orders", json={"lines": [{}], "shipping_address": {"name": "Ada"}})
    assert names(answer) == [
        "customer_id",
        "email",
        "payment_method",
        "lines.0.sku",
        "lines.0.quantity",
        *(f"shipping_address.{name}" for name in ADDRESS if name != "name"),
    ]


async def test_malformed_body_is_refused_without_a_log_entry(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answers = {
        case: await api.post("/orders", content=content, headers=JSON) for case, (content, _, _) in BAD_BODIES.items()
    }
    actual = {case: (answer.status_code, names(answer)) for case, answer in answers.items()}
    assert actual == {case: (status, fields) for case, (_, status, fields) in BAD_BODIES.items()}
    for case in ("no UTF-8", "a byte order mark", "only a byte order mark", "nested 30,000 deep", "a surrogate as key"):
        for path in PATHS_WITH_BODY:
            answer = await api.post(path, content=BAD_BODIES[case][0], headers=JSON)
            assert (answer.status_code, names(answer)) == (422, ["body"]), (case, path)
    assert caplog.records == []


def nested(depth: int) -> list[bytes]:
    """JSON nested to this depth, in each form that fits into 64 KiB."""
    array, objects = "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth
    mixed = '[{"a":' * (depth // 2) + "1" + "}]" * (depth // 2)
    strings = '{"[{[{":["[[[[]}",' * (depth // 2) + '"\\\\\\"{["' + "]}" * (depth // 2)
    field = json.dumps(order_body(payment_method="deep")).replace('"deep"', array)
    unclosed = ["[" * depth, '{"a":' * depth]
    return [form.encode() for form in (array, objects, mixed, strings, field, *unclosed) if len(form) <= 64 * 1024]


async def test_deeply_nested_body_answers_422(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, exhaustive: bool
) -> None:
    """The parser's own depth limit depends on the version of Python; an exhaustive run has every depth near 1,000."""
    depths = [
        *range(1, 40, 6),
        *range(900, 1_010, 1 if exhaustive else 7),
        *(2**power for power in range(11, 16)),
        64 * 1024,
    ]
    for depth in depths:
        for content in nested(depth):
            answer = await api.post("/orders", content=content, headers=JSON)
            assert answer.status_code == 422, (depth, content[:20], answer.text)
            assert names(answer) != []
    assert caplog.records == []


async def test_body_aborted_by_client_logs_no_error(api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    before = REGISTRY.get_sample_value(*ANSWERED_422) or 0
    _, writer = await asyncio.open_connection(api.base_url.host, api.base_url.port)
    writer.write(b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()

    async def answered() -> float:
        return REGISTRY.get_sample_value(*ANSWERED_422) or 0

    await eventually(answered, lambda count: count == before + 1)
    assert caplog.records == []


async def test_large_body_without_content_length_answers_413(api: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1_000

    for path in PATHS_WITH_BODY:
        answer = await api.post(path, content=chunks(), headers=JSON)
        assert (answer.status_code, kind_of(answer), names(answer)) == (413, "body-too-large", [])


async def test_body_without_json_content_type_answers_415(api: httpx.AsyncClient) -> None:
    for path in PATHS_WITH_BODY:
        for content_type in BAD_TYPES:
            answer = await api.post(path, content=json.dumps(order_body()), headers={"Content-Type": content_type})
            assert (answer.status_code, kind_of(answer), names(answer)) == (415, "not-json", []), (path, content_type)


PRICE = {"amount": 1, "currency": "EUR"}
PRODUCT = {"name": "Mug", "unit_price": PRICE, "available": 1}
OTHER_REQUESTS: list[tuple[str, str, Any, str]] = [
    ("GET", "/orders?limit=0", None, "limit"),
    ("GET", "/orders?limit=201", None, "limit"),
    ("GET", "/orders?limit=x", None, "limit"),
    ("GET", "/orders?status=lost", None, "status"),
    ("GET", "/orders?customer_id=%00", None, "customer_id"),
    ("GET", "/orders?customer_id=%ed%a0%80", None, "customer_id"),
    ("GET", "/orders?cursor=x", None, "cursor"),
    ("GET", "/orders/%00", None, "order_id"),
    ("GET", "/orders/%ff", None, "order_id"),
    ("GET", "/orders/$where", None, "order_id"),
    ("GET", f"/orders/{'x' * 65}", None, "order_id"),
    ("GET", "/inventory/%24gt", None, "sku"),
    ("POST", "/orders/ord_1/approval", {"approved": "yes"}, "approved"),
    ("POST", "/orders/ord_1/approval", {}, "approved"),
    ("POST", "/orders/ord_1/cancel", {"reason": "a\x00"}, "reason"),
    ("POST", "/orders/ord_1/cancel", {"reason": "a\u202eb"}, "reason"),
    ("POST", "/orders/ord_1/cancel", {"why": "so"}, "why"),
    ("PUT", "/orders/ord_1/shipping-address", {**ADDRESS, "city": ""}, "city"),
    ("PUT", "/orders/ord_1/shipping-address", {**ADDRESS, "name": "a\u200eb"}, "name"),
    ("PUT", "/inventory/MUG", {**PRODUCT, "name": "a\u2067b"}, "name"),
    ("PUT", "/inventory/MUG", {**PRODUCT, "unit_price": {**PRICE, "amount": -1}}, "unit_price.amount"),
    ("PUT", "/inventory/MUG", {**PRODUCT, "unit_price": {**PRICE, "currency": "euro"}}, "unit_price.currency"),
    ("PUT", "/inventory/MUG", {**PRODUCT, "available": 10**9 + 1}, "available"),
    ("POST", "/inventory/MUG/restock", {"quantity": 0}, "quantity"),
    ("POST", "/inventory/MUG/restock", {"quantity": 10**30}, "quantity"),
]


async def test_other_requests_with_invalid_field_answer_422(api: httpx.AsyncClient) -> None:
    for method, path, fields, field in OTHER_REQUESTS:
        answer = await api.request(method, path, json=fields)
        assert (answer.status_code, names(answer)) == (422, [field]), path


async def test_restock_beyond_maximum_answers_409(api: httpx.AsyncClient, shop: Shop, mongo: Mongo) -> None:
    await shop.stock("FULL", available=10**9)
    answer = await api.post("/inventory/FULL/restock", json={"quantity": 1})
    assert (answer.status_code, kind_of(answer), names(answer)) == (409, "stock-limit-reached", [])
    await mongo.inventory.delete_one({"_id": "FULL"})


async def test_unknown_path_or_method_answers_404_or_405(api: httpx.AsyncClient) -> None:
    for method, path, status in UNKNOWN_PATHS:
        answer = await api.request(method, path)
        assert (answer.status_code, names(answer)) == (status, []), path
        assert ("Allow" in answer.headers) == (status == 405)


async def test_malformed_http_answers_400(api: httpx.AsyncClient) -> None:
    status, answer = await raw(api, b"BREW /pot\r\n\r\n")
    assert (status, answer) == (400, b"Invalid HTTP request received.")


# --- documents written by other programs


async def test_malformed_product_counts_as_missing(api: httpx.AsyncClient, mongo: Mongo) -> None:
    malformed = [
        {"_id": "NONAME", "unit_price": {"amount": 1, "currency": "EUR"}, "available": 1},
        {"_id": "TEXT", "name": "x", "unit_price": {"amount": "1", "currency": "EUR"}, "available": 1},
        {"_id": "HUGE", "name": "x", "unit_price": {"amount": 2**60, "currency": "EUR"}, "available": 1},
        {"_id": "MINUS", "name": "x", "unit_price": {"amount": 1, "currency": "EUR"}, "available": -1},
        {"_id": 5, "name": "x"},
    ]
    await mongo.inventory.insert_many(malformed)
    stock = await api.get("/inventory")
    assert [product["sku"] for product in stock.json()["items"]] == ["MUG"]
    for document in malformed[:-1]:
        sku = document["_id"]
        assert names(await api.get(f"/inventory/{sku}")) == []
        order = await api.post("/orders", json=order_body(lines=[{"sku": sku, "quantity": 1}]))
        assert (order.status_code, names(order)) == (422, ["lines.0.sku"])
        repaired = {"name": "x", "unit_price": {"amount": 1, "currency": "EUR"}, "available": 1}
        assert (await api.put(f"/inventory/{sku}", json=repaired)).status_code == 200
        assert (await api.get(f"/inventory/{sku}")).json() == {"sku": sku, **repaired}
    await mongo.inventory.delete_many({"_id": {"$ne": "MUG"}})


async def test_order_of_products_in_several_currencies_is_refused(api: httpx.AsyncClient, mongo: Mongo) -> None:
    await mongo.inventory.insert_one(
        {"_id": "USD", "name": "x", "unit_price": {"amount": 1, "currency": "USD"}, "available": 1}
    )
    lines = [LINE, {"sku": "USD", "quantity": 1}]
    answer = await api.post("/orders", json=order_body(lines=lines))
    assert (answer.status_code, names(answer)) == (422, ["lines"])
    await mongo.inventory.delete_one({"_id": "USD"})


async def test_unexpected_error_answers_500_without_details(api: httpx.AsyncClient, mongo: Mongo) -> None:
    """A view replaces the collection, so MongoDB refuses the write with an error that is not retried."""
    await mongo.inventory.drop()
    await mongo.database.create_collection("inventory", viewOn="nothing", pipeline=[])
    answer = await api.put(
        "/inventory/MUG", json={"name": "Mug", "unit_price": {"amount": 1, "currency": "EUR"}, "available": 1}
    )
    assert (answer.status_code, names(answer)) == (500, [])
    assert answer.json()["detail"] == "unexpected error, which has been logged"
    assert "inventory" not in answer.text
    await mongo.inventory.drop()
    await mongo.database.drop_collection("system.views")
    shop_again = {"name": "MUG", "unit_price": {"amount": 1_000, "currency": "EUR"}, "available": 100}
    await mongo.inventory.insert_one({"_id": "MUG", **shop_again})


async def test_only_the_beginning_of_a_long_media_type_is_parsed(api: httpx.AsyncClient) -> None:
    """The standard library's parser takes quadratic time: one long header would hold up every other request."""
    media_type = f"application/json; x={'y' * 200}; charset=latin-1"  # too long for its charset to be noticed
    answer = await api.post("/orders", content="{}", headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "missing")


async def test_answer_names_a_bounded_number_of_errors(api: httpx.AsyncClient) -> None:
    answer = await api.post("/orders", json={f"field-{number}": 1 for number in range(2_000)})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 50
