"""API keys: the credentials of a few programs, which the settings name."""

import hmac

from app.api.auth import Caller
from app.settings import ApiSettings


class ApiKeys:
    def __init__(self, settings: ApiSettings) -> None:
        self._callers = settings.api_keys

    async def identify(self, credentials: str) -> Caller | None:
        for name, known in self._callers.items():
            if hmac.compare_digest(credentials.encode(), known.key.encode()):
                return Caller(name, known.scopes, known.customer)
        return None
