"""Kombu's connections for publishing, made to keep their Redis client.

Kombu makes a client for each message, which is a quarter of what it costs to ring.
"""

from __future__ import annotations

from typing import Any

import kombu.connection
from kombu.transport import redis


class Channel(redis.Channel):
    """As kombu's own, with one client for as long as it has one pool of connections."""

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept


class Transport(redis.Transport):
    """Kombu's own with such channels."""

    Channel = Channel


class ConnectionPool(kombu.connection.ConnectionPool):
    """Kombu's own, of connections that have this transport where kombu would take its own for Redis."""

    def new(self) -> Any:
        connection = super().new()  # type: ignore[no-untyped-call]
        if connection.get_transport_cls() is redis.Transport:
            connection.transport_cls = Transport
        return connection
