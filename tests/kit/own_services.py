"""The changes of docs/make-it-yours.md, "Your payment service", in a copy of the program."""

from __future__ import annotations

import re
import subprocess

from dev.stack import ROOT
from tests.kit.program_copy import ProgramCopy, python_blocks

SECTION = "Your payment service"
PAGE = "make-it-yours.md"

# The examples have no carrier.
CARRIER = """
from app.domain import Address


class OwnCarrier:
    async def ship(self, idempotency_key: str, address: Address) -> str:
        return f"{idempotency_key} to {address.city}"

    async def cancel(self, idempotency_key: str) -> bool:
        return bool(idempotency_key)
"""


def connect(copy: ProgramCopy) -> None:
    """Connect the payment service and the mail server; the carrier stays a sandbox."""
    gateways, imported, used = python_blocks(PAGE, SECTION)
    text = (ROOT / "docs" / PAGE).read_text().split(f"## {SECTION}\n")[1].split("\n## ")[0]
    (commands,) = re.findall(r"^ {7}cp .*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    copy.add("examples", "tests")
    subprocess.run(["bash", "-ec", commands], cwd=copy.folder, check=True)  # noqa: S607
    (copy.folder / "app/gateways/own.py").write_text(gateways)
    copy.replace("worker.py", "from app.gateways.sandbox import sandbox\n", imported)
    copy.replace_line("worker.py", "main(sandbox)", used)


def connect_all(copy: ProgramCopy) -> None:
    """Connect a carrier, too."""
    connect(copy)
    (copy.folder / "app/gateways/carrier.py").write_text(CARRIER)
    own = "app/gateways/own.py"
    copy.replace(own, "import sandbox\n", "import OwnCarrier\n")
    copy.replace(own, "app.gateways.sandbox", "app.gateways.carrier")
    copy.replace(own, ", sandbox(mongo) as rest:", ":")
    copy.replace(own, "rest.carrier", "OwnCarrier()")
