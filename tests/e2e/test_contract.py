"""The API's answers match its OpenAPI description: hundreds of generated requests, single and in sequence."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import httpx

from app.settings import ApiSettings
from dev.servers import Server
from dev.stack import ROOT
from tests.kit.http import bearer, closed, key_of, serve
from tests.kit.shop import Shop

CONFIG = Path(__file__).parent / "schemathesis.toml"
CASES = 600
KEY = key_of("shop")
TABLES = ROOT / ".hypothesis"  # of all characters: to compute them takes longer than to send the requests


async def test_generated_requests_are_answered_as_described(
    settings: ApiSettings, temporal_server: Server, shop: Shop, worker: None, tmp_path: Path, exhaustive: bool
) -> None:
    await shop.mongo.create_indexes()
    await shop.stock("0", available=1_000_000)  # a SKU that the generator often produces
    async with serve(closed(settings, "shop"), temporal_server.address) as api:
        description = tmp_path / "openapi.json"
        description.write_text((await api.get("/openapi.json", headers=bearer(KEY))).text)
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("schemathesis"),
            *("--config-file", CONFIG, "run", description, "--no-color"),
            *(("--max-examples", "100") if exhaustive else ()),
            cwd=tmp_path,
            env={
                **os.environ,
                "API_URL": str(api.base_url),
                "API_KEY": KEY,
                "HYPOTHESIS_STORAGE_DIRECTORY": str(TABLES),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(170):
                output = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, output
        cases = re.search(r"([\d,]+) generated, ([\d,]+) passed", output)
        assert cases, output
        assert int(cases[1].replace(",", "")) >= CASES, output
        assert (await api.get("/orders", headers=bearer(KEY))).json()["items"], "no order was ever placed"


async def test_every_error_is_described_as_a_problem(api: httpx.AsyncClient) -> None:
    description = (await api.get("/openapi.json")).json()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            if path.startswith(("/orders", "/inventory", "/saga")):
                wanted = {"401", "403", "422", "503"}
                wanted |= {"413", "415"} if "requestBody" in operation else set()
                wanted |= {"404"} if "{" in path and method != "put" else set()
                assert errors.keys() >= wanted, (method, path)
                for answer in errors.values():
                    schema = answer["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ProblemDetails"}
    problem = description["components"]["schemas"]["ProblemDetails"]
    assert problem["required"] == ["type", "title", "status", "detail", "request_id"]
