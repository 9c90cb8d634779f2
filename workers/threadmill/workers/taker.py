"""Takes ready runs straight from the ledger, as many as there are free slots.

A bell wakes a worker; what else is ready needs none. A worker looks when it has answered a bell and has slots
left, when a slot has become free, and every `sweep_interval`: a bell may be lost in more ways than its sender
can notice. While Redis is away altogether no bell says that another tenant waits for a slot, so then each
worker rings for itself, as else the leader does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import structlog

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell, bells_of
from threadmill.core.floors import Looks
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Rows, Step
from threadmill.core.transitions import ring
from threadmill.workers.claims import Claimed, Claims
from threadmill.workers.patience import is_outage
from threadmill.workers.slots import Slots

# No more are taken in one look, so that the others, who were woken at the same time, get some.
MAX_TAKEN = 16
# So many bells are lined up at once while there is no Redis.
MAX_LINED_UP = 50
# Two looks are so far apart at least, in seconds, but where the first has found all that it could take.
REST = 0.02
# Another worker may just have taken what stands ready, and be about to claim it.
PATIENCE_WITHOUT_REDIS = 0.5

_log = structlog.get_logger("threadmill.taker")


class Taker:
    """Looks when it is told to, and every `sweep_interval`."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncDatabase,
        slots: Slots,
        claims: Claims,
        *,
        redis_is_away: Callable[[], bool],
        execute: Callable[[Claimed], None],
        answer: Callable[[Bell], Coroutine[Any, Any, None]],
    ) -> None:
        """execute: has a run executed in a slot that is taken for it. answer: executes the run of a bell
        when there is a slot, and raises nothing."""
        self._settings = settings
        self._database = database
        self._slots = slots
        self._claims = claims
        self._redis_is_away = redis_is_away
        self._execute = execute
        self._answer = answer
        self._answers: set[asyncio.Task[None]] = set()
        self._looks = Looks()  # for what to ring for
        self._wanted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._rests = 0.0  # seconds until the next look for what to take

    def look(self) -> None:
        """Has it look soon."""
        self._wanted.set()

    def stop(self) -> None:
        """Ends `take_on` after the look that is under way: what it takes is known, and not broken off."""
        self._stopping.set()
        self._wanted.set()

    async def take_on(self) -> None:
        """Takes runs until it is stopped; those that it took go on."""
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(self._settings.sweep_interval):
                    await self._wanted.wait()
            except TimeoutError:
                if self._redis_is_away():
                    await self._quietly(self._ring())
            self._wanted.clear()
            while await self._quietly(self._take()):
                pass
            await self._rest()

    async def _rest(self) -> None:
        """Until it may look again, or is stopped."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(REST, self._rests)):
                await self._stopping.wait()

    async def _quietly(self, look: Coroutine[Any, Any, bool]) -> bool:
        try:
            return await look
        except Exception as error:  # whatever it is, it must not be the last look
            if not is_outage(error):
                _log.warning("taker.failed", error=type(error).__name__)
            return False

    async def _take(self) -> bool:
        """Whether there may be more to take."""
        number = min(self._slots.free, MAX_TAKEN)
        if number <= 0 or self._slots.is_waited_for or self._stopping.is_set():
            return False
        self._slots.take(number)
        taken: list[Claimed] = []
        try:
            taken = await self._claims.take(number)
            self._rests = 0.0 if taken else self._claims.looks.rest
        finally:
            self._slots.give_back(number - len(taken))
        for claimed in taken:
            self._execute(claimed)
        if taken:
            _log.debug("taker.took", runs=len(taken))
        return len(taken) > 0

    async def _ring(self) -> bool:
        """Lines up what the leader would ring for."""
        began = self._looks.begin()
        rows = await self._database.carry_out(_rung({"limit": MAX_LINED_UP, **began}))
        self._looks.learn(began, rows[0])
        bells = bells_of(rows)
        for bell in bells:
            task = asyncio.create_task(self._answer(bell))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
        if bells:
            _log.info("taker.lined_up", runs=len(bells))
        return False


def _rung(look: Mapping[str, Any]) -> Plan[Rows]:
    (rows,) = yield Batch([Step(ring(), {**look, "patience": PATIENCE_WITHOUT_REDIS})])
    return rows
