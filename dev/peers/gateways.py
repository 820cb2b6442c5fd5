"""Payment, carrier and mail for both peers: what app/gateways/sandbox.py does in MongoDB, in PostgreSQL.

One statement a call, and the same test inputs: `pm_card_declined`, `pm_card_outage`, the postal codes `00000` and
`99999`. As there, and as with most payment services, a call is repeated by its idempotency key, and a refund or a
cancelled shipment refuses a later call with the same key. Not part of the saga: these rows are another company's.
"""

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from dev.peers.contract import CANCELLED, OrderStopped

SCHEMA = """CREATE TABLE IF NOT EXISTS gateway (
    key text PRIMARY KEY, amount integer, undone integer, closed boolean NOT NULL DEFAULT false)"""
DO = """INSERT INTO gateway AS g (key, amount) VALUES (%s, %s) ON CONFLICT (key) DO UPDATE
    SET amount = coalesce(g.amount, CASE WHEN g.closed THEN 0 ELSE excluded.amount END) RETURNING closed"""
UNDO = """INSERT INTO gateway AS g (key, undone, closed) VALUES (%s, 0, true) ON CONFLICT (key) DO UPDATE
    SET undone = coalesce(g.amount, 0), closed = true"""


class Unavailable(Exception):
    """A transient error."""


class Gateways:
    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def charge(self, key: str, amount: int, payment_method: str) -> None:
        """Raises OrderStopped if the card is declined, Unavailable in an outage."""
        if payment_method == "pm_card_declined":
            raise OrderStopped("payment_declined", "the card was declined")
        if payment_method == "pm_card_outage":
            raise Unavailable("the payment service is unavailable")
        await self._do(f"payment:{key}", amount)

    async def refund(self, key: str) -> None:
        await self._undo(f"payment:{key}")

    async def ship(self, key: str, postal_code: str) -> None:
        """Raises OrderStopped if no carrier delivers to the address, Unavailable in an outage."""
        if postal_code == "00000":
            raise OrderStopped("address_unserviceable", "no carrier delivers to this address")
        if postal_code == "99999":
            raise Unavailable("the carrier is unavailable")
        await self._do(f"shipment:{key}", 1)

    async def cancel_shipment(self, key: str) -> None:
        await self._undo(f"shipment:{key}")

    async def send_confirmation(self, key: str) -> None:
        await self._do(f"mail:{key}", 1)

    async def _do(self, key: str, amount: int) -> None:
        async with self._pool.connection() as connection:
            found = await (await connection.execute(DO, (key, amount))).fetchone()
        if found and found[0]:
            raise OrderStopped(*CANCELLED)

    async def _undo(self, key: str) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(UNDO, (key,))


def pool(url: str) -> AsyncConnectionPool[AsyncConnection]:
    """Open it with `async with`."""
    return AsyncConnectionPool(url, min_size=2, max_size=20, open=False)
