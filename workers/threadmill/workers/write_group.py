"""One attempt's checkpoint writes: those that arrive while others are under way go out together.

LangGraph saves in the background, so several writes of an attempt are often due at once. Each would be a
transaction; a group is one transaction in one round trip, as in a database's group commit: nothing is
delayed to wait for company, and a caller is told only once its write is committed. While Postgres is away,
what waits goes on waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psycopg

from threadmill.workers.checkpoint_writes import Write
from threadmill.workers.lease import Lease, Pool, lease_lost
from threadmill.workers.patience import is_outage, patiently

Waiting = tuple[Write, "asyncio.Future[None]"]


class WriteGroup:
    """Sends writes over one connection at a time, in the order in which they came."""

    def __init__(self, pool: Pool, lease: Lease | None) -> None:
        self._pool = pool
        self._lease = lease
        self._waiting: list[Waiting] = []
        self._sender: asyncio.Task[None] | None = None

    async def write(self, write: Write) -> None:
        """Returns when the write is committed, however long Postgres is away.

        Raises LeaseLost, with nothing written, or Postgres' error.
        """
        if self._lease is not None:
            self._lease.check("checkpoint")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, done))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="threadmill-writes")
        await done

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await patiently(self._send_next)
        except BaseException as error:  # the lease is lost meanwhile, or the process stops
            _fail(self._waiting, error)
            self._waiting = []
            if not isinstance(error, Exception):
                raise
        finally:
            self._sender = None

    async def _send_next(self) -> None:
        """Sends all that waits by now. Raises Postgres' error if it is away; then everything still waits."""
        if self._lease is not None:
            self._lease.check("checkpoint")
        async with self._pool.connection() as connection:
            group, self._waiting = self._waiting, []
            try:
                await self._send(connection, group)
            except Exception:
                # Where it was committed after all, it is written a second time, to the same effect.
                self._waiting = [*(one for one in group if not one[1].done()), *self._waiting]
                raise

    async def _send(self, connection: psycopg.AsyncConnection[object], group: Sequence[Waiting]) -> None:
        try:
            if len(group) == 1:
                await _execute(connection, group[0][0])
            else:
                async with connection.pipeline():  # on an autocommit connection, one transaction
                    for write, _ in group:
                        await _execute(connection, write)
        except Exception as error:
            if is_outage(error):
                raise
            lost = lease_lost(error, self._lease, "checkpoint")
            if lost is None and len(group) > 1 and not connection.broken:
                # One of them is refused for what it holds; the others are not to suffer for it.
                for one in group:
                    await self._send(connection, [one])
            else:
                _fail(group, lost or error)
        else:
            for _, done in group:
                if not done.done():  # whoever waited for it may have been cancelled
                    done.set_result(None)


async def _execute(connection: psycopg.AsyncConnection[object], write: Write) -> None:
    await connection.execute(write.sql, write.parameters, binary=True)


def _fail(group: Sequence[Waiting], error: BaseException) -> None:
    for _, done in group:
        if done.done():
            continue
        if isinstance(error, asyncio.CancelledError):
            done.cancel()
        else:
            done.set_exception(error)
