"""Celery's consumer, made to outlive a broker that goes away at a bad moment, and messages of any kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from celery import signals
from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import redis

from threadmill.core.celery_app import RUN_TASK
from threadmill.core.doorbell import Bell
from threadmill.workers.pool import AsyncioPool
from threadmill.workers.task_events import TaskEvents
from threadmill.workers.transport import Transport
from threadmill.workers.undeliverable import Undeliverable, UndeliverableMessages, kept

_log = structlog.get_logger("threadmill.worker")
_celery_log = get_logger(__name__)

_NO_ENVELOPE = "what stood in the queue is no message of Celery's"
_NO_TASK = "the message names no task"
_UNKNOWN_TASK = "no worker here knows its task"
_REFUSED = "its content type is not accepted"
_UNREADABLE = "its body cannot be decoded"
_NO_BELL = "its arguments name no run"


class Consumer(CeleryConsumer):
    """As Celery's own, but that no error of tidying up after a lost connection ends the worker.

    Where a message was not yet acknowledged when the connection broke, kombu's Redis transport fails on
    closing it (AttributeError, in `QoS.restore_unacked`), and Celery takes that for unrecoverable. What was
    not acknowledged need not be restored: the ledger knows which runs are ready.

    A message that cannot be a bell is acknowledged and recorded, where Celery would log it with its body, or
    end the worker.
    """

    # Handed over by `worker.run_worker`, as Celery makes the consumer; None only logs.
    undeliverable: UndeliverableMessages | None = None
    task_events: TaskEvents | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.task_events is not None:
            self.task_events.sent_by(self)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:
            _log.warning("broker.untidy_end", error=type(error).__name__)
            connection: Any = getattr(self, "connection", None)
            self.connection = None
            if connection is not None:
                connection.collect(socket_timeout=1)

    def ensure_connected(self, conn: Any) -> Any:
        if conn.get_transport_cls() is redis.Transport:
            conn.transport_cls = type("Transport", (Transport,), {"on_garbage": staticmethod(self._garbage)})
        return super().ensure_connected(conn)

    def _garbage(self, error: Exception, queue: str | None) -> None:
        self._record(Undeliverable(type(error).__name__, _NO_ENVELOPE, queue=kept(queue)))

    def update_strategies(self) -> None:
        super().update_strategies()
        for name, strategy in self.strategies.items():
            is_bell = name == RUN_TASK
            if is_bell and isinstance(self.pool, AsyncioPool):
                strategy = self._hand_over
            self.strategies[name] = _checked(strategy, is_bell=is_bell)

    def _hand_over(self, message: Any, body: Any, acknowledge: Callable[..., None], *_: Any) -> None:  # noqa: ARG002
        """Hands a bell to the pool, without what Celery makes of a task, which takes as long as a claim."""
        args, _, _ = message.payload
        self.pool.answer(Bell.of(*args), partial(acknowledge, _celery_log, self.connection_errors))

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's signature
        self._take(message, "UnknownMessage", _NO_TASK)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        self._take(message, "NotRegistered", _UNKNOWN_TASK)
        headers = message.headers or {}
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=headers.get("task"), id=headers.get("id")
        )

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        words = _REFUSED if isinstance(exc, ContentDisallowed) else _NO_BELL
        self._take(message, type(exc).__name__, words)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        words = _REFUSED if isinstance(exc, ContentDisallowed) else _UNREADABLE
        self._take(message, type(exc).__name__, words)

    def _take(self, message: Any, error: str, words: str) -> None:
        """Acknowledges the message, and records what is known of it."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        delivery = message.delivery_info if isinstance(message.delivery_info, dict) else {}
        self._record(
            Undeliverable(
                error,
                words,
                task=kept(headers.get("task")),
                message_id=kept(headers.get("id")) or kept(message.properties.get("correlation_id")),
                queue=kept(delivery.get("routing_key")),
                content_type=kept(message.content_type),
                length=_length(message.body),
            )
        )
        message.ack_log_error(_celery_log, self.connection_errors)

    def _record(self, found: Undeliverable) -> None:
        if self.undeliverable is not None:
            self.undeliverable.record(found)
        else:
            _log.warning("worker.undeliverable", error=found.type, reason=found.message, task=found.task)


def _length(body: Any) -> int | None:
    return len(body) if isinstance(body, (bytes, str, memoryview)) else None


def _checked(strategy: Callable[..., Any], *, is_bell: bool) -> Callable[..., Any]:
    """The strategy for messages whose body can be read; of others Celery is told in its own words.

    Without this, what is wrong with a body is found in the pool, or in Celery where nothing catches it.
    """

    def handle(message: Any, body: Any, *rest: Any) -> Any:
        try:
            args, kwargs, _ = message.payload
            if not isinstance(args, list) or not isinstance(kwargs, dict):
                raise TypeError
            if not isinstance(message.headers.get("id"), str):
                raise TypeError
            if is_bell:
                _check_bell(args)
        except (ContentDisallowed, DecodeError):
            raise
        except Exception as error:
            raise InvalidTaskError(type(error).__name__) from None
        return strategy(message, body, *rest)

    return handle


def _check_bell(args: list[Any]) -> None:
    bell = Bell.of(*args)
    if not all(isinstance(part, str) for part in bell[1:4]) or not isinstance(bell.alone, bool):
        raise TypeError
