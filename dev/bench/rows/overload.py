"""More clients than the program can serve, which never wait: what they get, and how the program comes back."""

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from dev.bench.comparison import Comparison
from dev.bench.lab import Lab, Running
from dev.bench.load import Http, callers_for
from dev.bench.shop import order_body, place_headers
from dev.sample_stock import authorization

CLIENTS = 300
SECONDS = 30
HEALTH_INTERVAL = 0.1  # seconds
GIVE_UP = 60.0  # seconds until the program must be back to normal
NORMAL, NORMAL_POSTS = 1.0, 5  # normal: so many POSTs in a row take at most so many seconds each


@dataclass
class Turn:
    """What happened in one overload; times in seconds."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    back: float = 0

    @property
    def wrong(self) -> int:
        """Answers other than 202, and 503 with Retry-After; broken connections too."""
        return sum(number for answer, number in self.answers.items() if answer not in {"202", "503 with Retry-After"})


async def never_waiting_clients(lab: Lab) -> list[Comparison]:
    """300 clients that place an order as soon as the last one was answered, for 30 s; each limit is of the slowest.

    A stack of its own for each turn. An accepted order is lost if MongoDB does not have it.
    """
    await lab.stop()
    clients, seconds = lab.size(CLIENTS, 30), lab.size(SECONDS, 2)
    turns = []
    for number in range(lab.rounds):
        async with lab.running() as running:
            lab.say(f"turn {number + 1}: {clients} clients that never wait, for {seconds} s")
            turns.append(await _overload(lab, running, clients, seconds))
    title = f"{clients} clients that never wait"

    def slowest(name: str, seconds: list[float], limit: float) -> Comparison:
        return Comparison(f"{title}: {name}", "s", seconds, [limit] * lab.rounds, ("slowest", "limit"), 1)

    def none(name: str, unit: str, number: list[int], of_all: list[int]) -> Comparison:
        return Comparison(f"{title}: {name}", unit, number, of_all, ("number", "of all"), 0)

    answers = [sum(turn.answers.values()) for turn in turns]
    found = [
        slowest("202 after", [max(turn.accepted, default=0) for turn in turns], 3),
        slowest("503 after", [max(turn.refused, default=0) for turn in turns], 1),
        slowest("health check after", [max(turn.health, default=0) for turn in turns], 0.5),
        slowest("back to normal after", [turn.back for turn in turns], 5),
        none("other answers", "answers", [turn.wrong for turn in turns], answers),
        none("accepted and lost", "orders", [turn.lost for turn in turns], [len(turn.accepted) for turn in turns]),
    ]
    found[0].details["answers"] = [dict(turn.answers) for turn in turns]
    return found


async def _overload(lab: Lab, running: Running, clients: int, seconds: float) -> Turn:
    turn, order_ids = Turn(), []
    for _ in range(lab.size(20, 5)):
        await running.shop.complete()

    async def post() -> None:
        try:
            answer = await running.http.request("POST", "/orders", order_body(), place_headers())
        except ConnectionError:
            turn.answers["connection broken"] += 1
            raise
        if answer.status == 202:
            turn.accepted.append(answer.seconds)
            order_ids.append(json.loads(answer.body)["order_id"])
            turn.answers["202"] += 1
        elif answer.status == 503 and "retry-after" in answer.headers:
            turn.refused.append(answer.seconds)
            turn.answers["503 with Retry-After"] += 1
        else:
            turn.answers[str(answer.status)] += 1

    checking = asyncio.create_task(_check_health(running, turn))
    await callers_for(post, in_flight=clients, seconds=seconds)
    checking.cancel()
    lab.say("overload ended: back to normal?")
    turn.back = await _until_normal(running)
    found = await running.mongo.orders.count_documents({"_id": {"$in": order_ids}})
    turn.lost = len(order_ids) - found
    return turn


async def _check_health(running: Running, turn: Turn) -> None:
    """Like an orchestrator's probe: a new connection each time."""
    while True:
        begin = time.perf_counter()
        with suppress(ConnectionError):
            async with Http(running.stack.api_url, authorization()) as http:
                if (await http.request("GET", "/healthz")).status != 200:
                    turn.answers["unhealthy"] += 1
        turn.health.append(time.perf_counter() - begin)
        await asyncio.sleep(HEALTH_INTERVAL)


async def _until_normal(running: Running) -> float:
    """Seconds until several POSTs in a row were answered in time; the worker is still at work on the orders."""
    begin = since = time.perf_counter()
    row = 0
    while row < NORMAL_POSTS and since - begin < GIVE_UP:
        sent = time.perf_counter()
        answer = await running.http.request("POST", "/orders", order_body(), place_headers())
        row = row + 1 if answer.status == 202 and answer.seconds <= NORMAL else 0
        since = sent if row <= 1 else since
    return since - begin
