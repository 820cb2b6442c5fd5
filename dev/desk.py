"""The API of the dev stack: `app.api.main`, with a panel on the order desk that stops and starts the servers.

The panel's files are beside this one. It uses the control endpoint of the stack (`dev.control`).
"""

import os
from html import escape
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.main import app


class Panel:
    """Middleware: adds the panel to the order desk, and allows the page to call the control endpoint."""

    def __init__(self, app: ASGIApp, control_url: str) -> None:
        self._app, self._control_url = app, control_url
        self._head = (
            f'<meta name="dev-control" content="{escape(control_url)}">'
            '<link rel="stylesheet" href="/dev/panel.css"><script type="module" src="/dev/panel.js"></script></head>'
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        page = b""

        async def send_with_panel(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                start.update(message)
                return
            page += message.get("body", b"")
            if message.get("more_body"):
                return
            with_panel = page.replace(b"</head>", self._head.encode(), 1)
            headers = MutableHeaders(scope=start)
            headers["Content-Length"] = str(len(with_panel))
            policy = headers.get("Content-Security-Policy", "")
            headers["Content-Security-Policy"] = policy.replace(
                "connect-src 'self'", f"connect-src 'self' {self._control_url}"
            )
            await send(start)
            await send({"type": "http.response.body", "body": with_panel})

        # The whole page, also for a browser that has another version of it: the ETag is that of the file.
        conditional = (b"if-none-match", b"if-modified-since", b"if-range", b"range")
        whole = [(name, value) for name, value in scope["headers"] if name not in conditional]
        await self._app({**scope, "headers": whole}, receive, send_with_panel)


app.mount("/dev", StaticFiles(directory=Path(__file__).parent / "panel"), name="dev")
app.add_middleware(Panel, control_url=os.environ["DEV_CONTROL_URL"])
