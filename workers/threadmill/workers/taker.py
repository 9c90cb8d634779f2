"""Takes ready runs straight from the ledger, where their bells do not arrive.

A bell may be lost in more ways than its sender can notice: popped by a worker that died, flushed, sent into
a connection that nobody reads. So each worker that is free looks for runs whose bell went unanswered, and
while Redis is away altogether for any that are ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell, bell_of
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Rows, Step
from threadmill.core.transitions import ring_again
from threadmill.workers.patience import is_outage
from threadmill.workers.slots import Slots

# No more are taken in one look, so that the others get some.
MAX_TAKEN = 50
# Another worker may just have taken what stands ready, and be about to claim it.
PATIENCE_WITHOUT_REDIS = 0.5

_log = structlog.get_logger("threadmill.taker")


class Taker:
    """Looks every `sweep_interval`, as long as there is a free slot."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncDatabase,
        slots: Slots,
        *,
        redis_is_away: Callable[[], bool],
        answer: Callable[[Bell], Coroutine[Any, Any, None]],
    ) -> None:
        """answer: executes the run of a bell, in a slot of its own, and raises nothing."""
        self._settings = settings
        self._database = database
        self._slots = slots
        self._redis_is_away = redis_is_away
        self._answer = answer
        self._answers: set[asyncio.Task[None]] = set()

    async def take_on(self) -> None:
        """Takes runs until it is cancelled; those that it took go on."""
        while True:
            await asyncio.sleep(self._settings.sweep_interval)
            if self._slots.free:
                try:
                    await self._take(min(self._slots.free, MAX_TAKEN))
                except Exception as error:  # whatever it is, it must not be the last look
                    if not is_outage(error):
                        _log.warning("taker.failed", error=type(error).__name__)

    async def _take(self, limit: int) -> None:
        away = self._redis_is_away()
        # Sooner than the leader rings again, as what loses one bell may lose the next.
        patience = PATIENCE_WITHOUT_REDIS if away else self._settings.ring_again_after / 2
        rows = await self._database.carry_out(_ready(limit, patience))
        for row in rows:
            task = asyncio.create_task(self._answer(bell_of(row)))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
        if rows:
            _log.info("taker.took", runs=len(rows), redis_away=away)


def _ready(limit: int, patience: float) -> Plan[Rows]:
    (rows,) = yield Batch([Step(ring_again(), {"limit": limit, "patience": patience})])
    return rows
