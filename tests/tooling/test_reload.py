"""Edit the code under `make dev`: worker and API restart with the newest code that compiles, and after a crash."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from app.order_workflows import workflow_id
from dev.stack import ROOT
from tests.kit.orders import CHARGING
from tests.tooling.dev_process import Dev, place, wait_for_status

API, WORKER, WORKFLOW = "app/api/main.py", "worker.py", "app/workflows/order.py"
RESTARTED = ("worker restarted", "api restarted")


@pytest.fixture(scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    root = tmp_path_factory.mktemp("reload")
    for name in ("app", "dev"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / WORKER, root)
    dev = await Dev(root / ".dev", root=root).start()
    try:
        await dev.wait_until_ready()
        yield dev
        assert await dev.stop(signal.SIGINT) == 0
        assert dev.processes() == {}
    finally:
        dev.kill()


@pytest.fixture
async def http(dev: Dev) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=dev.api_url, timeout=10) as http:
        yield http


class Edit:
    """Edits one file. `undo` restores its original text."""

    def __init__(self, dev: Dev, name: str) -> None:
        self._file = dev.root / name
        self._original = self._file.read_text()
        self.line = self._original.count("\n") + 1  # line number of appended text

    def append(self, text: str) -> None:
        self._file.write_text(f"{self._original}{text}\n")

    def replace(self, pattern: str, text: str) -> None:
        edited, times = re.subn(pattern, text, self._original, count=1, flags=re.DOTALL)
        assert times == 1
        self._file.write_text(edited)

    def undo(self) -> None:
        self._file.write_text(self._original)


async def title(http: httpx.AsyncClient) -> str:
    return str((await http.get("/openapi.json")).json()["info"]["title"])


async def test_syntax_error_is_reported_and_mended_edit_is_loaded(dev: Dev, http: httpx.AsyncClient) -> None:
    before = dev.processes().keys()
    programs = dev.pid_of("uvicorn"), dev.pid_of("dev.worker")
    edit = Edit(dev, API)
    edit.append("x = (")
    printed = await dev.wait_for_output("next edit")
    assert printed.strip() == (f"{API}:{edit.line}: '(' was never closed. Not restarted: waiting for the next edit")
    await wait_for_status(http, await place(http), "completed")
    assert dev.processes().keys() == before  # the old code keeps running

    order_id = await place(http, payment_method="pm_card_slow")
    await wait_for_status(http, order_id, CHARGING)
    edit.replace("title=TITLE", 'title="Edited"')
    await dev.wait_for_output(f"{API} changed: restarting worker and API", *RESTARTED)
    assert not {*programs} & dev.processes().keys()
    assert await title(http) == "Edited"
    await wait_for_status(http, order_id, "completed")


async def test_code_that_fails_at_start_is_retried_until_edited(dev: Dev, http: httpx.AsyncClient) -> None:
    edit = Edit(dev, WORKER)
    edit.replace("^", "import nonsense\n")
    printed = await dev.wait_for_output("restarting in 1 s", "restarting in 2 s", "restarting in 4 s", "api restarted")
    place_of_error = f"{dev.root}/worker.py:1: ModuleNotFoundError: No module named 'nonsense'"
    assert f"worker exited with code 1: {place_of_error}" in printed
    order_id = await place(http)
    edit.undo()
    await dev.wait_for_output(*RESTARTED)
    await wait_for_status(http, order_id, "completed")


async def test_killed_processes_are_restarted(dev: Dev, http: httpx.AsyncClient) -> None:
    order_id = await place(http, payment_method="pm_card_flaky")
    os.kill(dev.pid_of("dev.worker"), signal.SIGKILL)
    os.kill(dev.pid_of("uvicorn"), signal.SIGKILL)
    printed = await dev.wait_for_output(*RESTARTED)
    for name in ("worker", "api"):
        assert f"{name} was killed by SIGKILL (log: {dev.dev_dir}/logs/{name}.log); restarting in 1 s" in printed
    await wait_for_status(http, order_id, "completed", within=60)  # an interrupted step is retried after its timeout


async def test_non_replayable_edit_names_order_and_remedy(dev: Dev, http: httpx.AsyncClient) -> None:
    order_id = await place(http, payment_method="pm_card_outage")
    await wait_for_status(http, order_id, CHARGING)
    edit = Edit(dev, WORKFLOW)
    edit.replace(r'(    async def run\(.*?""".*?"""\n)', r"\1        await workflow.sleep(1)\n")
    printed = await dev.wait_for_output(*RESTARTED)
    assert (await http.post(f"/orders/{order_id}/cancel", json={})).status_code == 202
    if "workflow terminate" not in printed:  # the new worker may have had a task of the order before the cancel
        printed = await dev.wait_for_output("workflow terminate")
    assert f"{workflow_id(order_id)} cannot be replayed on the edited code: [TMPRL1100] Nondeterminism error" in printed
    assert re.search(r"Undo the edit, put it behind workflow\.patched, or terminate the workflow", printed)

    await dev.act("worker", "stop")  # on purpose, so no edit starts it
    edit.undo()
    printed = await dev.wait_for_output("api restarted")
    await dev.act("worker", "start")
    assert "worker" not in printed.partition("restarting worker and API")[2]
    await wait_for_status(http, order_id, "cancelled", within=60)
