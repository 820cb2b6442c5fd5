"""deploy/docker-compose.yml: checked by Compose itself, and run as plain processes, as far as its programs are here.

Temporal's own server on PostgreSQL is not: the dev server stands for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

import worker
from app.mongo import Document
from app.names import NAME
from app.settings import ApiSettings, Scope, Settings
from dev.servers import HOST, Server, find_mongod, find_temporal, free_port
from dev.stack import ROOT
from tests.kit.http import bearer, key_of
from tests.kit.images import words_of
from tests.kit.orders import order_body
from tests.kit.waiting import eventually

FILE = ROOT / "deploy" / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MEMBERS = ("mongodb-1", "mongodb-2", "mongodb-3")
ONE_SHOTS = {"mongodb-setup", "temporal-schema", "temporal-setup"}
# By name, as docs/deployment.md tells to put them into deploy/.env.
SECRETS = {name: secrets.token_hex(24) for name in re.findall(r"\$\{(\w+):\?\}", FILE.read_text())}


# --- the file


def compose() -> list[str]:
    """The command of Docker Compose, or of the older docker-compose. Without either, skip the test, or fail in CI."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:  # noqa: PLW1510
            return command
    assert not os.environ.get("CI"), "no Docker Compose"
    pytest.skip("no Docker Compose; `make test-tools` installs it")


@pytest.mark.parametrize("file", [ROOT / "docker-compose.yml", FILE], ids=["development", "production"])
def test_compose_accepts_the_file_and_asks_for_its_secrets(file: Path) -> None:
    command = [*compose(), "-f", str(file), "config", "--quiet"]

    def checked(**environment: str) -> subprocess.CompletedProcess[str]:
        clean = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "COMPOSE_PROFILES": "observability",
            **environment,
        }
        return subprocess.run(command, capture_output=True, text=True, env=clean)  # noqa: PLW1510

    accepted = checked(**SECRETS)
    assert (accepted.returncode, accepted.stdout) == (0, "")
    assert "warn" not in accepted.stderr.lower()
    if file == FILE:
        refused = checked()
        assert refused.returncode != 0
        assert re.search(r"\b(MONGODB|POSTGRES)_\w+", refused.stderr)


def test_documented_secrets_are_those_that_the_file_needs() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    (loop,) = re.findall(r"for name in (.*?); do", page, re.DOTALL)
    assert set(loop.split()) == SECRETS.keys()
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_ports_are_published_on_loopback_and_images_have_versions() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)
    for name, service in SERVICES.items():
        assert service["image"] == NAME if "build" in service else re.search(r":\d", service["image"]), name
        assert service.get("restart") == (None if name in ONE_SHOTS else "unless-stopped")


def test_each_process_gets_its_own_credentials_and_the_variables_that_it_reads() -> None:
    api, worker_ = (SERVICES[name]["environment"] for name in ("api", "worker"))
    of_sdk = {"TEMPORAL_ADDRESS", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert api.keys() - of_sdk <= {name.upper() for name in ApiSettings.model_fields}
    assert worker_.keys() - of_sdk <= {name.upper() for name in Settings.model_fields}
    fixed = {"MONGODB_DATABASE", "TASK_QUEUE", "API_OPEN"}
    versions = {"TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID"}  # of workers that run side by side
    assert {name.upper() for name in ApiSettings.model_fields} - versions - (api.keys() | worker_.keys()) == fixed
    assert "${MONGODB_API_PASSWORD:?}" in api["MONGODB_URI"]
    assert "${MONGODB_WORKER_PASSWORD:?}" in worker_["MONGODB_URI"]
    for name in ("api", "worker"):
        service = SERVICES[name]
        assert len(re.findall(r"\$\{\w+:\?\}", str(service["environment"]))) == 1
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_services_start_in_order_and_stop_in_time() -> None:
    done = {"condition": "service_completed_successfully"}
    for name in ("api", "worker"):
        assert SERVICES[name]["depends_on"] == {"mongodb-setup": done, "temporal-setup": done}
    assert SERVICES["temporal"]["depends_on"] == {"temporal-schema": done}
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > worker.STOP_LIMIT
    volumes = [volume for name in (*MEMBERS, "postgresql") for volume in SERVICES[name]["volumes"]]
    assert {volume.split(":")[0] for volume in volumes} == COMPOSE["volumes"].keys()


# --- the running services


class Production:
    """Runs services of the file as local processes. Addresses, ports and folders are replaced, and no more."""

    def __init__(self, folder: Path, temporal: str) -> None:
        self._folder = folder
        self._running: dict[str, Server] = {}
        self._ports = {name: free_port() for name in MEMBERS}
        self.api = f"127.0.0.1:{free_port()}"
        addresses = {name: f"{HOST}:{port}" for name, port in self._ports.items()}
        self.members = ",".join(addresses.values())
        self._replacements = {  # the longest first
            "mongodb-1,mongodb-2,mongodb-3": self.members,
            **{f"{name}:27017": address for name, address in addresses.items()},
            "temporal:7233": temporal,
            "0.0.0.0:8080": f"{HOST}:{free_port()}",
            "0.0.0.0:9464": f"{HOST}:{free_port()}",
            "0.0.0.0": HOST,  # noqa: S104
            "/setup/": f"{ROOT}/deploy/",
            "--bind_ip_all": f"--bind_ip={HOST} --nounixsocket",
            "--owner=mongodb --group=mongodb ": "",  # only root may
            "docker-entrypoint.sh mongod": shlex.quote(str(find_mongod())),
            "namespace default": f"namespace {NAMESPACE}",
            "$$": "$",
        }

    def _local(self, text: str) -> str:
        for there, here in self._replacements.items():
            text = text.replace(there, here)
        return re.sub(r"\$\{(\w+):\?\}", lambda secret: SECRETS[secret[1]], text)

    async def start(self, service: str, **changed: str) -> Server:
        """Start a service, with some of its environment changed."""
        words = [*SERVICES[service].get("entrypoint", []), *SERVICES[service].get("command", words_of("CMD"))]
        if service in MEMBERS:
            data = self._folder / service
            data.mkdir(exist_ok=True)
            words[-1] = words[-1].rstrip() + f" --port={self._ports[service]} --dbpath={data}\n"
            words[-1] = words[-1].replace("/tmp/mongodb.key", str(self._folder / f"{service}.key"))  # noqa: S108
        if service == "api":
            words = [self.api.split(":")[1] if word == "8000" else word for word in words]
        program = {"python": sys.executable}.get(words[0]) or shutil.which(words[0]) or words[0]
        environment = {k: self._local(str(v)) for k, v in SERVICES[service]["environment"].items() if v is not None}
        path = f"{find_temporal().parent}:{os.environ['PATH']}"
        server = await Server.start(
            service,
            [program, *map(self._local, words[1:])],
            address="",
            log=self._folder / f"{service}.log",
            cwd=ROOT,
            env={"PATH": path, **environment, **changed},
        )
        self._running[service] = server
        return server

    async def run(self, service: str, **changed: str) -> str:
        """Run a service that exits by itself. Returns its output; fails if it fails."""
        server = await self.start(service, **changed)
        async with asyncio.timeout(60):
            assert await server.wait() == 0, server.log_text()
        return server.log_text()

    def client(self, name: str, source: str = NAME) -> AsyncMongoClient[Document]:
        password = SECRETS[f"MONGODB_{name.upper()}_PASSWORD"]
        return AsyncMongoClient(f"mongodb://{name}:{password}@{self.members}/?replicaSet=rs0&authSource={source}")

    async def kill_primary(self) -> None:
        async with self.client("root", source="admin") as root:
            primary = (await root.admin.command("hello"))["primary"]
        (name,) = (name for name, port in self._ports.items() if primary == f"{HOST}:{port}")
        await self._running[name].kill()

    async def kill(self) -> None:
        await asyncio.gather(*(server.kill() for server in self._running.values()))


NAMESPACE = "production"
API_KEYS = json.dumps({"shop": {"key": key_of("shop"), "scopes": [*Scope]}})


@pytest.fixture(scope="module")
async def production(temporal_server: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Production]:
    """Three members, set up by the file's own services, and a namespace in Temporal."""
    production = Production(tmp_path_factory.mktemp("production"), temporal_server.address)
    try:
        await asyncio.gather(*(production.start(member) for member in MEMBERS))
        await asyncio.gather(production.run("mongodb-setup"), production.run("temporal-setup"))
        yield production
    finally:
        await production.kill()


async def test_setup_elects_a_primary_of_three_and_can_run_again(production: Production) -> None:
    async with production.client("root", source="admin") as root:
        before = await root.admin.command("replSetGetConfig")
        status = await root.admin.command("replSetGetStatus")
        assert sorted(member["stateStr"] for member in status["members"]) == ["PRIMARY", "SECONDARY", "SECONDARY"]
        assert (status["votingMembersCount"], status["majorityVoteCount"]) == (3, 2)
        parameter = await root.admin.command("getParameter", transactionLifetimeLimitSeconds=1)
        assert parameter["transactionLifetimeLimitSeconds"] == 15

        # An update removes a right from a role, and an account has the password that the environment says.
        await root[NAME].command("grantRolesToUser", "api", roles=[{"role": "readWriteAnyDatabase", "db": "admin"}])
        await root[NAME].command("updateUser", "worker", pwd="forgotten")
        await asyncio.gather(production.run("mongodb-setup"), production.run("temporal-setup"))
        assert (await root.admin.command("replSetGetConfig"))["config"]["members"] == before["config"]["members"]
        (api,) = (await root[NAME].command("usersInfo", "api"))["users"]
        assert api["roles"] == [{"role": "api", "db": NAME}]
    async with production.client("worker") as client:
        await client[NAME].command({"find": "orders"})


async def test_accounts_may_do_what_their_role_permits_and_strangers_nothing(production: Production) -> None:
    for account, refused in (("api", {"insert": "relay", "documents": [{}]}), ("worker", {"find": "restocks"})):
        async with production.client(account) as client:
            await client[NAME].command({"find": "orders"})
            with pytest.raises(OperationFailure, match="not authorized"):
                await client[NAME].command(refused)
    stranger: AsyncMongoClient[Document]
    async with AsyncMongoClient(f"mongodb://{production.members}/?replicaSet=rs0") as stranger:
        with pytest.raises(OperationFailure, match="requires authentication"):
            await stranger[NAME].command({"find": "orders"})


async def test_order_completes_on_the_three_members_while_one_is_down(production: Production) -> None:
    environment = {"TEMPORAL_NAMESPACE": NAMESPACE, "SANDBOX_GATEWAYS": "true"}
    worker_process = await production.start("worker", **environment)
    api_process = await production.start("api", API_KEYS=API_KEYS, **environment)
    async with httpx.AsyncClient(
        base_url=f"http://{production.api}", timeout=10, headers=bearer(key_of("shop"))
    ) as http:

        async def ready() -> bool:
            assert not api_process.exited, api_process.log_text()
            try:
                return (await http.get("/readyz")).is_success and "worker ready" in worker_process.log_text()
            except httpx.TransportError:
                return False

        await eventually(ready)
        product = {"name": "Mug", "unit_price": {"amount": 1_000, "currency": "EUR"}, "available": 10}
        (await http.put("/inventory/MUG", json=product)).raise_for_status()
        await production.kill_primary()

        async def place() -> httpx.Response:
            return await http.post("/orders", json=order_body(), headers={"Idempotency-Key": "one"})

        placed = await eventually(place, lambda answer: answer.status_code == 202)

        async def status() -> str:
            assert not worker_process.exited, worker_process.log_text()
            return str((await http.get(f"/orders/{placed.json()['order_id']}")).json().get("status"))

        await eventually(status, lambda status: status == "completed")
