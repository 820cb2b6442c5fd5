"""The API's own metrics, at /metrics."""

from __future__ import annotations

from collections import Counter

import httpx
from prometheus_client.parser import text_string_to_metric_families


async def requests(api: httpx.AsyncClient) -> Counter[tuple[str, str, str]]:
    """The number of requests by method, route and status."""
    page = (await api.get("/metrics")).raise_for_status().text
    return Counter(
        {
            (sample.labels["method"], sample.labels["route"], sample.labels["status"]): int(sample.value)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "http_request_seconds_count"
        }
    )


async def test_requests_are_counted_by_route_and_status_and_never_by_url(api: httpx.AsyncClient) -> None:
    before = await requests(api)
    for number in range(3):
        await api.get(f"/orders/ord_{number}?a={number}")
        await api.get(f"/nowhere/{number}")
        await api.get(f"/static/nothing-{number}.js")
    await api.head("/orders")
    await api.post("/orders/ord_1/cancel", headers={"Origin": "https://elsewhere.test"})
    await api.delete("/orders/ord_1")
    await api.post("/orders", content=b"{}")
    assert await requests(api) - before == {
        ("GET", "/orders/{order_id}", "422"): 3,
        ("GET", "other", "404"): 6,
        ("HEAD", "/orders", "200"): 1,
        ("POST", "other", "403"): 1,
        ("DELETE", "/orders/{order_id}", "405"): 1,
        ("POST", "/orders", "415"): 1,
        ("GET", "/metrics", "200"): 1,
    }
