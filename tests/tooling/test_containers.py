"""Run the services of docker-compose.yml and the Dockerfile as plain processes, in the same sequence.

Programs, arguments, settings, files and health checks come from the two files. Addresses, ports, data folders and
`python` are replaced, because they differ outside of a container.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from app.settings import ApiSettings, Settings
from dev.servers import Server, find_mongod, find_temporal, free_port
from dev.stack import ROOT
from tests.kit.images import DOCKERFILE, IMAGE, words_of
from tests.kit.orders import order_body
from tests.kit.waiting import eventually

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OBSERVABILITY = {"prometheus", "grafana"}  # tests/tooling/test_prometheus.py


def health_check(service: str) -> list[str]:
    """The health check command of a service, or else of its image."""
    test = SERVICES[service].get("healthcheck", {}).get("test")
    if test is None:
        return words_of("HEALTHCHECK")
    assert test[0] == "CMD"
    words: list[str] = test[1:]
    return words


# --- the files


def test_services_wait_for_their_dependencies() -> None:
    assert SERVICES.keys() == {"temporal", "mongodb", "worker", "api", "stock", *OBSERVABILITY}
    healthy = {"condition": "service_healthy"}
    for app in ("worker", "api"):
        assert SERVICES[app]["depends_on"] == {"temporal": healthy, "mongodb": healthy}
        assert SERVICES[app]["build"] == "."
    assert SERVICES["stock"]["depends_on"] == {"api": healthy}
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name == "stock" else "unless-stopped")
        if "build" not in service:
            assert re.search(r":v?\d", service["image"]), "an image without a version"


def test_ports_are_published_on_loopback_with_variables_of_make_dev() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "temporal": ["127.0.0.1:${TEMPORAL_PORT:-7233}:7233", "127.0.0.1:${TEMPORAL_UI_PORT:-8233}:8233"],
        "mongodb": ["127.0.0.1:${MONGODB_PORT:-27017}:27017"],
        "api": ["127.0.0.1:${API_PORT:-8000}:8000"],
        "prometheus": ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }


def test_credentials_of_the_api_reach_the_api_alone() -> None:
    own = {name.upper() for name in ApiSettings.model_fields.keys() - Settings.model_fields.keys()}
    given = {name: own & service.get("environment", {}).keys() for name, service in SERVICES.items()}
    assert given == {name: own if name == "api" else set() for name in SERVICES}
    assert "env_file" not in (ROOT / "docker-compose.yml").read_text()


def test_data_is_kept_in_volumes() -> None:
    kept = {
        volume.split(":")[0]: volume.split(":")[1] for n in ("temporal", "mongodb") for volume in SERVICES[n]["volumes"]
    }
    assert kept.keys() == COMPOSE["volumes"].keys()
    (db_file,) = (word for word in SERVICES["temporal"]["command"] if word.startswith("--db-filename="))
    assert Path(db_file.partition("=")[2]).parent == Path(kept["temporal"])
    assert kept["mongodb"] == "/data/db"  # the default data folder of mongod


def test_image_is_small_and_not_root() -> None:
    (install,) = (line for line in DOCKERFILE if "pip install" in line)
    assert {"--only-binary=:all:", "--require-hashes", "--no-cache-dir"} <= set(install.split())
    assert [line for line in IMAGE if line.startswith("RUN")] == ["RUN python -m compileall -q worker.py app"]
    assert "slim" in IMAGE[0]
    steps = [line.split()[0] for line in IMAGE]
    (user,) = (line for line in IMAGE if line.startswith("USER "))
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", user)  # a number, so that Kubernetes sees that it is not root
    assert steps.index("USER") < steps.index("CMD")
    for source in (line.split()[1] for line in DOCKERFILE if line.startswith("COPY ") and "--from" not in line):
        assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_lock_pins_every_package_by_hash() -> None:
    """The image must use the versions that the tests run with."""
    locks = [(ROOT / name).read_text() for name in ("requirements.lock", "requirements-dev.lock")]
    pinned = [dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)) for lock in locks]
    assert pinned[0].items() <= pinned[1].items()
    for lock in locks:
        requirements = re.findall(r"^\S(?:.*\\\n)*.*", re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE), re.MULTILINE)
        assert requirements
        for requirement in requirements:
            assert re.match(r"[\w.-]+==\S+(?: ; [^\\]+)? \\\n", requirement)
            assert "--hash=sha256:" in requirement
            assert "://" not in requirement


def test_image_has_every_imported_package() -> None:
    code = "import sys; own = {*sys.modules}; import worker, app.api.main; print(*{*sys.modules} - own)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    distributions = packages_distributions()
    modules = {module.partition(".")[0] for module in ran.stdout.split()}
    imported = {name.lower().replace("_", "-") for module in modules for name in distributions.get(module, [])}
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert {"fastapi", "pymongo", "temporalio"} <= imported
    assert imported - {"pygments", "rich"} <= set(locked)  # httpx imports these two for its own command, if it can


# --- the running services


class Containers:
    """Runs the services of docker-compose.yml as local processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, Server] = {}
        self.temporal, self.mongodb, self.api, self.metrics, self.health = (
            f"127.0.0.1:{free_port()}" for _ in range(5)
        )
        self._replacements = {  # local replacements for addresses, paths and programs of a container
            "temporal:7233": self.temporal,
            "127.0.0.1:7233": self.temporal,
            "mongodb:27017": self.mongodb,
            "127.0.0.1:8000": self.api,
            "0.0.0.0:9464": self.metrics,
            "0.0.0.0:8080": self.health,
            "127.0.0.1:8080": self.health,
            "0.0.0.0": "127.0.0.1",  # noqa: S104
            "--bind_ip_all": "--bind_ip=127.0.0.1",
            "/home/temporal/": f"{folder}/",
        }
        for line in IMAGE:  # the files of the image
            match line.split():
                case ["COPY", source, target] if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, folder / "srv" / target)
                case ["COPY", source, target]:
                    (folder / "srv").mkdir(exist_ok=True)
                    shutil.copy(ROOT / source, folder / "srv" / target)

    def _local(self, text: str) -> str:
        for there, here in self._replacements.items():
            text = text.replace(there, here)
        return text

    def _command(self, words: list[str]) -> list[str]:
        programs = {"python": sys.executable, "temporal": find_temporal(), "mongod": find_mongod()}
        return [str(programs[words[0]]), *map(self._local, words[1:])]

    async def start(self, service: str) -> Server:
        command: list[str] = SERVICES[service].get("command") or words_of("CMD")
        match service:
            case "temporal":  # the image's own ENTRYPOINT, then the command
                command = ["temporal", *command, f"--port={self.temporal.split(':')[1]}", "--headless"]
            case "mongodb":
                data = self._folder / "mongodb"
                data.mkdir()
                port = self.mongodb.split(":")[1]
                command = ["mongod", *command, f"--port={port}", f"--dbpath={data}", "--nounixsocket"]
            case "api":
                command = [self.api.split(":")[1] if word == "8000" else word for word in command]
            case "stock":
                (mounted,) = SERVICES["stock"]["volumes"]
                source, target, _ = mounted.split(":")
                command = [str(ROOT / source) if word == target else word for word in command]
        settings: dict[str, str | None] = SERVICES[service].get("environment", {})
        defaults = {name: re.sub(r"\$\{\w+:-(\w*)\}", r"\1", value) for name, value in settings.items() if value}
        self._running[service] = await Server.start(
            service,
            self._command(command),
            address="",
            log=self._folder / f"{service}.log",
            cwd=self._folder / "srv",
            env={name: self._local(value) for name, value in defaults.items()},
        )
        return self._running[service]

    async def is_healthy(self, service: str) -> bool:
        if service == "mongodb":
            return await self._is_primary()
        process = await asyncio.create_subprocess_exec(
            *self._command(health_check(service)), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        return await process.wait() == 0

    async def _is_primary(self) -> bool:
        """Do what the health check of mongodb does, without mongosh, which is not installed here."""
        script = health_check("mongodb")[-1]
        (founding,) = re.findall(r"rs\.initiate\((.*?)\) }", script)
        host, port = self.mongodb.split(":")
        with socket.socket() as probe:  # the driver leaks a socket if the port is closed
            if probe.connect_ex((host, int(port))) != 0:
                return False
        client: AsyncMongoClient[dict[str, Any]]
        async with AsyncMongoClient(self.mongodb, directConnection=True) as client:
            try:
                await client.admin.command("replSetGetStatus")
            except OperationFailure:
                config = yaml.safe_load(founding.replace("mongodb:27017", self.mongodb))
                await client.admin.command("replSetInitiate", config)
            return bool((await client.admin.command("hello"))["isWritablePrimary"])

    async def wait_until_healthy(self, *services: str) -> None:
        """Start the services in the sequence of `depends_on`, and wait until each is healthy."""
        async with asyncio.timeout(30):
            for service in services:
                while not await self.is_healthy(service):
                    assert not self._running[service].exited, self._running[service].log_text()

    async def kill(self) -> None:
        await asyncio.gather(*(server.kill() for server in self._running.values()))

    async def stop(self, service: str) -> int:
        """Stop a service as `docker compose stop` does. Returns the exit code."""
        grace = SERVICES[service].get("stop_grace_period", "10s")
        server = self._running[service]
        await server.stop(timeout=int(grace.removesuffix("s")))
        return await server.wait()


async def test_order_completes_on_the_configured_services(tmp_path: Path) -> None:
    containers = Containers(tmp_path)
    try:
        for service in ("temporal", "mongodb", "worker", "api"):
            assert not await containers.is_healthy(service)
        await asyncio.gather(containers.start("temporal"), containers.start("mongodb"))
        await containers.wait_until_healthy("temporal", "mongodb")
        await asyncio.gather(containers.start("worker"), containers.start("api"))
        await containers.wait_until_healthy("worker", "api")
        assert await (await containers.start("stock")).wait() == 0

        async with httpx.AsyncClient(base_url=f"http://{containers.api}", timeout=10) as http:
            body = order_body(lines=[{"sku": "MUG-BLUE", "quantity": 1}])
            order_id = (await http.post("/orders", json=body)).raise_for_status().json()["order_id"]

            async def status() -> str:
                return str((await http.get(f"/orders/{order_id}")).raise_for_status().json()["status"])

            await eventually(status, lambda status: status == "completed")

        assert await containers.stop("worker") == 0
        assert await containers.stop("api") == -signal.SIGTERM  # a clean exit: uvicorn re-raises the signal
    finally:
        await containers.kill()
