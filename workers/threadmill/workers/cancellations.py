"""Hears on Redis which runs were taken away, and by the way whether Redis answers at all."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import structlog
from redis import Redis
from redis.exceptions import RedisError

from threadmill.core.notice import cancel_channel, connect_redis
from threadmill.core.settings import Settings

PING_SECONDS = 1.0
AWAY_SECONDS = 3.0  # without a word, although it was asked
STOP_LATENCY = 0.2

_log = structlog.get_logger("threadmill.cancellations")


class Cancellations:
    """Listens in a thread of its own, so that a blocked loop does not take Redis for away.

    A signal may be lost: the heartbeat asks the ledger too.
    """

    def __init__(self, settings: Settings, on_cancelled: Callable[[uuid.UUID], None]) -> None:
        self._channel = cancel_channel(settings)
        self._redis = connect_redis(settings)
        self._on_cancelled = on_cancelled
        self._stopping = threading.Event()
        self._heard_at = time.monotonic()
        self._told_away = False
        self._thread = threading.Thread(target=self._work, name="threadmill-cancellations", daemon=True)

    @property
    def redis_is_away(self) -> bool:
        """Whether Redis has been silent for a while. A broker that is no Redis is taken to be there."""
        return self._redis is not None and time.monotonic() - self._heard_at > AWAY_SECONDS

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self._redis is not None:
            self._redis.close()

    def _work(self) -> None:
        if self._redis is None:
            return
        while not self._stopping.is_set():
            try:
                self._listen(self._redis)
            except (RedisError, OSError) as error:
                if not self._told_away:  # once, not every second
                    _log.warning("redis.away", error=type(error).__name__)
                self._told_away = True
                self._stopping.wait(PING_SECONDS)

    def _listen(self, redis: Redis) -> None:
        """Returns when Redis has been silent for too long: a connection that says nothing may be dead."""
        with redis.pubsub() as pubsub:
            pubsub.subscribe(self._channel)
            connected_at = pinged_at = time.monotonic()
            while not self._stopping.is_set():
                message = pubsub.get_message(timeout=STOP_LATENCY)
                now = time.monotonic()
                if message is not None:
                    if self._told_away:
                        _log.info("redis.back", seconds=round(now - self._heard_at, 1))
                    self._told_away = False
                    self._heard_at = now
                    self._tell(message)
                elif now - max(self._heard_at, connected_at) > AWAY_SECONDS:
                    if not self._told_away:
                        _log.warning("redis.silent", seconds=round(now - self._heard_at, 1))
                    self._told_away = True
                    return
                if now - pinged_at > PING_SECONDS:
                    pinged_at = now
                    pubsub.ping()

    def _tell(self, message: dict[str, object]) -> None:
        if message["type"] != "message":
            return
        try:
            run_id = uuid.UUID(bytes(message["data"]).decode())  # type: ignore[call-overload]
        except (ValueError, TypeError):  # whoever may connect may publish, anything
            _log.warning("cancellations.no_run")
        else:
            self._on_cancelled(run_id)
