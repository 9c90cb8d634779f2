"""What goes over Redis channels: that a run is finished, for those who wait; that one is cancelled, for the
worker that executes it.

A notice may be lost, so whoever waits asks the ledger too, at a slow pace.
"""

from __future__ import annotations

import uuid

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from threadmill.core.settings import Settings


def channel(run_id: uuid.UUID | str) -> str:
    """The Redis channel on which the end of a run is announced."""
    return f"threadmill:finished:{run_id}"


def cancel_channel(settings: Settings) -> str:
    """The Redis channel on which the ids of cancelled runs are told to all workers of a queue."""
    return f"threadmill:cancelled:{settings.queue}"


def redis_url(settings: Settings) -> str | None:
    """The broker's URL as redis-py takes it; None where the broker is no Redis."""
    url = settings.broker_url
    if url.startswith(("redis://", "rediss://")):
        return url
    if url.startswith(("redis+socket://", "socket://")):
        path, _, query = url.partition("://")[2].partition("?")
        return f"unix://{path}?{query.replace('virtual_host', 'db')}" if query else f"unix://{path}"
    return None


def connect_redis(settings: Settings, *, timeout: float = 1.0) -> Redis | None:
    """A blocking client of the broker's Redis, not connected yet; None where the broker is no Redis."""
    url = redis_url(settings)
    return (
        None if url is None else Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    )


def connect_redis_async(settings: Settings, *, timeout: float = 1.0) -> AsyncRedis | None:
    """An asyncio client of the broker's Redis, not connected yet; None where the broker is no Redis."""
    url = redis_url(settings)
    return (
        None
        if url is None
        else AsyncRedis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    )
