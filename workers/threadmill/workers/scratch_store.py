"""A store for a trial: it reads the tenant's items, and keeps what is written to itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

Place = tuple[tuple[str, ...], str]


class ScratchStore(BaseStore):
    """Reads through to the store beneath, without prolonging an item's life; what is put stays here.

    A search by meaning ranks what was put after what was found.
    """

    supports_ttl = True

    def __init__(self, beneath: BaseStore) -> None:
        self._beneath = beneath
        self._put = InMemoryStore()
        self._changed: set[Place] = set()  # put or deleted here, so that what is beneath does not count
        self._loop = asyncio.get_running_loop()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """For nodes that are plain functions, which LangGraph runs in threads beside the loop."""
        return asyncio.run_coroutine_threadsafe(self.abatch(ops), self._loop).result()

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return [await self._do(op) for op in ops]

    async def _do(self, op: Op) -> Result:
        match op:
            case PutOp():
                self._changed.add((op.namespace, op.key))
                return self._put.batch([op._replace(ttl=None)])[0]
            case GetOp():
                if (op.namespace, op.key) in self._changed:
                    return self._put.batch([op])[0]
                return (await self._beneath.abatch([op._replace(refresh_ttl=False)]))[0]
            case SearchOp():
                return await self._search(op)
            case ListNamespacesOp():
                return await self._list(op)

    async def _search(self, op: SearchOp) -> list[SearchItem]:
        most = op.offset + op.limit
        # What is beneath may be hidden by what was changed here.
        wide = op._replace(offset=0, limit=most + len(self._changed), refresh_ttl=False)
        (found,) = await self._beneath.abatch([wide])
        (own,) = self._put.batch([op._replace(offset=0, limit=most, query=None)])
        assert isinstance(found, list) and isinstance(own, list)
        items = [item for item in found if isinstance(item, SearchItem) and not self._hides(item)]
        items += [item for item in own if isinstance(item, SearchItem)]
        return items[op.offset : most]

    def _hides(self, item: Item) -> bool:
        return (tuple(item.namespace), item.key) in self._changed

    async def _list(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        """A namespace of which all items were deleted here is listed still."""
        wide = op._replace(offset=0, limit=op.offset + op.limit)
        (found,), (own,) = await self._beneath.abatch([wide]), self._put.batch([wide])
        assert isinstance(found, list) and isinstance(own, list)
        names = sorted({tuple(name) for name in (*found, *own) if isinstance(name, tuple)})
        return names[op.offset : op.offset + op.limit]
