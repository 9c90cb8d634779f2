"""Rings bells and sends notices from a thread of its own, so that a slow Redis holds up no run."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable

import structlog

from threadmill.core.doorbell import Bell, Doorbell
from threadmill.core.publisher import Publisher
from threadmill.core.settings import Settings

# What does not fit is dropped: the leader rings again, and whoever waits asks the ledger.
MAX_QUEUED = 10_000

_log = structlog.get_logger("threadmill.herald")


class Herald:
    """Takes bells and notices and returns at once."""

    def __init__(self, settings: Settings, doorbell: Doorbell) -> None:
        self._doorbell = doorbell
        self._publisher = Publisher(settings)
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(MAX_QUEUED)
        self._thread = threading.Thread(target=self._work, name="threadmill-herald", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def announce(self, finished: uuid.UUID | None, bell: Bell | None) -> None:
        """Tells those who wait that a run is finished, and rings for the thread's next."""
        self._take(lambda: self._send(finished, bell))

    def announce_cancelled(self, run_id: uuid.UUID) -> None:
        """Tells those who wait for the run, and the worker that may be executing it."""
        self._take(lambda: self._publisher.tell_cancelled(run_id))

    def stop(self) -> None:
        """Returns when all that was taken has been sent, or given up: within a second or two."""
        self._queue.put(None)
        self._thread.join()
        self._publisher.close()

    def _take(self, errand: Callable[[], object]) -> None:
        try:
            self._queue.put_nowait(errand)
        except queue.Full:
            _log.warning("herald.full", limit=MAX_QUEUED)

    def _send(self, finished: uuid.UUID | None, bell: Bell | None) -> None:
        if bell is not None:
            self._doorbell.ring([bell])
        if finished is not None:
            self._publisher.tell_finished(finished)

    def _work(self) -> None:
        while (errand := self._queue.get()) is not None:
            errand()
