"""A payment service over HTTP, with idempotency keys. It fails as its callers ask, by the payment method."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

API_KEY = "sk_test_2d7c0f5a91"
QUOTED = "card 4242 4242 4242 4242 of Ada Lovelace"  # in the service's texts, and to be nowhere else
DECLINES = {"pm_expired": "expired_card", "pm_poor": "insufficient_funds", "pm_lost": "lost_card"}
FAULTS = {  # the fault of the first call with a payment method
    **{f"pm_{status}": status for status in (400, 409, 429, 500, 503)},
    "pm_no_json": "no json",
    "pm_hang": "hang",
    "pm_hang_done": "hang when done",
    "pm_trickle": "trickle",
    "pm_lost_reply": "lose the reply",
}


class PaymentService:
    """The state of the service.

    Args:
        url: where it serves.

    Attributes:
        charges: by the caller's reference; `net` is what is left after refunds.
        calls: method and idempotency key of each call.
        faults: of the next reversals.
        hanging: set when a call hangs.
        resume: lets the calls that hang go on.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.api_key = API_KEY
        self.charges: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.faults: list[object] = []
        self.hanging = threading.Event()
        self.resume = threading.Event()
        self._closed: set[str] = set()  # references that were reversed
        self._replies: dict[str, tuple[int, Any]] = {}
        self._faulty: set[str] = set()  # references whose first call has failed
        self._lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """The settings of a worker that uses the service."""
        return {"PAYMENTS_URL": self.url, "PAYMENTS_API_KEY": API_KEY}

    def answer(self, method: str, path: str, key: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        """Status and body, or None to close the connection without a reply."""
        fault = self._next_fault(key, body)
        if isinstance(fault, int):
            return fault, {"error": f"cannot process {QUOTED}"}
        if fault == "no json":
            return 200, f"<html>{QUOTED}</html>"
        if fault == "hang":
            self._hang()
        with self._lock:
            self.calls.append((f"{method} {path}", key))
            if path == "/charges" and method == "GET":
                return 200, self._list(body)
            if key not in self._replies:
                self._replies[key] = self._charge(body) if path == "/charges" else self._reverse(body["reference"])
        if fault == "hang when done":
            self._hang()
        if fault == "trickle":
            return 0, ""
        return None if fault == "lose the reply" else self._replies[key]

    def _next_fault(self, key: str, body: dict[str, Any]) -> object:
        with self._lock:
            if "payment_method" not in body:
                return self.faults.pop(0) if self.faults and key else None
            if body["reference"] in self._faulty:
                return None
            self._faulty.add(body["reference"])
            return FAULTS.get(body["payment_method"])

    def _hang(self) -> None:
        self.hanging.set()
        self.resume.wait()

    def _charge(self, body: dict[str, Any]) -> tuple[int, Any]:
        reference = body["reference"]
        if reference in self._closed:
            return 402, {"code": "reference_closed", "error": f"reversed: {QUOTED}"}
        if code := DECLINES.get(body["payment_method"]):
            return 402, {"code": code, "error": f"declined: {QUOTED}"}
        at = datetime.now(UTC)
        new = {"reference": reference, "net": 0, "currency": body["currency"], "at": at}
        self.charges.setdefault(reference, new)["net"] += body["amount"]  # with another key, it is charged again
        return 201, {"id": f"ch_{reference}"}

    def _reverse(self, reference: str) -> tuple[int, Any]:
        self._closed.add(reference)
        charge = self.charges.get(reference, {"net": 0})
        refunded, charge["net"] = charge["net"], 0
        return 201, {"refunded": refunded}

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        """One page, of one charge."""
        begin, end = (datetime.fromisoformat(query[name]) for name in ("captured_from", "captured_before"))
        found = [charge for charge in self.charges.values() if begin <= charge["at"] < end]
        number = int(query.get("cursor", 0))
        page = [{name: value for name, value in charge.items() if name != "at"} for charge in found[number:][:1]]
        return {"charges": page, "next": str(number + 1) if number + 1 < len(found) else None}


@contextmanager
def payment_service() -> Iterator[PaymentService]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._handle(dict(parse_qsl(urlsplit(self.path).query)))

        def do_POST(self) -> None:
            self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _handle(self, body: dict[str, Any]) -> None:
            reply: tuple[int, Any] | None = (401, {"error": f"unknown key {self.headers['Authorization']}"})
            if self.headers["Authorization"] == f"Bearer {service.api_key}":
                key = self.headers["Idempotency-Key"] or ""
                reply = service.answer(self.command, urlsplit(self.path).path, key, body)
            if reply is None:
                self.close_connection = True
                return
            status, content = reply
            if not status:  # byte by byte: none is late
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                while not service.resume.wait(0.1):
                    self.wfile.write(b" ")
                return
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the caller did not wait for the answer
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service = PaymentService(f"http://127.0.0.1:{server.server_port}")
    serving = threading.Thread(target=server.serve_forever, args=[0.05])
    serving.start()
    try:
        yield service
    finally:
        service.resume.set()
        server.shutdown()
        server.server_close()
        serving.join()
