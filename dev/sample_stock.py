"""Five products to begin with, for an API that has none: `python dev/sample_stock.py http://127.0.0.1:8000`.

Standard library only, so that it runs in the container image, too.
"""

import json
import os
import sys
import urllib.request
from typing import Any

SAMPLE_STOCK = {
    "MUG-BLUE": ("Blue mug", 12_99, 10_000),
    "TEE-WHITE-M": ("White T-shirt, M", 24_50, 5_000),
    "NOTEBOOK-A5": ("Notebook A5", 8_99, 10_000),
    "LAMP-OAK": ("Oak desk lamp", 79_90, 500),
    "BIKE-CITY": ("City bike", 649_00, 100),  # dear enough to wait for approval
}


def authorization() -> dict[str, str]:
    """The header for the API that this environment describes: empty unless API_KEYS is set."""
    keys: dict[str, str] = json.loads(os.environ.get("API_KEYS") or "{}")
    return {"Authorization": f"Bearer {next(iter(keys.values()))}"} if keys else {}


def load_sample_stock(api_url: str) -> None:
    """Put the sample products into the inventory, if it is empty."""
    if call(f"{api_url}/inventory")["items"]:
        return
    for sku, (name, price, available) in SAMPLE_STOCK.items():
        product = {"name": name, "unit_price": {"amount": price, "currency": "EUR"}, "available": available}
        call(f"{api_url}/inventory/{sku}", product)


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or PUT with a body."""
    request = urllib.request.Request(  # noqa: S310 - an http address of our own
        url,
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json", **authorization()},
        method="PUT" if body else "GET",
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return json.load(response)


if __name__ == "__main__":
    load_sample_stock(sys.argv[1])
