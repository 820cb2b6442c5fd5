"""Turn a copy of the program into the hotel bookings of docs/another-domain.md, and book rooms there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest

from app import temporal
from app.gateways.sandbox import records
from app.settings import Settings
from dev.servers import free_port, start_temporal
from dev.stack import ROOT
from tests.kit.program_copy import ProgramCopy, environment_of, files_of_tests
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

PAGE = (ROOT / "docs/another-domain.md").read_text()
(NAMES,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NIGHTS = [{"sku": f"double.2027-05-0{day}", "quantity": 1} for day in (1, 2, 3)]
STAY = {"name": "Ada Lovelace", "city": "London", "hotel": "astoria"}
BOOKING = {
    "customer_id": "cus_1",
    "email": "ada@example.com",
    "payment_method": "pm_card_ok",
    "lines": NIGHTS,
    "stay": STAY,
}
TESTS = [each for each in files_of_tests("unit", "activities", "workflows") if each != "tests/unit/test_docs.py"]
STEPS = ["hold_room", "charge_payment", "confirm_stay", "notify_guest"]


class Hotel(ProgramCopy):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.add_the_rest()
        self.apply("1. The names")
        self._run("git", "init", "--quiet")
        self._run("git", "add", ".")
        self._run("bash", "-e", "-o", "pipefail", "-c", NAMES.replace(".venv/bin/python", sys.executable))
        self.apply("2. The stay")

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)


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
            AddSearchAttributesRequest(namespace="default", search_attributes={"BookingStatus": kind})
        )
        await eventually(
            lambda: service.list_search_attributes(ListSearchAttributesRequest(namespace="default")),
            lambda known: "BookingStatus" in known.custom_attributes,
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

        for night in NIGHTS:
            room = {"name": "a double room", "unit_price": {"amount": 9_900, "currency": "EUR"}, "available": 2}
            assert (await api.put(f"/inventory/{night['sku']}", json=room)).status_code == 201

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
        payment = await records(shop.mongo).find_one({"_id": f"payment:{down}"})
        assert payment is not None
        assert payment["captured"] == payment["refunded"] == 29_700


async def test_table_of_steps_and_statuses_hold_under_the_new_names(hotel: Hotel) -> None:
    files = ("statuses", "steps_table", "reservation", "group_commit")
    assert await hotel.passed(*(f"tests/unit/test_{each}.py" for each in files)) >= 20


@pytest.mark.exhaustive
async def test_types_are_correct_under_the_new_names(hotel: Hotel) -> None:
    code, mistakes = await hotel.run("-m", "mypy", "app", "worker.py", within=170)
    assert code == 0, mistakes


@pytest.mark.exhaustive
@pytest.mark.parametrize("tests", TESTS)
async def test_saga_keeps_its_guarantees_under_the_new_names(hotel: Hotel, tests: str) -> None:
    assert await hotel.passed(tests.replace("order", "booking")) > 0


def test_word_order_means_an_order() -> None:
    sequence = re.compile(
        r"\border (in which|of (the |its )?(saga|steps))|\b(any|same|this) order (in|and)\b|\bin order to\b"
    )
    found = {path.name for path in (ROOT / "app").rglob("*.py") if sequence.search(path.read_text())}
    assert found == set()


def test_page_names_every_file_of_the_program() -> None:
    files = [path for path in (ROOT / "app").rglob("*.py") if path.stat().st_size and path.parent.name != "api"]
    assert [path.name for path in files if not re.search(rf"\b{path.name}\b", named_files())] == ["sandbox.py"]


def named_files() -> str:
    _, section = PAGE.split("## Which file is whose\n")
    return section.split("\n## ")[0].replace("`app/gateways/`", "`app/gateways/__init__.py`")
