"""Celery's consumer, made to outlive a broker that goes away at a bad moment."""

from __future__ import annotations

from typing import Any

import structlog
from celery.worker.consumer import Consumer as CeleryConsumer

_log = structlog.get_logger("threadmill.worker")


class Consumer(CeleryConsumer):
    """As Celery's own, but that no error of tidying up after a lost connection ends the worker.

    Where a message was not yet acknowledged when the connection broke, kombu's Redis transport fails on
    closing it (AttributeError, in `QoS.restore_unacked`), and Celery takes that for unrecoverable. What was
    not acknowledged need not be restored: the ledger knows which runs are ready.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:
            _log.warning("broker.untidy_end", error=type(error).__name__)
            connection: Any = getattr(self, "connection", None)
            self.connection = None
            if connection is not None:
                connection.collect(socket_timeout=1)
