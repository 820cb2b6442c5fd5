"""Add five sample products to an empty inventory: `python dev/sample_stock.py http://127.0.0.1:8000`.

Uses only the standard library, because docker-compose.yml runs this file alone in the container image.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

SAMPLE_STOCK = {
    "MUG-BLUE": ("Blue mug", 12_99, 10_000),
    "TEE-WHITE-M": ("White T-shirt, M", 24_50, 5_000),
    "NOTEBOOK-A5": ("Notebook A5", 8_99, 10_000),
    "LAMP-OAK": ("Oak desk lamp", 79_90, 500),
    "BIKE-CITY": ("City bike", 649_00, 100),  # expensive enough to need approval
}


def authorization(token: str = "") -> dict[str, str]:
    """The Authorization header with this token, or with that or the API key in API_TOKEN, or else no header."""
    token = token or os.environ.get("API_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def load_sample_stock(api_url: str, token: str = "") -> None:
    """Add the sample products if the inventory is empty. Says so if that is not permitted."""
    try:
        _load(api_url, token)
    except urllib.error.HTTPError as error:
        if error.code not in {401, 403}:
            raise
        print(
            "no sample products: API_TOKEN must be a key or a token with inventory:read and inventory:write", flush=True
        )


def _load(api_url: str, token: str) -> None:
    if call(f"{api_url}/inventory", token)["items"]:
        return
    for sku, (name, price, available) in SAMPLE_STOCK.items():
        product = {"name": name, "unit_price": {"amount": price, "currency": "EUR"}, "available": available}
        call(f"{api_url}/inventory/{sku}", token, product)


def call(url: str, token: str, body: dict[str, Any] | None = None) -> Any:
    """Send a GET, or a PUT if there is a body. Returns the JSON of the response."""
    request = urllib.request.Request(  # noqa: S310 - always an http address
        url,
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json", **authorization(token)},
        method="PUT" if body else "GET",
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return json.load(response)


if __name__ == "__main__":
    load_sample_stock(sys.argv[1])
