"""LangGraph's Postgres store, bound to a tenant and fenced by an attempt's lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from threadmill.core.keys import store_label
from threadmill.workers.lease import Lease, Pool, bound_connection
from threadmill.workers.patience import patiently


class _FencedStore(AsyncPostgresStore):
    """The stock store over connections that are bound and fenced."""

    def __init__(self, pool: Pool, tenant: str, lease: Lease) -> None:
        super().__init__(pool)
        self._pool, self._tenant, self._lease = pool, tenant, lease

    def _ensure_task(self) -> None:
        # The stock store batches calls in a task of its own, which would outlive the attempt. Ours come
        # through `abatch`, which does not use it.
        return

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:  # noqa: ARG002
        async with (
            bound_connection(self._pool, self._tenant, self._lease) as connection,
            connection.cursor(binary=True, row_factory=dict_row) as cursor,
        ):
            yield cursor


class BoundStore(BaseStore):
    """One tenant's items, for one attempt. Costs nothing until a node uses it.

    Every namespace stands under a first label of the tenant's, which callers neither give nor see.
    Each batch is one transaction. Raises LeaseLost where the attempt has lost its lease, reads included.
    """

    supports_ttl = True

    def __init__(self, pool: Pool, tenant: str, lease: Lease) -> None:
        self._pool, self._tenant, self._lease = pool, tenant, lease
        self._label = store_label(tenant)
        self._inner: _FencedStore | None = None
        self._loop = asyncio.get_running_loop()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """For nodes that are plain functions, which LangGraph runs in threads beside the loop.

        Raises InvalidStateError on the loop itself, where waiting would stop every run of the process.
        """
        with suppress(RuntimeError):  # no loop runs in this thread
            if asyncio.get_running_loop() is self._loop:
                raise asyncio.InvalidStateError(
                    "an async node must await the store's async methods: aput, aget, asearch, …"
                )
        return asyncio.run_coroutine_threadsafe(self.abatch(ops), self._loop).result()

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        if self._inner is None:
            self._inner = _FencedStore(self._pool, self._tenant, self._lease)
        inner, labelled = self._inner, [self._labelled(op) for op in ops]
        results = await patiently(lambda: inner.abatch(labelled))
        return [self._unlabelled(result) for result in results]

    def _labelled(self, op: Op) -> Op:
        match op:
            case GetOp() | PutOp():
                return op._replace(namespace=(self._label, *op.namespace))
            case SearchOp():
                return op._replace(namespace_prefix=(self._label, *op.namespace_prefix))
            case ListNamespacesOp():
                return self._labelled_listing(op)

    def _labelled_listing(self, op: ListNamespacesOp) -> ListNamespacesOp:
        # A suffix has something before it, so that its wildcards do not take the label for the caller's.
        conditions = [
            c._replace(path=(self._label if c.match_type == "prefix" else "*", *c.path))
            for c in op.match_conditions or ()
        ]
        own = MatchCondition(match_type="prefix", path=(self._label,))
        depth = None if op.max_depth is None else op.max_depth + 1
        return op._replace(match_conditions=(own, *conditions), max_depth=depth)

    def _unlabelled(self, result: Result) -> Result:
        match result:
            case SearchItem() | Item():
                result.namespace = result.namespace[1:]
            case [SearchItem(), *_]:
                for item in result:
                    item.namespace = item.namespace[1:]  # type: ignore[union-attr]
            case [tuple(), *_]:
                return [namespace[1:] for namespace in result]  # type: ignore[index]
        return result
