"""docs/scale.md computes what a rate of orders needs from what one order costs."""

from __future__ import annotations

import re

from app import relay
from dev.order_cost import Needs, OrderCost
from dev.stack import ROOT

PAGE = (ROOT / "docs" / "scale.md").read_text()
RATES = (10, 1_000, 100_000)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its two lines of header."""
    blocks = PAGE.split(f"## {heading}\n\n")[1].split("\n\n")
    rows = next(block for block in blocks if block.startswith("|")).splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def documented_cost() -> OrderCost:
    numbers = {name: float(measured.split()[0]) for _, name, measured in table("What a completed order costs")}
    return OrderCost(
        cpu={name: numbers[name] for name in ("API", "worker", "Temporal", "mongod")},
        reads=numbers["reads"],
        writes=numbers["writes"],
        oplog=numbers["oplog"],
        document=numbers["document"],
        index=numbers["index entries"],
        events=numbers["events"],
        history=numbers["history"],
        actions=numbers["Cloud actions"],
    )


def test_needs_are_computed_from_the_cost_of_an_order() -> None:
    needs = [Needs.of(documented_cost(), rate) for rate in RATES]
    assert table("What a rate of orders needs") == [
        ["worker, cores", *(f"{need.worker_cores:,}" for need in needs)],
        ["API, cores", *(f"{need.api_cores:,}" for need in needs)],
        ["MongoDB, shards", *(f"{need.mongodb_shards:,}" for need in needs)],
        ["MongoDB, growth per day", *(f"{need.gigabytes_per_day:,.0f} GB" for need in needs)],
        ["MongoDB, oplog per second", *(f"{need.oplog:.{1 if need.oplog > 1 else 2}f} MB" for need in needs)],
        ["relays, change streams", *(f"{need.relays:,}" for need in needs)],
        ["Temporal, events per second", *(f"{need.events:,.0f}" for need in needs)],
        ["Temporal, history shards", *(f"{need.history_shards:,}" for need in needs)],
        ["Temporal, task queue partitions", *(f"{need.partitions:,}" for need in needs)],
        ["Temporal Cloud, actions per second", *(f"{need.actions:,.0f}" for need in needs)],
    ]


def test_limit_of_the_relay_is_that_of_the_code() -> None:
    (limit,) = re.findall(r"checks at most ([\d,]+) orders per second", PAGE)
    assert int(limit.replace(",", "")) == relay.BATCH / relay.CHECK_INTERVAL
