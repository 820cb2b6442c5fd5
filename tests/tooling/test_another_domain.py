"""Run the commands of docs/another-domain.md in a clone, which makes hotel bookings of orders, and book rooms there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest

from app import temporal
from app.names import SEARCH_ATTRIBUTE
from app.settings import Settings
from dev.rename import read, text_files
from dev.servers import free_port, start_temporal
from dev.stack import ROOT
from tests.kit.clone import in_git, make, make_clone
from tests.kit.program_copy import ProgramCopy, environment_of, files_of_tests
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

PAGE = (ROOT / "docs/another-domain.md").read_text()
COMMANDS = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
FIRST_BOOKING = re.findall(r"^    (curl .*?)\n(?:\n|\Z)", PAGE, re.MULTILINE | re.DOTALL)
NIGHTS = [{"sku": f"double.2027-05-0{day}", "quantity": 1} for day in (1, 2, 3)]
STAY = {"name": "Ada Lovelace", "city": "London", "hotel": "astoria"}
BOOKING = {
    "customer_id": "cus_1",
    "email": "ada@example.com",
    "payment_method": "pm_card_ok",
    "lines": NIGHTS,
    "stay": STAY,
}
STATUS = SEARCH_ATTRIBUTE.replace("Order", "Booking")
TESTS = files_of_tests("unit", "activities", "workflows", "api", "replay", "browser", "e2e")
# Of these, the ones that know names of fields, operations, files or histories.
STAY_CHANGES = ("after_charge_is_refused", "whose_workflow_is_terminated_is_not_refused")
NAMING = [
    *(f"tests/unit/test_{each}.py" for each in ("docs", "names", "statuses", "steps_table", "reservation")),
    *(f"tests/api/test_{each}.py" for each in ("bad_input", "description", "readme")),
    "tests/replay/test_replay.py",
    *(f"tests/api/test_actions.py::test_stay_change_{each}" for each in STAY_CHANGES),
]
STEPS = ["hold_room", "charge_payment", "confirm_stay", "notify_guest"]


class Hotel(ProgramCopy):
    """A clone in which the commands of the page were run."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_clone(folder)
        for setting in ("user.name=Test", "user.email=test@example.com", "commit.gpgsign=false"):
            in_git(folder, "config", *setting.split("="))
        self.shell(COMMANDS)

    def shell(self, commands: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST"))}
        done = subprocess.run(  # noqa: PLW1510
            ["bash", "-e", "-o", "pipefail", "-c", commands],  # noqa: S607
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def hotel(tmp_path_factory: pytest.TempPathFactory) -> Hotel:
    return Hotel(tmp_path_factory.mktemp("hotel") / "copy")


@pytest.fixture
async def environment(settings: Settings, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """With a Temporal server of its own, which knows the new search attribute."""
    server = await start_temporal(free_port(), log_dir=tmp_path)
    try:
        service = (await temporal.connect(target_host=server.address)).operator_service
        kind = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        await service.add_search_attributes(
            AddSearchAttributesRequest(namespace="default", search_attributes={STATUS: kind})
        )
        await eventually(
            lambda: service.list_search_attributes(ListSearchAttributesRequest(namespace="default")),
            lambda known: STATUS in known.custom_attributes,
        )
        yield environment_of(settings, server)
    finally:
        await server.stop()


async def test_booking_completes_or_compensates(hotel: Hotel, environment: dict[str, str], shop: Shop) -> None:
    async with hotel.worker(environment), hotel.api(environment) as api:

        async def book(**changes: Any) -> str:
            answer = await api.post("/bookings", json={**BOOKING, **changes})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["booking_id"])

        async def shown(booking_id: str) -> dict[str, Any]:
            return dict((await api.get(f"/bookings/{booking_id}")).json())

        async def reaches(booking_id: str, status: str) -> dict[str, str]:
            booking = await eventually(lambda: shown(booking_id), lambda found: found["status"] == status)
            return {step["step"]: step["status"] for step in booking["steps"]}

        async def free() -> list[int]:
            return [(await api.get(f"/inventory/{night['sku']}")).json()["available"] for night in NIGHTS]

        for command in FIRST_BOOKING:  # a room, and its booking
            await asyncio.to_thread(hotel.shell, command.replace("localhost:8000", str(api.base_url)))
        [first] = (await api.get("/bookings")).json()["items"]
        await reaches(first["booking_id"], "completed")

        for night in NIGHTS:
            room = {"name": "a double room", "unit_price": {"amount": 9_900, "currency": "EUR"}, "available": 2}
            assert (await api.put(f"/inventory/{night['sku']}", json=room)).is_success

        assert await reaches(await book(), "completed") == dict.fromkeys(STEPS, "done")
        assert await free() == [1, 1, 1]

        declined = await reaches(await book(payment_method="pm_card_declined"), "failed")
        assert declined == {"hold_room": "compensated", "charge_payment": "failed"}
        refused = await reaches(await book(stay={**STAY, "hotel": "00000"}), "failed")
        assert refused == dict.fromkeys(STEPS[:2], "compensated") | {"confirm_stay": "failed"}
        assert await free() == [1, 1, 1]

        down = await book(stay={**STAY, "hotel": "99999"})
        await reaches(down, "charged")
        assert await free() == [0, 0, 0]
        assert (await api.post(f"/bookings/{down}/cancel", json={})).status_code == 202
        assert (await reaches(down, "cancelled")).items() >= dict.fromkeys(STEPS[:2], "compensated").items()
        assert await free() == [1, 1, 1]
        assert await shop.net_money(down) == 0


def test_format_and_rules_hold_under_the_new_names(hotel: Hotel) -> None:
    hotel.shell(".venv/bin/ruff check . && .venv/bin/ruff format --check .")


async def test_tests_that_know_names_pass_under_the_new_names(hotel: Hotel) -> None:
    assert await hotel.passed(*NAMING) >= 100


@pytest.mark.exhaustive
def test_lint_passes_under_the_new_names(hotel: Hotel) -> None:
    code, output = make(hotel.folder, "lint")
    assert code == 0, output


@pytest.mark.exhaustive
@pytest.mark.parametrize("tests", [each for each in TESTS if each not in NAMING])
async def test_program_keeps_its_guarantees_under_the_new_names(hotel: Hotel, tests: str) -> None:
    assert await hotel.passed(tests.replace("order", "booking"), within=600) > 0


def test_word_order_means_an_order() -> None:
    sequence = re.compile(
        r"\bin order\b(?!\.\w|\[)|\bin (any|the same|the wrong|which) order\b|\breverse order\b"
        r"|\border (in which|of (the |its )?(saga|steps|stopping))|\bin this order:"
    )
    texts = {path: read(path) or "" for path in text_files() if path != Path(__file__)}
    assert [str(path) for path, text in texts.items() if sequence.search(text)] == []


def test_files_with_words_of_orders_are_named_under_what_remains(hotel: Hotel) -> None:
    word = re.compile(
        r"\b(carriers?|shipments?|ship(s|ped|ping)?|street|country|postal|mugs?|parcels?|deliver\w*)\b|\btrk_"
        r"|(?<!byte )(?<!reading-)\borders?\b(?!: 1)|\bin booking\b(?!\.\w|\[)",
        re.IGNORECASE,
    )
    remaining = PAGE.split("## What remains\n")[1]
    missing = set()
    for name in hotel.shell("git ls-files README.md worker.py app deploy dev docs examples").split():
        path = Path(name)
        if path.suffix != ".webp" and word.search((hotel.folder / path).read_text()):
            named = (f"`{path}`", *(f"`{folder}/`" for folder in path.parents))
            missing |= set() if any(each in remaining for each in named) else {name}
    assert missing == set()


def test_page_names_every_file_of_the_program() -> None:
    files = [path for path in (ROOT / "app").rglob("*.py") if path.stat().st_size and path.parent.name != "api"]
    assert [path.name for path in files if not re.search(rf"\b{path.name}\b", named_files())] == ["sandbox.py"]


def named_files() -> str:
    _, section = PAGE.split("## Which file is whose\n")
    return section.split("\n## ")[0].replace("`app/gateways/`", "`app/gateways/__init__.py`")
