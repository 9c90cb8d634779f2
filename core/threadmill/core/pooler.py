"""Connections through a pooler in transaction mode, such as PgBouncer: each transaction has another session.

Nothing is left in a session then, and nothing expected there but what the login's own defaults put into each.

Nor may anything be sent between two transactions: the pooler lends a session to whoever sends, until Postgres
says that it is ready for the next query. psycopg ends a pipeline with a Sync and, behind it, a Flush, which
Postgres does not answer. Where the Sync has been answered by then, the Flush borrows a session that is not
given back until the connection is used again. A few idle connections like that, and there is none left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
from psycopg import generators
from psycopg._pipeline_base import BasePipeline
from psycopg.abc import PQGen
from psycopg.rows import DictRow


class _EndsWithSync(BasePipeline):
    def _exit_gen(self) -> PQGen[None]:
        try:
            self._enqueue_sync()
            yield from self._communicate_gen()
        finally:
            if self.result_queue:
                yield from generators.send(self.pgconn)
                yield from self._fetch_gen(flush=False)


class _Pipeline(_EndsWithSync, psycopg.Pipeline):
    pass


class _AsyncPipeline(_EndsWithSync, psycopg.AsyncPipeline):
    pass


class PooledConnection(psycopg.Connection[DictRow]):
    """A connection that sends nothing between two transactions."""

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        if self._pipeline is None:
            self._pipeline = _Pipeline(self)
        with super().pipeline() as pipeline:
            yield pipeline


class AsyncPooledConnection(psycopg.AsyncConnection[DictRow]):
    """A connection that sends nothing between two transactions."""

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        if self._pipeline is None:
            self._pipeline = _AsyncPipeline(self)
        async with super().pipeline() as pipeline:
            yield pipeline
