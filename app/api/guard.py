"""Protects the API from web pages of other sites, which act with the rights and the network access of the person who
has them open. Also gives each request an id, and measures it.
"""

import re
import secrets
from time import perf_counter

import anyio
from fastapi import Request
from prometheus_client import Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.api.problems import Problem, answer
from app.validation import IDENTIFIER

REQUESTS = Histogram("http_request_seconds", "Time until the response begins.", ["method", "route", "status"])
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # a client may send any word
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
LOOPBACK = re.compile(r"(([a-z0-9-]+\.)*localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {  # of every response
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NOT_STORED = {"Cache-Control": "no-store"}  # no cache may keep the orders; the files of the page have an ETag


class Guard:
    """Middleware: refuses requests that other sites' pages make, sets the headers that browsers obey, and measures the
    time until each response begins.

    An `open` API, which asks for no key, answers to loopback names only: else a page whose own name is made to resolve
    to this address (DNS rebinding) could read everything, because the browser takes the API for the page's own site.
    """

    def __init__(self, app: ASGIApp, *, open: bool) -> None:  # noqa: A002
        self._app, self._open = app, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if re.fullmatch(IDENTIFIER, sent) else secrets.token_hex(8)
        logs.request_id.set(request_id)
        headers = HEADERS | ({} if scope["path"].startswith("/static/") else NOT_STORED) | {"X-Request-ID": request_id}
        method = scope["method"] if scope["method"] in METHODS else "other"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")  # the template: ids would make endless labels
                REQUESTS.labels(method, route, message["status"]).observe(perf_counter() - began)
                MutableHeaders(scope=message).update(headers)
            await send(message)

        app = self._app
        if scope["method"] == "HEAD":  # answered as a GET, whose body the server leaves out
            scope = {**scope, "method": "GET", "is_head": True}
        if problem := self._problem(scope):
            app = await answer(Request(scope), problem)
        try:
            await app(scope, receive, send_guarded)
        except* anyio.BrokenResourceError:  # of FastAPI: the client of an event stream has left
            pass

    def _problem(self, scope: Scope) -> Problem | None:
        """Return a problem for an unsafe request of another origin, by the rule of Go's http.CrossOriginProtection.

        Browsers send Sec-Fetch-Site, except old ones and those that reach the API by plain HTTP under another name than
        localhost; they send Origin. Without either, the client is no browser.
        """
        names, headers = ("host", "sec-fetch-site", "origin"), Headers(scope=scope)
        hosts, sites, origins = ([value.lower() for value in headers.getlist(name)] for name in names)
        if self._open and not (len(hosts) == 1 and LOOPBACK.fullmatch(hosts[0])):
            text = "cannot answer under this host name: without API_KEYS, the API serves localhost only"
            return Problem("wrong-host-name", text)
        if scope["method"] in SAFE_METHODS:
            return None
        if sites:
            is_same = {*sites} <= {"same-origin", "none"}
        else:
            is_same = all([origin.partition("://")[2]] == hosts for origin in origins)
        text = "cannot accept a change that a page of another origin requests"
        return None if is_same else Problem("foreign-origin", text)
