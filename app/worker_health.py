"""The worker's own endpoint for liveness and readiness, at WORKER_HEALTH_ADDRESS."""

import asyncio
from contextlib import closing, suppress
from http import HTTPStatus

from app.health import Ping, Readiness

REQUEST_TIMEOUT = 4.0  # seconds for one request, so that slow clients do not add up


class WorkerHealth:
    """Answers GET /healthz while the event loop runs, and GET /readyz: 200 while the worker takes orders, else 503."""

    worker = "unavailable: starting"

    def __init__(self, mongodb: Ping, temporal: Ping) -> None:
        self._mongodb, self._temporal = mongodb, temporal

    async def work(self) -> None:
        """Be ready until cancelled."""
        self.worker = "ok"
        try:
            await asyncio.Event().wait()
        finally:
            self.worker = "unavailable: stopping"

    async def serve(self, address: str) -> None:
        """Start to serve at host:port, unless it is empty; it ends with the event loop, after the worker has stopped.

        Raises:
            SystemExit: the address cannot be used.
        """
        if not address:
            return
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.start_server(self._answer, host.strip("[]"), int(port))
        except (OSError, OverflowError, UnicodeError) as error:
            raise SystemExit(f"wrong setting: WORKER_HEALTH_ADDRESS: {error}") from None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Suppressed: the client has left, is slow, or sends no HTTP, or the process ends.
        with closing(writer), suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request = await reader.readuntil(b"\r\n\r\n")
                status, body = 404, "{}"
                if request.startswith(b"GET /healthz "):
                    status, body = 200, '{"status":"ok"}'
                elif request.startswith(b"GET /readyz "):
                    readiness = await Readiness.of(self._mongodb, self._temporal, worker=self.worker)
                    status, body = 200 if readiness.status == "ready" else 503, readiness.model_dump_json()
                headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
                writer.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}\r\n\r\n{body}".encode())
                await writer.drain()
