"""MongoDB with access control and TLS: API and worker have certificates, and no right that they do not need."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

import worker
from app import temporal
from app.gateways.sandbox import sandbox
from app.mongo import Document, Mongo
from app.names import NAME
from app.settings import ApiSettings
from dev.servers import HOST, Server, free_port, start_mongod
from dev.stack import ROOT
from tests.kit.certificates import Authority
from tests.kit.http import bearer, closed, key_of, long_deadlines, serve
from tests.kit.orders import ADDRESS, CHARGING, order_body, order_document
from tests.kit.waiting import eventually

SHOP, BOSS = bearer(key_of("shop")), bearer(key_of("boss"))
UNAUTHORIZED = 13
PRIVILEGES = {role["createRole"]: role for role in json.loads((ROOT / "deploy/mongodb-roles.json").read_text())}


class Secured:
    """A replica set with access control and TLS. `uri_of` is the connection string of an account."""

    def __init__(self, authority: Authority, port: int) -> None:
        self._authority = authority
        self.authority = authority.certificate
        self.plain = f"mongodb://{HOST}:{port}/?replicaSet=rs0"
        self.tls = f"{self.plain}&tls=true&tlsCAFile={authority.certificate}"

    def uri_of(self, account: str, authority: Authority | None = None) -> str:
        certificate = (authority or self._authority).issue(account).both
        return f"{self.tls}&tlsCertificateKeyFile={certificate}&authMechanism=MONGODB-X509"


@pytest.fixture(scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    key_file = folder / "keyfile"
    key_file.write_text(secrets.token_hex(32))
    key_file.chmod(0o600)
    port = free_port()
    options: list[str | Path] = [
        "--keyFile", key_file, "--tlsMode", "preferTLS",
        "--tlsCertificateKeyFile", authority.issue("mongod").both, "--tlsCAFile", authority.certificate,
    ]  # fmt: skip
    server = await start_mongod(folder / "data", port, options=options)
    try:
        secured = Secured(authority, port)
        client: AsyncMongoClient[Document]
        async with AsyncMongoClient(secured.uri_of("root").replace("&authMechanism=MONGODB-X509", "")) as client:
            await client["$external"].command("createUser", "CN=root", roles=[{"role": "root", "db": "admin"}])
        async with AsyncMongoClient(secured.uri_of("root")) as client:
            for name, role in PRIVILEGES.items():
                await client[NAME].command(role)
                user = f"CN={name}"
                await client["$external"].command("createUser", user, roles=[{"role": name, "db": NAME}])
            await client.admin.command("setParameter", 1, tlsMode="requireTLS")
        yield secured
    finally:
        await server.stop()


async def test_roles_suffice_for_every_endpoint_and_every_order(
    secured: Secured, temporal_server: Server, settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = {"mongodb_uri": secured.uri_of("api"), "mongodb_database": NAME}
    for_api = closed(settings, "shop", "boss").model_copy(update=database)
    for_worker = for_api.model_copy(update={"mongodb_uri": secured.uri_of("worker"), "sandbox_gateways": True})
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_server.address)
    mongo, another_program = Mongo(for_worker.mongodb_uri, NAME), Mongo(secured.uri_of("root"), NAME)
    monkeypatch.setattr(worker, "Mongo", lambda uri, database: mongo)
    working = asyncio.create_task(worker.serve(for_worker, sandbox))
    try:
        async with serve(for_api, temporal_server.address) as http:
            http.headers.update(SHOP)
            await use_every_endpoint(http)
            document = order_document()
            await another_program.orders.insert_one(document)
            await wait_for_status(http, document["_id"], "completed")  # started by the relay
            await run_reconciliation(temporal_server, for_worker.task_queue)
    finally:
        working.cancel()
        await asyncio.wait([working])
        mongo.close()
        another_program.close()
    assert working.cancelled()


async def run_reconciliation(temporal_server: Server, task_queue: str) -> None:
    """Trigger the schedule that the worker has created, and wait until its run has succeeded."""
    client = await temporal.connect(target_host=temporal_server.address)
    await client.get_schedule_handle(f"{task_queue}-reconciliation").trigger()
    succeeded = (
        f"TaskQueue = '{task_queue}' AND WorkflowType = 'ReconciliationWorkflow' AND ExecutionStatus = 'Completed'"
    )

    async def runs() -> int:
        return (await client.count_workflows(succeeded)).count

    await eventually(runs)


async def test_worker_that_may_not_create_indexes_names_the_right(
    secured: Secured, temporal_server: Server, settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_right = settings.model_copy(update={"sandbox_gateways": True, "mongodb_database": NAME})
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_server.address)
    mongo = Mongo(secured.uri_of("api"), NAME)
    monkeypatch.setattr(worker, "Mongo", lambda uri, database: mongo)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(SystemExit) as error:
                await worker.serve(without_right, sandbox)
    finally:
        mongo.close()
    assert str(error.value) == (
        f"MongoDB refuses createIndex on the collection {NAME}.orders. "
        "Grant the role worker of deploy/mongodb-roles.json"
    )


async def use_every_endpoint(http: httpx.AsyncClient) -> None:
    """Let orders complete, fail, be cancelled and approved, with at least one call of each endpoint."""
    called = set()

    async def call(method: str, path: str, body: Any = None, headers: Any = None, **values: str) -> Any:
        called.add((method.lower(), path))
        answer = await http.request(method, path.format(**values), json=body, headers=headers)
        assert answer.is_success, (method, path, answer.text)
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.text

    async def place(**changes: Any) -> str:
        key = {"Idempotency-Key": secrets.token_hex()}
        placed, again = [await call("POST", "/orders", order_body(**changes), key) for _ in range(2)]
        assert placed["order_id"] == again["order_id"]
        return str(placed["order_id"])

    product = {"name": "Mug", "unit_price": {"amount": 1_000, "currency": "EUR"}, "available": 100}
    await call("PUT", "/inventory/{sku}", product, sku="MUG")
    await call("PUT", "/inventory/{sku}", product, sku="MUG")
    key = {"Idempotency-Key": "delivery"}
    for _ in range(2):
        restocked = await call("POST", "/inventory/{sku}/restock", {"quantity": 10}, key, sku="MUG")
    assert restocked["available"] == 110
    await call("GET", "/inventory/{sku}", sku="MUG")

    completed = await place()
    failed = await place(shipping_address={**ADDRESS, "postal_code": "00000"})
    cancelled = await place(payment_method="pm_card_outage")
    large = await place(lines=[{"sku": "MUG", "quantity": 60}])
    await wait_for_status(http, cancelled, CHARGING)
    await call("PUT", "/orders/{order_id}/shipping-address", ADDRESS, order_id=cancelled)
    await call("POST", "/orders/{order_id}/cancel", {"reason": "found it cheaper"}, order_id=cancelled)
    await wait_for_status(http, large, "awaiting_approval")
    await call("POST", "/orders/{order_id}/approval", {"approved": True}, BOSS, order_id=large)
    for order_id, status in {
        completed: "completed",
        failed: "failed",
        cancelled: "cancelled",
        large: "completed",
    }.items():
        await wait_for_status(http, order_id, status)

    await call("GET", "/orders/{order_id}", order_id=completed)
    await call("GET", "/orders/{order_id}/status", order_id=completed)
    assert '"completed"' in await call("GET", "/orders/{order_id}/events", order_id=completed)
    called.add(("get", "/orders/events"))
    async with asyncio.timeout(20), http.stream("GET", "/orders/events") as stream:  # does not end
        lines = stream.aiter_lines()
        await anext(line async for line in lines if large in line)
        await call("PUT", "/inventory/{sku}", {**product, "available": 4711}, sku="MUG")
        await anext(line async for line in lines if "4711" in line)
    for path in ("/orders", "/orders/counts", "/inventory", "/saga", "/healthz", "/readyz", "/metrics"):
        await call("GET", path)
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert called == {(method, path) for path, methods in paths.items() for method in methods}


async def wait_for_status(http: httpx.AsyncClient, order_id: str, status: str) -> None:
    async def now() -> str:
        return str((await http.get(f"/orders/{order_id}")).json().get("status"))

    await eventually(now, lambda seen: seen == status)


# By account: what a stolen certificate or an injected query must not do.
REFUSED: dict[str, list[Document]] = {
    "api": [
        {"drop": "orders"},
        {"delete": "orders", "deletes": [{"q": {}, "limit": 0}]},
        {"createIndexes": "orders", "indexes": [{"key": {"email": 1}, "name": "email"}]},
        {"insert": "relay", "documents": [{}]},
        {"insert": "sandbox", "documents": [{}]},
        {"update": "sandbox", "updates": [{"q": {}, "u": {"$set": {"captured": 0}}}]},
        {"aggregate": "orders", "pipeline": [{"$out": "orders"}], "cursor": {}},
        {"createUser": "guest", "pwd": "guest", "roles": []},
        {"dropDatabase": 1},
    ],
    "worker": [
        {"drop": "orders"},
        {"delete": "orders", "deletes": [{"q": {}, "limit": 0}]},
        {"insert": "orders", "documents": [{}]},
        {"insert": "inventory", "documents": [{}]},
        {"find": "restocks"},
        {"insert": "restocks", "documents": [{}]},
        {"createUser": "guest", "pwd": "guest", "roles": []},
        {"dropDatabase": 1},
    ],
}


@pytest.mark.parametrize("account", REFUSED)
async def test_commands_beyond_a_role_are_refused(secured: Secured, account: str) -> None:
    client: AsyncMongoClient[Document]
    async with AsyncMongoClient(secured.uri_of(account)) as client:
        elsewhere = [
            ("another", {"find": "orders"}),
            ("admin", {"find": "system.users"}),
            ("local", {"find": "oplog.rs"}),
        ]
        for database, command in [(NAME, command) for command in REFUSED[account]] + elsewhere:
            with pytest.raises(OperationFailure) as error:
                await client[database].command(command)
            assert error.value.code == UNAUTHORIZED, command
        await client[NAME].command({"find": "orders"})  # so the account works


async def test_connections_without_the_right_certificate_are_refused(
    secured: Secured, settings: ApiSettings, temporal_server: Server, tmp_path: Path
) -> None:
    strangers = Authority(tmp_path, "strangers")
    reasons = {
        secured.plain: "no answer in time",  # mongod closes the connection
        secured.tls: "no answer in time",
        secured.uri_of("api", strangers): "no answer in time",
        secured.uri_of("api").replace(str(secured.authority), str(strangers.certificate)): "untrusted certificate",
        secured.uri_of("unknown"): "credentials rejected",
    }

    async def seen(uri: str) -> str:
        with_uri = settings.model_copy(update={"mongodb_uri": uri})
        async with serve(with_uri, temporal_server.address, patient=False) as api:
            return str((await api.get("/readyz")).json()["checks"]["mongodb"])

    async def check(uri: str, reason: str) -> None:
        """On a busy machine, "no answer in time" may come first."""
        await eventually(lambda: seen(uri), lambda answer: answer == f"unavailable: {reason}")

    with long_deadlines():
        await asyncio.gather(*(check(uri, reason) for uri, reason in reasons.items()))
