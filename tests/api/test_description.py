"""The OpenAPI description is complete: operation ids, required fields, examples, statuses, codes, headers, problems."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from app.api import problems
from app.api.description import describe
from app.api.main import create_app
from app.domain import CANCELLED, FENCED, NOT_APPROVED, Address, OrderStatus
from app.gateways import AddressUnserviceable, PaymentDeclined
from app.settings import ApiSettings
from app.workflows.steps import STEPS
from dev.sample_stock import SAMPLE_STOCK
from dev.stack import ROOT
from tests.kit.orders import order_document
from tests.kit.shop import Shop

OPERATIONS = {
    *("placeOrder", "listOrders", "countOrders", "getOrder", "getOrderStatus", "cancelOrder", "decideApproval"),
    *("changeShippingAddress", "getSaga"),
    *("streamOrderEvents", "streamAllOrderEvents"),
    *("listProducts", "getProduct", "putProduct", "restockProduct", "getHealth", "getReadiness", "getMetrics"),
}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return describe(create_app(ApiSettings(api_open=True)))


@pytest.fixture(scope="module")
def operations(description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The operations by their id."""
    return {each["operationId"]: each for methods in description["paths"].values() for each in methods.values()}


def test_operation_ids_are_stable(operations: dict[str, dict[str, Any]]) -> None:
    assert operations.keys() == OPERATIONS


def test_every_field_of_a_response_is_required(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    requests = {"NewOrder", "OrderedLine", "Reason", "Approval", "NewProduct", "Restock"}
    optional = {
        name: missing
        for name, schema in schemas.items()
        if name not in requests and (missing := {*schema.get("properties", {})} - {*schema.get("required", [])})
    }
    assert optional == {"ProblemDetails": {"errors"}, "FieldError": {"pointer"}}
    assert not [name for name in schemas if name.endswith(("-Input", "-Output"))]
    unused = [name for name in schemas if f'"#/components/schemas/{name}"' not in json.dumps(description)]
    assert unused == []


def test_every_status_and_failure_code_is_described(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    for name in (OrderStatus.__name__, "StepName", "StepStatus"):
        described = re.findall(r"^- `(\w+)`: \w", schemas[name]["description"], re.MULTILINE)
        assert described == schemas[name]["enum"], name
    codes = {CANCELLED, NOT_APPROVED, FENCED.code, "malformed", "misconfigured", "out_of_stock"}
    codes |= {step.timed_out.code for step in STEPS} | {PaymentDeclined.code, AddressUnserviceable.code}
    assert {*re.findall(r"`(\w+)`", schemas["Failure"]["description"])} == codes


def test_every_header_of_a_response_is_described(description: dict[str, Any], operations: dict[str, Any]) -> None:
    def headers(operation: str, status: str) -> set[str]:
        return {*operations[operation]["responses"][status]["headers"]}

    always = {"X-Request-ID"}
    assert headers("placeOrder", "202") == always | {"Location", "Idempotency-Replayed", "Preference-Applied"}
    assert headers("cancelOrder", "202") == always | {"Preference-Applied"}
    assert headers("listOrders", "200") == headers("listProducts", "200") == always | {"ETag", "Link"}
    assert headers("getOrder", "200") == headers("getOrder", "304") == always | {"ETag"}
    assert headers("restockProduct", "200") == always | {"Idempotency-Replayed"}
    assert headers("getOrder", "401") == always | {"WWW-Authenticate"}
    assert headers("getOrder", "503") == always | {"Retry-After"}
    assert headers("getOrder", "404") == always
    assert headers("streamOrderEvents", "200") == always
    used = {*re.findall(r'"#/components/headers/([\w-]+)"', json.dumps(description))}
    assert used == description["components"]["headers"].keys()
    assert "itemSchema" not in json.dumps(description)


def test_documented_problem_types_are_those_of_the_code(operations: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (.*) \|$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {kind: (int(status), meaning) for kind, status, meaning in rows} == {
        kind: tuple(known) for kind, known in problems.KINDS.items()
    }
    listed = {
        kind
        for operation in operations.values()
        for status, response in operation["responses"].items()
        if status >= "400"
        for kind in re.findall(r"^- `([\w-]+)`: ", response["description"], re.MULTILINE)
    }
    assert problems.KINDS.keys() - listed == {"method-not-allowed", "internal-error"}
    assert listed <= problems.KINDS.keys()


async def test_examples_run(api: httpx.AsyncClient, shop: Shop, description: dict[str, Any]) -> None:
    def example(schema: str) -> Any:
        return description["components"]["schemas"][schema]["examples"][0]

    for sku, (_, price, available) in SAMPLE_STOCK.items():
        await shop.stock(sku, available, price)
    placed = await api.post("/orders", json=example("NewOrder"))
    assert placed.status_code == 202
    cancelled = await api.post(f"{placed.headers['Location']}/cancel", json=example("Reason"))
    assert cancelled.status_code == 202
    order = order_document(status=OrderStatus.AWAITING_APPROVAL.value)
    await shop.mongo.orders.insert_one(order)
    assert (await api.post(f"/orders/{order['_id']}/approval", json=example("Approval"))).status_code == 202
    parameters = description["paths"]["/inventory/{sku}"]["get"]["parameters"]
    sku = next(parameter["example"] for parameter in parameters if parameter["name"] == "sku")
    assert (await api.get(f"/inventory/{sku}")).status_code == 200
    assert (await api.put(f"/inventory/{sku}", json=example("NewProduct"))).status_code == 200
    assert (await api.post(f"/inventory/{sku}/restock", json=example("Restock"))).status_code == 200
    Address.model_validate(example("Address"))
