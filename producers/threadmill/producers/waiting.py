"""Waiting for a run's notice: on Redis while it answers, on the clock while it does not."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from redis.exceptions import RedisError

from threadmill.core.notice import channel, connect_redis, connect_redis_async
from threadmill.core.settings import Settings

# How long a waiter trusts Redis before it asks the ledger again, and how long it sleeps without Redis.
TRUST_SECONDS = 2.0
ALONE_SECONDS = 0.25


class Notices:
    """The notices of runs for callers that block; each waiting thread holds one connection to Redis."""

    def __init__(self, settings: Settings) -> None:
        self._redis = connect_redis(settings)

    @contextmanager
    def of(self, run_id: str) -> Iterator[Callable[[float], None]]:
        """A function that returns when the run may be finished, and after the given seconds at the latest."""
        if self._redis is None:
            yield _sleep
            return
        pubsub = self._redis.pubsub()
        try:
            try:
                pubsub.subscribe(channel(run_id))
                pubsub.get_message(timeout=1)  # the confirmation: from here on no notice is missed
            except (RedisError, OSError):
                yield _sleep
                return

            def wait(seconds: float) -> None:
                try:
                    pubsub.get_message(timeout=min(seconds, TRUST_SECONDS))
                except (RedisError, OSError):
                    _sleep(seconds)

            yield wait
        finally:
            pubsub.close()

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()


def _sleep(seconds: float) -> None:
    time.sleep(min(seconds, ALONE_SECONDS))


class AsyncNotices:
    """The notices of runs for asyncio callers; all waiters share one connection to Redis."""

    def __init__(self, settings: Settings) -> None:
        self._redis = connect_redis_async(settings)
        self._pubsub = None if self._redis is None else self._redis.pubsub(ignore_subscribe_messages=True)
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._reader: asyncio.Task[None] | None = None
        self._subscribing = asyncio.Lock()  # two that wait at once must not each start a reader

    @asynccontextmanager
    async def of(self, run_id: str) -> AsyncIterator[Callable[[float], Awaitable[None]]]:
        """A coroutine function that returns as the one of `Notices.of` does."""
        name, event = channel(run_id), asyncio.Event()
        self._waiters[name].add(event)
        try:
            await self._subscribe(name)

            async def wait(seconds: float) -> None:
                listening = self._reader is not None and not self._reader.done()
                try:
                    async with asyncio.timeout(min(seconds, TRUST_SECONDS if listening else ALONE_SECONDS)):
                        await event.wait()
                except TimeoutError:
                    await self._subscribe(name)  # Redis may be back
                event.clear()

            yield wait
        finally:
            self._waiters[name].discard(event)
            if not self._waiters[name]:
                del self._waiters[name]
                await self._unsubscribe(name)

    async def _subscribe(self, name: str) -> None:
        if self._pubsub is None:
            return
        async with self._subscribing:
            try:
                if self._reader is None or self._reader.done():
                    await self._pubsub.subscribe(*self._waiters)
                    self._reader = asyncio.create_task(self._read(), name="threadmill-notices")
                else:
                    await self._pubsub.subscribe(name)
            except (RedisError, OSError):
                self._stop_reading()

    async def _unsubscribe(self, name: str) -> None:
        try:
            if self._pubsub is not None and self._reader is not None:
                await self._pubsub.unsubscribe(name)
        except (RedisError, OSError):
            self._stop_reading()

    async def _read(self) -> None:
        assert self._pubsub is not None
        try:
            while self._waiters:
                message = await self._pubsub.get_message(timeout=TRUST_SECONDS)
                if message is not None:
                    for event in self._waiters.get(message["channel"].decode(), ()):
                        event.set()
        except (RedisError, OSError):
            pass  # the next wait without a reader asks the ledger, then subscribes again

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._pubsub is not None:
            await self._pubsub.aclose()
        if self._redis is not None:
            await self._redis.aclose()
