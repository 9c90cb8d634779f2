"""What binds a write of LangGraph's to a tenant and to the attempt that makes it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import psycopg
import structlog
from psycopg.pq import PipelineStatus
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

from threadmill.core.errors import DatabaseUnavailable, LeaseLost
from threadmill.core.models import SCHEMA
from threadmill.core.transitions import TENANT_SETTING
from threadmill.workers.patience import is_outage

FENCED = "TM001"  # the SQLSTATE that the fence raises

_log = structlog.get_logger("threadmill.lease")

Pool = AsyncConnectionPool[psycopg.AsyncConnection[DictRow]]

_BIND = f"select set_config('{TENANT_SETTING}', %s, true)"
_BIND_AND_FENCE = f"{_BIND}, {SCHEMA}.fence(%s, %s)"


@dataclass
class Lease:
    """The right of one attempt to write into its run's thread.

    lost: the worker has heard that it is gone; nothing is sent any more, not even to be refused.
    refused: how many writes were refused.
    """

    run_id: uuid.UUID
    attempt: int
    thread_id: str
    lost: bool = False
    refused: int = 0

    def check(self, what: str) -> None:
        """Raises LeaseLost where it is known to be lost. what: is to be written."""
        if self.lost:
            raise self.refuse(what)

    def refuse(self, what: str) -> LeaseLost:
        """The error for a write that was refused, which is logged and counted."""
        self.refused += 1
        _log.warning("write.refused", what=what, run=str(self.run_id), attempt=self.attempt)
        return self.lost_now()

    def lost_now(self) -> LeaseLost:
        """The error that says so; from here on the lease is known to be lost."""
        self.lost = True
        return LeaseLost(str(self.run_id), self.attempt)


@asynccontextmanager
async def bound_connection(
    pool: Pool, tenant: str, lease: Lease | None
) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    """A connection in pipeline mode, in one transaction bound to the tenant and, given a lease, fenced.

    All statements of the block go out together and are committed at its end, in one round trip if none of
    them is waited for; a block that raises commits none. The fence's row lock lasts until then, so what takes
    the run away waits for the write. Raises LeaseLost, with nothing written.
    """
    if lease is not None:
        lease.check("item")
    async with pool.connection() as connection:
        try:
            # On an autocommit connection a pipeline is one transaction, up to its end.
            async with connection.pipeline():
                if lease is None:
                    await connection.execute(_BIND, (tenant,))
                else:
                    await connection.execute(_BIND_AND_FENCE, (tenant, lease.run_id, lease.attempt))
                try:
                    yield connection
                except BaseException:
                    await _undo(connection)
                    raise
        except psycopg.Error as error:
            if is_outage(error):
                raise DatabaseUnavailable("the ledger", type(error).__name__) from error
            raise lease_lost(error, lease, "item") or error from None


def lease_lost(error: Exception, lease: Lease | None, what: str) -> LeaseLost | None:
    """LeaseLost, if that is what the error of a write means; else None. what: was to be written."""
    if isinstance(error, psycopg.Error) and error.sqlstate == FENCED and lease is not None:
        return lease.refuse(what)
    return None


async def _undo(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Takes back what the pipeline has sent, which its end would commit even where the block raised."""
    if connection.info.pipeline_status == PipelineStatus.ON:  # else Postgres has refused it already
        with suppress(psycopg.OperationalError):  # without a connection there is nothing to commit
            await connection.execute("rollback")


@asynccontextmanager
async def bound_transaction(pool: Pool, tenant: str) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    """A connection in one transaction bound to the tenant; those that the caller opens in it are savepoints.

    It is of the isolation that the stock saver's pruning asks for, which cannot be changed in a savepoint.
    """
    async with pool.connection() as connection, connection.transaction():
        await connection.execute("set transaction isolation level repeatable read")
        await connection.execute(_BIND, (tenant,))
        yield connection
