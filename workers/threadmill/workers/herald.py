"""Rings bells and sends notices from a thread of its own, so that a slow Redis holds up no run."""

from __future__ import annotations

import queue
import threading
import uuid

import structlog
from redis.exceptions import RedisError

from threadmill.core.doorbell import Bell, Doorbell
from threadmill.core.notice import channel, connect_redis
from threadmill.core.settings import Settings

# What does not fit is dropped: the leader rings again, and whoever waits asks the ledger.
MAX_QUEUED = 10_000

_log = structlog.get_logger("threadmill.herald")


class Herald:
    """Takes bells and notices and returns at once."""

    def __init__(self, settings: Settings, doorbell: Doorbell) -> None:
        self._doorbell = doorbell
        self._redis = connect_redis(settings)
        self._queue: queue.Queue[tuple[uuid.UUID | None, Bell | None] | None] = queue.Queue(MAX_QUEUED)
        self._thread = threading.Thread(target=self._work, name="threadmill-herald", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def announce(self, finished: uuid.UUID | None, bell: Bell | None) -> None:
        """Tells those who wait that a run is finished, and rings for the thread's next."""
        try:
            self._queue.put_nowait((finished, bell))
        except queue.Full:
            _log.warning("herald.full", limit=MAX_QUEUED)

    def stop(self) -> None:
        """Returns when all that was taken has been sent, or given up."""
        self._queue.put(None)
        self._thread.join()
        if self._redis is not None:
            self._redis.close()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            finished, bell = item
            if bell is not None:
                self._doorbell.ring([bell])
            if finished is not None and self._redis is not None:
                try:
                    self._redis.publish(channel(finished), "")
                except (RedisError, OSError) as error:
                    _log.warning("herald.unreachable", error=type(error).__name__)
