"""Tells on Redis that runs are finished or cancelled; what cannot be told is in the ledger."""

from __future__ import annotations

import time
import uuid

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from threadmill.core.notice import cancel_channel, channel, redis_url
from threadmill.core.settings import Settings

# For each answer of Redis, in seconds; the first publication on a connection waits for a few of them.
TIMEOUT = 0.3
# After a failure nothing is published for so long, so that a thousand callers do not wait one after another.
AWAY_SECONDS = 1.0

_log = structlog.get_logger("threadmill.publisher")


class Publisher:
    """Publishes, and waits less than a second for it. Threads may share one."""

    def __init__(self, settings: Settings) -> None:
        url = redis_url(settings)
        self._redis = (
            None
            if url is None
            else Redis.from_url(
                url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
            )
        )
        self._cancelled = cancel_channel(settings)
        self._away_until = float("-inf")

    def tell_finished(self, *run_ids: uuid.UUID | str) -> None:
        """Tells those who wait for the runs."""
        self._publish([(channel(run_id), "") for run_id in run_ids])

    def tell_cancelled(self, *run_ids: uuid.UUID | str) -> None:
        """Tells those who wait for the runs, and the workers that may be executing them."""
        self._publish(
            [(self._cancelled, str(run_id)) for run_id in run_ids]
            + [(channel(run_id), "") for run_id in run_ids]
        )

    def _publish(self, notices: list[tuple[str, str]]) -> None:
        if self._redis is None or not notices or time.monotonic() < self._away_until:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for name, message in notices:
                    pipeline.publish(name, message)
                pipeline.execute()
        except (RedisError, OSError) as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            _log.warning("publisher.unreachable", error=type(error).__name__)

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()
