"""Run `make dev` on its own ports and data: its output, processes, data and error messages."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import async_playwright, expect
from starlette.exceptions import HTTPException

from dev.servers import Server, ServerError, free_port, start_mongod
from dev.stack import ROOT, Config, Stack
from tests.browser.conftest import CHROMIUM, FLAGS, SKIPPED, a_desk
from tests.browser.test_page_quality import AXE, check_page
from tests.kit.http import NO_TLS
from tests.kit.orders import CHARGING, order_body
from tests.kit.waiting import eventually
from tests.tooling.dev_process import PORTS, Dev, place, wait_for_status

README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def kill_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    for folder in (tmp_path, tmp_path / "dev"):
        Dev(folder).kill()


@pytest.fixture(scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A running stack."""
    dev = Dev(tmp_path_factory.mktemp("dev"))
    await dev.start()
    try:
        await dev.wait_until_ready()
        yield dev
        for server in ("worker", "temporal", "mongod"):
            await dev.act(server, "freeze")  # is refused if a test that failed has left the server stopped
        assert await dev.stop(signal.SIGTERM) == 0
        assert dev.processes() == {}
        assert ended_cleanly(dev)  # although it was frozen
    finally:
        dev.kill()


def ended_cleanly(dev: Dev) -> bool:
    """True if mongod was stopped, not killed."""
    return '"exitCode":0' in (dev.dev_dir / "logs" / "mongod.log").read_text().splitlines()[-1]


@pytest.fixture(scope="module")
async def second(dev: Dev, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A closed stack that uses the Temporal of the first one, and a mongod of its own."""
    second = Dev(tmp_path_factory.mktemp("second"), TEMPORAL_ADDRESS=dev.temporal, TASK_QUEUE="second")
    second.environment |= {"API_OPEN": "false", "ISSUER_PORT": str(free_port())}
    await second.start()
    try:
        await second.wait_until_ready()
        yield second
    finally:
        if second.processes():
            await second.stop(signal.SIGINT)


async def skus(http: httpx.AsyncClient) -> list[str]:
    return [product["sku"] for product in (await http.get("/inventory")).json()["items"]]


@pytest.fixture
async def http(dev: Dev) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=dev.api_url, timeout=10, verify=NO_TLS) as http:
        yield http


# --- start, stop, restart


async def test_start_prints_one_table_of_addresses_that_answer(dev: Dev, http: httpx.AsyncClient) -> None:
    table = dict(re.findall(r"^  (\S+(?: \S+)*)  +(\S+)$", dev.printed, re.MULTILINE))
    assert list(table) == ["Order desk", "API docs", "Temporal UI", "Temporal", "MongoDB", "Logs"]
    for name in ("Order desk", "API docs", "Temporal UI"):
        page = await http.get(table[name], follow_redirects=True)
        assert (page.status_code, "<html" in page.text.lower()) == (200, True)
    for address in (table["Temporal"], table["MongoDB"].removeprefix("mongodb://").split("/")[0]):
        host, port = address.split(":")
        socket.create_connection((host, int(port))).close()
    assert {log.name for log in Path(table["Logs"]).iterdir()} == {
        *("api.log", "worker.log", "temporal.log", "mongod.log")
    }
    assert "the API is open" in Path(table["Logs"], "api.log").read_text()
    assert "a sandbox, which charges no card" in Path(table["Logs"], "worker.log").read_text()
    assert len((await http.get("/inventory")).json()["items"]) >= 5


async def test_stop_leaves_no_process_and_restart_keeps_all_data(dev: Dev, http: httpx.AsyncClient) -> None:
    done, waiting = await place(http), await place(http, payment_method="pm_card_outage")
    await wait_for_status(http, done, "completed")
    await wait_for_status(http, waiting, CHARGING)
    assert len(dev.processes()) == 5, dev.processes()  # `make dev` itself and four servers

    assert await dev.stop(signal.SIGINT) == 0
    assert dev.processes() == {}
    logs = {name: (dev.dev_dir / "logs" / f"{name}.log").read_text() for name in ("api", "worker")}
    assert ended_cleanly(dev)
    # The sequence of stopping was right: no process lost a server that it depends on.
    lines = (logs["api"] + logs["worker"]).splitlines()
    expected = re.compile("waiting for|a sandbox, which charges no card|the API is open|Completing activity as failed")
    assert [line for line in lines if re.search("WARN|ERROR", line) and not expected.search(line)] == []

    await dev.start()
    await dev.wait_until_ready()
    assert {step["status"] for step in (await wait_for_status(http, done, "completed"))["steps"]} == {"done"}
    # Temporal kept both workflows: one has completed, the other continues and can be cancelled.
    assert (await http.get(f"/orders/{done}/status")).json()["status"] == "completed"
    assert (await http.post(f"/orders/{waiting}/cancel", json={})).status_code == 202
    await wait_for_status(http, waiting, "cancelled")


async def test_closed_stack_accepts_tokens_of_its_own_issuer(second: Dev) -> None:
    lines = [{"sku": "MUG-BLUE", "quantity": 1}]

    async def token(*words: str) -> dict[str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dev.issuer", *words), cwd=ROOT, env={**os.environ, **second.environment},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return {"Authorization": f"Bearer {(await process.communicate())[0].decode().strip()}"}

    async with httpx.AsyncClient(base_url=second.api_url, timeout=10) as http:
        assert (await http.get("/inventory")).status_code == 401
        assert len((await http.get("/inventory", headers=await token())).json()["items"]) == 5
        http.headers.update(await token("--subject", "c-1", "--scopes", "orders:read", "orders:write"))
        assert (await http.post("/orders", json=order_body(lines=lines))).status_code == 422
        await wait_for_status(http, await place(http, customer_id="c-1"), "completed")
    if sys.platform == "linux":
        holders = [
            command for pid, command in second.processes().items()
            if b"OIDC_AUDIENCE=" in Path(f"/proc/{pid}/environ").read_bytes()
        ]  # fmt: skip
        assert [command for command in holders if "dev.desk" not in command] == []
        assert len(holders) == 1


async def test_dead_server_ends_the_stack_but_no_running_server_that_it_uses(dev: Dev, second: Dev) -> None:
    assert re.search(r"Temporal UI +\(external\)$", second.printed, re.MULTILINE)
    assert not [command for command in second.processes().values() if "temporal server" in command]
    os.kill(second.pid_of("bin/mongod"), signal.SIGKILL)
    code, lines = await second.wait_for_exit()
    message = f"error: mongod was killed by SIGKILL (log: {second.dev_dir}/logs/mongod.log)"
    assert (code, lines[-2:]) == (1, ["stopping ...", message])
    assert second.processes() == {}
    assert len(dev.processes()) == 5


async def test_stop_during_start_leaves_no_process(tmp_path: Path) -> None:
    dev = await Dev(tmp_path).start()

    async def all_are_there() -> bool:
        return len(dev.processes()) == 5

    await eventually(all_are_there)
    assert await dev.stop(signal.SIGINT) == 0
    assert dev.processes() == {}


# --- servers that are stopped on purpose


async def test_orders_wait_for_stopped_and_frozen_servers_and_go_on(dev: Dev, http: httpx.AsyncClient) -> None:
    await dev.act("temporal", "kill")
    first = await place(http)
    await dev.act("mongod", "freeze")
    await dev.act("temporal", "start")
    await dev.act("mongod", "resume")
    await wait_for_status(http, first, "completed", within=60)
    await dev.act("worker", "freeze")
    second = await place(http)
    await dev.act("mongod", "stop")
    assert (await http.get("/readyz")).json()["checks"]["mongodb"].startswith("unavailable: ")
    await dev.act("mongod", "start")
    assert (await http.get(f"/orders/{second}")).json()["status"] == "placed"
    await dev.act("worker", "resume")
    await wait_for_status(http, second, "completed", within=60)
    assert len(dev.processes()) == 5  # `make dev` has neither ended nor started anything itself


async def test_two_kills_at_once_and_a_failed_start_leave_the_server_stopped(tmp_path: Path) -> None:
    """A server that cannot start is not tried again and again, even if others are stopped, too."""
    stack = Stack(Config.on_free_ports(tmp_path))
    control = stack.control

    async def state() -> str:
        return control.state("mongod")

    try:
        await stack.start("mongod")
        control.act("mongod", "kill")
        await eventually(state, lambda state: state == "stopped")
        control.act("mongod", "start")
        control.act("mongod", "kill")
        with pytest.raises(HTTPException, match="cannot kill mongod: it is stopping"):
            control.act("mongod", "kill")
        await eventually(state, lambda state: state == "stopped")

        (tmp_path / "mongodb" / "storage.bson").write_text("no data of mongod's")
        control.act("mongod", "start")
        await eventually(state, lambda state: state == "stopped", within=10)
        (problem,) = (each["problem"] for each in control.describe()["servers"] if each["name"] == "mongod")
        assert re.match(r"mongod exited with code \d+: ", problem)
    finally:
        await stack.stop()


async def test_worker_that_starts_during_an_edit_is_restarted(tmp_path: Path) -> None:
    """Else it would keep the code that it had loaded before the edit."""
    started = []

    class Sleeping(Stack):
        async def start(self, name: str) -> Server:
            log = tmp_path / "worker.log"
            self.processes[name] = await Server.start(name, [shutil.which("sleep") or "", "60"], address="", log=log)
            started.append(self.processes[name].pid)
            return self.processes[name]

    async def starts() -> int:
        return len(started)

    stack = Sleeping(Config.on_free_ports(tmp_path))
    await (await stack.start("worker")).kill()
    stack.stopped_on_purpose["worker"] = asyncio.Event()
    stack.control.act("worker", "start")
    edited = asyncio.create_task(stack._keep_running("worker", restart=True))
    try:
        await eventually(starts, lambda number: number == 3, within=10)
    finally:
        edited.cancel()
        await asyncio.wait([edited])
        await stack.stop()


JSON = "application/json"


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("GET", {"Host": "evil.test:{port}"}, "", 421),  # DNS rebinding
        ("GET", {"Host": "localhost"}, "", 421),
        ("GET", {"Origin": "http://evil.test"}, "", 403),
        ("OPTIONS", {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}, "", 403),
        ("POST", {"Origin": "http://evil.test", "Content-Type": JSON}, '{"action": "kill"}', 403),
        ("POST", {"Origin": "null", "Content-Type": JSON}, '{"action": "kill"}', 403),
        ("POST", {"Origin": "http://localhost:{port}", "Content-Type": JSON}, '{"action": "kill"}', 403),
        ("POST", {"Origin": "{api}", "Content-Type": "text/plain"}, '{"action": "kill"}', 415),
        ("POST", {"Content-Type": JSON}, "[", 422),
        ("POST", {"Content-Type": JSON}, '{"action": 1}', 422),
        ("POST", {"Content-Type": JSON}, '{"action": "start"}', 409),
        ("POST", {"Content-Type": JSON}, '{"action": "burn"}', 409),
        ("DELETE", {}, "", 405),
    ],
)
async def test_control_endpoint_refuses_other_sites_and_bad_requests(
    dev: Dev, method: str, headers: dict[str, str], body: str, status: int
) -> None:
    port = dev.environment["DEV_CONTROL_PORT"]
    filled = {name: value.format(port=port, api=dev.api_url) for name, value in headers.items()}
    path = "/servers" if method == "GET" else "/servers/temporal"
    async with httpx.AsyncClient(base_url=dev.control, verify=NO_TLS) as http:
        answer = await http.request(method, path, headers=filled, content=body)
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (status, "api" in str(headers))
        assert (await http.post("/servers/api", json={"action": "kill"})).status_code == 404
        servers = (await http.get("/servers")).json()["servers"]
    assert [each["state"] for each in servers] == ["running"] * 3


@pytest.mark.skipif(SKIPPED, reason="Chromium is missing; `make test-tools` installs it")
async def test_panel_kills_and_starts_worker_while_order_waits(dev: Dev, http: httpx.AsyncClient) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        async with a_desk(browser, dev.api_url.replace("127.0.0.1", "localhost")) as desk:
            await desk.open()
            panel = desk.page.get_by_role("complementary", name="Break it")
            worker = panel.get_by_role("listitem").filter(has_text="Worker")
            await expect(panel.get_by_role("listitem")).to_contain_text(["running"] * 3)
            await desk.page.evaluate(AXE)
            await check_page(desk)
            await panel.get_by_role("button", name="Kill Worker").press("Enter")
            await expect(worker).to_contain_text("stopped")
            start = panel.get_by_role("button", name="Start Worker")
            await expect(start).to_be_focused()  # for a moment, the worker had no buttons
            order_id = await place(http)
            row = desk.rows.filter(has_text=order_id)
            await expect(row).to_contain_text("Placed")
            await expect(panel.get_by_role("status")).to_contain_text("No order is lost")
            await start.press("Enter")
            await expect(row).to_contain_text("Completed", timeout=30_000)
            await expect(worker).to_contain_text("running")
        await browser.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
async def test_kill_ends_all_its_processes(tmp_path: Path) -> None:
    dev = await Dev(tmp_path).start()
    await dev.wait_for_output("starting")

    async def processes() -> int:
        return len(dev.processes())

    await eventually(processes, lambda number: number == 5)
    assert await dev.stop(signal.SIGKILL) == -signal.SIGKILL
    await eventually(processes, lambda number: number == 0)


# --- errors at the start: one line, with the remedy


async def test_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    dev = Dev(tmp_path / "dev")
    port = int(dev.environment["API_PORT"])
    with socket.create_server(("127.0.0.1", port)):
        await dev.start()
        code, (message,) = await dev.wait_for_exit()
    assert code == 1
    assert message == (f"error: port {port} is in use: stop the program that uses it, or set API_PORT={port + 1}")
    assert not dev.dev_dir.exists()  # nothing was started


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a stack, set in this process."""
    environment = Dev(tmp_path).environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.mark.parametrize("variable", PORTS)
def test_each_taken_port_is_named(variable: str, environment: dict[str, str]) -> None:
    port = int(environment[variable])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ServerError) as refused:
        Config.from_environment()
    assert str(refused.value) == f"port {port} is in use: stop the program that uses it, or set {variable}={port + 1}"


def test_same_port_twice_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_PORT", port := environment["API_PORT"])
    with pytest.raises(ServerError) as refused:
        Config.from_environment()
    assert str(refused.value) == f"API_PORT and MONGODB_PORT are both {port}: change one of them"


BROKEN_MONGOD = """#!/bin/sh
echo "mongod: error while loading shared libraries: libcurl.so.4: cannot open shared object file" >&2
exit 127
"""


async def test_missing_library_of_mongod_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "mongod").write_text(BROKEN_MONGOD)
    (programs / "mongod").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ServerError) as failed:
        await start_mongod(tmp_path / "data", free_port())
    assert str(failed.value) == ("mongod cannot start, libcurl.so.4 is missing: on Debian, apt-get install libcurl4")


async def test_unreadable_data_of_mongod_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("WiredTiger", "storage.bson"):
        (data / name).write_text("no data of mongod's")
    with pytest.raises(ServerError) as failed:
        await start_mongod(data, free_port())
    assert re.match(r"mongod exited with code \d+: Unable to read the storage engine metadata", str(failed.value))
    assert str(failed.value).endswith(f"(log: {tmp_path}/mongod.log)")


async def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "mongodb").write_text("a file where the folder should be")
    dev = await Dev(tmp_path).start()
    message = f"error: cannot use {tmp_path}/mongodb: File exists. Set DEV_DIR to another folder"
    assert await dev.wait_for_exit() == (1, [message])
    assert dev.processes() == {}


async def test_invalid_setting_is_named(dev: Dev, tmp_path: Path) -> None:
    second = Dev(tmp_path, APPROVAL_TIMEOUT="soon", TEMPORAL_ADDRESS=dev.temporal, MONGODB_URI=dev.mongodb)
    await second.start()
    code, (message,) = await second.wait_for_exit()
    assert (code, second.processes()) == (1, {})
    assert re.match(r"error: (worker|api) exited with code 1: wrong setting: APPROVAL_TIMEOUT: ", message)


async def test_guided_tour_ends_every_order_as_expected(dev: Dev, http: httpx.AsyncClient) -> None:
    before = await skus(http)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dev.demo"),
        cwd=ROOT,
        env={**os.environ, **dev.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    assert printed.startswith(f"using the running stack at {dev.api_url}\n")
    assert printed.endswith("9 of 9 scenes ended as expected\n")
    assert re.search(
        r"the worker is killed .*\n.*the worker is started again(.*\n)+.*Charge payment +done .*, 3 attempts", printed
    )
    rush = re.search(r"the 5 completed when (\d+) of 150 had", printed)
    assert rush, printed
    assert int(rush[1]) < 120, "they waited for most of the others"
    assert await skus(http) == before  # no product is left behind


# --- names in docs and CI


def test_readme_layout_names_existing_files() -> None:
    """Each row names a folder or file, and may name files in that folder."""
    rows = dict(re.findall(r"^\| `([\w/.]+)` \| (.*) \|$", README, re.MULTILINE))
    assert {name.rstrip("/") for name in rows} >= {"worker.py", "app/workflows", "app/api", "dev", "tests"}
    for name, what in rows.items():
        assert (ROOT / name).exists()
        for part in re.findall(r"`(\w+(?:\.py|/))`", what):
            assert (ROOT / name / part).exists(), f"{name}{part}"


def test_ci_script_runs_only_make() -> None:
    shebang, *lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", 'cd "$(dirname "$0")/.."'))]
    assert shebang == "#!/usr/bin/env bash"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert set(commands) >= {"make lint", "make test"}
    assert all(re.fullmatch(r"make [a-z-]+", command) for command in commands)
    assert "    make test " in README
