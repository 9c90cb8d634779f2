"""Work that goes on although its attempt is over, and cannot be ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from threadmill.workers.attempts import Attempt

POLL_SECONDS = 1.0

_log = structlog.get_logger("threadmill.worker")


class StuckWork:
    """Nodes in threads, and coroutines that swallow being cancelled. What they write is refused.

    One that is not over after `patience` seconds would keep its thread for ever, so the process is to be
    replaced: `replace` is called, once.
    """

    def __init__(self, patience: float, replace: Callable[[], None]) -> None:
        self._patience = patience
        self._replace = replace
        self._watched: set[asyncio.Task[None]] = set()
        self._asked = False

    def watch(self, attempt: Attempt, work: asyncio.Task[Any], on_end: Callable[[], Awaitable[None]]) -> None:
        """Watches over what is left of an attempt. on_end: is awaited when it is over after all."""
        watcher = asyncio.create_task(self._watch(attempt, work, on_end), name="threadmill-stuck")
        self._watched.add(watcher)
        watcher.add_done_callback(self._watched.discard)

    async def _watch(
        self, attempt: Attempt, work: asyncio.Task[Any], on_end: Callable[[], Awaitable[None]]
    ) -> None:
        run, began = attempt.run, time.monotonic()
        while not work.done() or attempt.threads:
            if not self._asked and time.monotonic() - began > self._patience:
                self._asked = True
                _log.error("worker.stuck", run=str(run["id"]), graph=run["graph"], threads=attempt.threads)
                self._replace()
            await asyncio.sleep(POLL_SECONDS)
        if not work.cancelled():
            work.exception()  # it is read, so that asyncio does not complain of it
        await on_end()
