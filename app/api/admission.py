"""Admission control: a bound on the requests in progress, so that under overload those admitted are answered in time.

Without it each new request would slow down all others, until none is answered in time, not even the health checks.
"""

import asyncio
import re
from contextlib import ExitStack

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import TRY_AGAIN, Problem, answer

MAX_IN_PROGRESS = 32  # of this process: as many as calls of MongoDB run at once, see `app.mongo`
MAX_WAIT = 0.5  # seconds that a request waits for others to end: a short burst is not refused
UNLIMITED = re.compile("/(healthz|readyz|metrics|static/.*)")


class Admission:
    """Middleware: a request is in progress until its response begins, so an open event stream is not counted.

    Sets `state.arrived`, the event loop's time, and `state.leave`, which a request calls before it waits on purpose.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = asyncio.Semaphore(MAX_IN_PROGRESS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as place:
            scope.setdefault("state", {}).update(arrived=asyncio.get_running_loop().time(), leave=place.close)
            app = self._app
            if not UNLIMITED.fullmatch(scope["path"]):
                try:
                    async with asyncio.timeout(MAX_WAIT):
                        await self._places.acquire()
                    place.callback(self._places.release)
                except TimeoutError:
                    busy = Problem("overloaded", f"too many requests are in progress; {TRY_AGAIN}")
                    app = await answer(Request(scope), busy)

            async def send_and_leave(message: Message) -> None:
                place.close()  # without effect if already closed
                await send(message)

            await app(scope, receive, send_and_leave)
