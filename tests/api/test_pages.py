"""The files of the order desk: who may read them, and their headers. The desk itself: tests/browser."""

from __future__ import annotations

import httpx

from app.settings import ApiSettings
from dev.servers import Server
from tests.kit.http import assert_secure, bearer, closed, key_of, serve

FILES = ["/", "/static/index.html", "/static/main.js"]


async def test_only_the_empty_page_is_public(settings: ApiSettings, temporal_server: Server) -> None:
    async with serve(closed(settings, "shop"), temporal_server.address) as api:
        for path in ("/docs", "/source/order.py"):
            assert (await api.get(path)).status_code == 401, path
            assert (await api.get(path, headers=bearer(key_of("shop")))).status_code == 200, path
        for path in FILES:
            assert (await api.get(path)).status_code == 200, path


async def test_only_static_files_are_stored_and_then_answered_with_304(api: httpx.AsyncClient) -> None:
    for path in FILES:
        answer = await api.get(path)
        assert_secure(answer)
        stored = path.startswith("/static/")
        assert answer.headers.get_list("Cache-Control") == ([] if stored else ["no-store"]), path
        again = await api.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == (304 if stored else 200), path
        assert_secure(again)
