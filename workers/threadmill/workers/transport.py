"""Kombu's Redis transport, made to outlive what is in the queue and is no message of its own.

Kombu reads the envelope (JSON, with the body in it) where it pops it, and takes it for its own: anything else
ends the consumer, and with it the worker, by an error of whatever kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from kombu.transport import redis, virtual


class QoS(virtual.QoS):
    """Fetches a message only where there is room for one more bell.

    Kombu's own for Redis also writes into Redis what was fetched and is not yet acknowledged, so that it is
    not lost with its worker: two round trips for each. A bell may be lost.
    """

    # Handed over by the pool, as kombu makes it.
    has_room: Callable[[], bool] = staticmethod(lambda: True)

    def can_consume(self) -> bool:
        return self.has_room() and bool(super().can_consume())  # type: ignore[no-untyped-call]


class Channel(redis.Channel):
    """As kombu's own, but what cannot be read is passed over."""

    ack_emulation = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self.QoS = cast(Any, QoS)  # without `ack_emulation` kombu has just put its own there

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            self.connection.on_garbage(error, None)
            return True


class Transport(redis.Transport):
    """As kombu's own, but it delivers only what can be made a message."""

    Channel = Channel
    # Is told of what is passed over: the error, and the queue if it is known.
    on_garbage: Callable[[Exception, str | None], None] = staticmethod(lambda *_: None)

    def _deliver(self, message: Any, queue: Any) -> None:
        try:
            _check_envelope(message, self.channels)
        except Exception as error:
            self.on_garbage(error, queue)
        else:
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]


def _check_envelope(message: Any, channels: list[Any]) -> None:
    """Raises whatever making a message of it would raise."""
    properties = message["properties"]
    if not isinstance(properties["delivery_tag"], str):
        raise TypeError("delivery_tag")
    dict(properties.get("delivery_info") or {})
    dict(message.get("headers") or {})
    if (body := message.get("body")) and channels:
        channels[0].decode_body(body, properties.get("body_encoding"))
