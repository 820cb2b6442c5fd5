"""Run nginx in the foreground, without privileges."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dev.servers import HOST, Server

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# Without nginx, these tests are skipped; if CI is set, they fail instead.
needs_nginx = pytest.mark.skipif(
    sys.platform != "linux" or (NGINX is None and not os.environ.get("CI")),
    reason="they need nginx on Linux: make test-tools",
)

MAIN = """
daemon off;
master_process off;  # one process, under the user of the tests
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include site.conf;
}
"""


@asynccontextmanager
async def running_nginx(folder: Path, site: str, port: int) -> AsyncIterator[Server]:
    """Run nginx with this configuration of `http`, until it listens on `port`."""
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(MAIN)
    (folder / "site.conf").write_text(site)
    assert NGINX, "nginx not found: `make test-tools` installs it"
    command = [NGINX, "-e", "stderr", "-p", f"{folder}/", "-c", "nginx.conf"]
    server = await Server.start("nginx", command, address=f"{HOST}:{port}", log=folder / "nginx.log")

    async def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    await server.wait_until(listens)
    try:
        yield server
    finally:
        await server.stop()
