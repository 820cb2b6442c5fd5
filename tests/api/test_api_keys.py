"""API keys: each names its caller, with scopes and perhaps a customer."""

from __future__ import annotations

from app.settings import ApiKey, ApiSettings, Scope
from dev.servers import Server
from tests.kit.http import bearer, serve
from tests.kit.shop import Shop

SHOP, ANN = "8c1e0b7d4a635f2a9d0b37c1", "0d5b9f1c7e2a4860b3d7e9f1"


async def test_key_opens_the_api_with_its_scopes_and_customer(
    settings: ApiSettings, temporal_server: Server, shop: Shop
) -> None:
    await shop.place(_id="of_ann", customer_id="cus_ann")
    await shop.place(_id="of_bob", customer_id="cus_bob")
    keys = {
        "shop": ApiKey(key=SHOP, scopes=frozenset(Scope)),
        "ann": ApiKey(key=ANN, scopes=frozenset({Scope.ORDERS_READ}), customer="cus_ann"),
    }
    locked = ApiSettings.model_validate({**settings.model_dump(), "api_open": False, "api_keys": keys})
    async with serve(locked, temporal_server.address) as api:

        async def listed(key: str) -> set[str]:
            orders = (await api.get("/orders", headers=bearer(key))).json()["items"]
            return {order["order_id"] for order in orders}

        assert await listed(SHOP) == {"of_ann", "of_bob"}
        assert await listed(ANN) == {"of_ann"}
        assert (await api.get("/inventory", headers=bearer(ANN))).status_code == 403
        for unknown in (SHOP[:-1], SHOP + "0", SHOP.upper(), "\xe4"):
            headers = {b"Authorization": f"Bearer {unknown}".encode("latin-1")}
            answer = await api.get("/orders", headers=headers)
            assert answer.status_code == 401, unknown
