"""A worker process's entry in the ledger, kept alive by a thread and a connection of their own."""

from __future__ import annotations

import os
import platform
import socket
import threading
import uuid
from importlib.metadata import version
from typing import Any

import psycopg
import structlog
from psycopg.rows import DictRow

from threadmill.core.database import connect
from threadmill.core.errors import Unavailable
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Step, send
from threadmill.core.transitions import beat, enlist, strike_off

_log = structlog.get_logger("threadmill.heartbeat")


class Heartbeat:
    """Beats every `heartbeat_interval`, whatever the event loop does: a blocked loop is no dead worker."""

    def __init__(self, settings: Settings, worker_id: uuid.UUID) -> None:
        self._settings = settings
        self._worker_id = worker_id
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="threadmill-heartbeat", daemon=True)
        self._connection: psycopg.Connection[DictRow] | None = None

    def start(self) -> None:
        """Enters the worker. Raises DatabaseUnavailable."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Strikes the worker off."""
        self._stopping.set()
        self._thread.join()
        try:
            self._send(Step(strike_off(), {"worker_id": self._worker_id}))
        except (psycopg.Error, Unavailable) as error:
            _log.warning("heartbeat.not_struck_off", error=type(error).__name__)
        finally:
            self._disconnect()

    def _work(self) -> None:
        while not self._stopping.wait(self._settings.heartbeat_interval):
            try:
                self._beat()
            except (psycopg.Error, Unavailable) as error:
                _log.warning("heartbeat.missed", error=type(error).__name__)
                self._disconnect()

    def _beat(self) -> None:
        if not self._send(Step(beat(), {"worker_id": self._worker_id})):
            self._send(Step(enlist(), self._entry()))

    def _entry(self) -> dict[str, Any]:
        packages = ("threadmill", "langgraph", "celery")
        return {
            "worker_id": self._worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": [self._settings.queue],
            "concurrency": self._settings.concurrency,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
        }

    def _send(self, step: Step) -> list[Any]:
        if self._connection is None:
            self._connection = connect(self._settings)
        return list(send(self._connection, Batch([step]))[0])

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
