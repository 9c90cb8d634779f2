"""What graphs tell while they run, sent to Redis in the background: no run waits for its readers."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog
from redis.exceptions import RedisError

from threadmill.core.event_stream import stream_key
from threadmill.core.notice import connect_redis_async
from threadmill.core.settings import Settings
from threadmill.workers.lease import Lease
from threadmill.workers.output import as_json

# What waits to be sent, of all runs of the process; where Redis takes less, the oldest are dropped.
MAX_WAITING = 10_000
# So many go out together.
BATCH = 500
# After a failure nothing is sent for so long.
AWAY_SECONDS = 1.0
# How long the end of a run's stream waits for what is still to be sent, in seconds.
LAST_WORDS = 1.0

Entry = tuple[str, dict[str, str | int]]

_log = structlog.get_logger("threadmill.events")


class EventWriter:
    """Sends the events of one process. Belongs to the loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = connect_redis_async(settings)
        self._waiting: deque[Entry] = deque(maxlen=MAX_WAITING)
        self._sender: asyncio.Task[None] | None = None
        self._away = False

    def stream(self, lease: Lease) -> EventStream:
        """The stream into which this attempt writes."""
        return EventStream(self, lease, self._settings.max_output_bytes)

    def put(self, key: str, fields: dict[str, str | int]) -> None:
        """Has the entry sent, soon; it returns at once."""
        if self._redis is None:
            return
        self._waiting.append((key, fields))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="threadmill-events")

    async def flush(self) -> None:
        """Returns when all that waits has been sent, or after a moment."""
        if self._sender is not None and not self._away:
            await asyncio.wait({self._sender}, timeout=LAST_WORDS)

    async def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
        if self._redis is not None:
            await self._redis.aclose()

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    await self._send(batch)
                    self._away = False
                except (RedisError, OSError) as error:
                    # They are gone, and the reader sees by their numbers that some are missing.
                    if not self._away:
                        _log.warning("events.redis_away", error=type(error).__name__, lost=len(batch))
                    self._away = True
                    await asyncio.sleep(AWAY_SECONDS)
        finally:
            self._sender = None

    async def _send(self, batch: Sequence[Entry]) -> None:
        assert self._redis is not None
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key, fields in batch:
                pipeline.xadd(
                    key,
                    fields,  # type: ignore[arg-type]
                    maxlen=self._settings.max_stream_events,
                    approximate=False,
                )
            for key in {key for key, _ in batch}:
                pipeline.pexpire(key, round(self._settings.stream_ttl * 1000))
            await pipeline.execute()


class EventStream:
    """The events of one attempt."""

    def __init__(self, writer: EventWriter, lease: Lease, max_bytes: int) -> None:
        self._writer = writer
        self._lease = lease
        self._max_bytes = max_bytes
        self._key = stream_key(lease.run_id)
        self._number = 0

    def write(self, mode: str, namespace: Sequence[str], data: Any) -> None:
        """Tells it, unless the lease is known to be lost. What is too large is told by a marker."""
        if self._lease.lost:
            self._lease.refused += 1
            return
        self._number += 1
        self._writer.put(
            self._key,
            {
                "attempt": self._lease.attempt,
                "number": self._number,
                "mode": mode,
                "namespace": json.dumps(list(namespace)),
                "data": json.dumps(as_json(data, self._max_bytes)),
            },
        )

    async def flush(self) -> None:
        """Returns when all has been sent, or after a moment."""
        await self._writer.flush()
