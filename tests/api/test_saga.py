"""GET /saga: the steps table over HTTP. The order desk and the guided tour draw the saga from it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.domain import OrderStatus, StepName
from app.settings import ApiSettings
from dev.servers import Server
from tests.kit.http import bearer, closed, key_of, serve

NAMES = ["step", "activity", "compensation", "status"]
SAGA: list[list[str | None]] = [
    ["reserve_inventory", "ReserveInventory", "ReleaseInventory", "reserved"],
    ["charge_payment", "ChargePayment", "RefundPayment", "charged"],
    ["create_shipment", "CreateShipment", "CancelShipment", "shipped"],
    ["send_confirmation", "SendConfirmation", None, "completed"],
]


async def test_saga_lists_every_step_in_order(api: httpx.AsyncClient) -> None:
    answer = await api.get("/saga")
    assert answer.status_code == 200
    rows = [[step[name] for name in NAMES] for step in answer.json()["steps"]]
    assert [row for row in rows if row in SAGA] == SAGA
    assert len(rows) == len(StepName)


async def test_saga_statuses_match_the_openapi_description(api: httpx.AsyncClient) -> None:
    schemas: dict[str, Any] = (await api.get("/openapi.json")).json()["components"]["schemas"]
    steps = (await api.get("/saga")).json()["steps"]
    assert [step["step"] for step in steps] == schemas["StepName"]["enum"]
    assert {step["status"] for step in steps} <= set(schemas[OrderStatus.__name__]["enum"])
    assert [step["starts_from"] for step in steps] == ["placed", *(step["status"] for step in steps[:-1])]


@pytest.mark.parametrize("headers", [{}, bearer("wrong")], ids=["none", "wrong"])
async def test_saga_without_known_api_key_is_refused(
    settings: ApiSettings, temporal_server: Server, headers: dict[str, str]
) -> None:
    async with serve(closed(settings, "shop"), temporal_server.address) as api:
        refused = await api.get("/saga", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert (await api.get("/saga", headers=bearer(key_of("shop")))).status_code == 200
