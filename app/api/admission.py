"""Admission control: a bound on the requests in progress, so that under overload those admitted are answered in time.

Without it each new request would slow down all others, until none is answered in time, not even the health checks.
"""

import asyncio
import re
from contextlib import ExitStack

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import TRY_AGAIN, Problem, answer

MAX_IN_PROGRESS = 64  # of this process; with more, requests only wait for one another
MAX_WAIT = 0.3  # seconds that a request waits for others to end: a short burst is not refused
UNLIMITED = re.compile("/(healthz|readyz|metrics|static/.*)|.*/events")  # `app.api.hub` limits the event streams


class Admission:
    """Middleware: a request is in progress until its response begins, and the workflow of a new order is started.

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
                # After a 202, the order's workflow is being started. Any other answer may be large, and read slowly.
                if message["type"] == "http.response.start" and message["status"] != 202:
                    place.close()
                await send(message)

            await app(scope, receive, send_and_leave)
