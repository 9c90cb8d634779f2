"""How many runs a process executes at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """So many at once; the others wait in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._limit = limit
        self._wanted = 0  # taken or waited for

    @property
    def free(self) -> int:
        """How many could be taken without waiting."""
        return max(self._limit - self._wanted, 0)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """A slot for as long as it lasts."""
        self._wanted += 1
        try:
            async with self._free:
                yield
        finally:
            self._wanted -= 1
