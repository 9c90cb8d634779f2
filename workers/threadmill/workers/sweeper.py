"""The leader's sweep: rings for ready runs that nobody rang for, and forgets outputs past their time.

Every worker process tries to be the leader; a session-level advisory lock of Postgres decides, and falls to
another when the leader's connection ends. Losing the leader costs one sweep interval.

Between two sweeps the leader listens for the bells of runs that were enqueued in a caller's transaction:
Postgres delivers the notification when, and only when, that transaction commits.
"""

from __future__ import annotations

import threading
import time

import psycopg
import structlog
from psycopg.rows import DictRow

from threadmill.core.database import connect
from threadmill.core.doorbell import Bell, Doorbell, bell_of
from threadmill.core.errors import BrokerUnavailable, Unavailable
from threadmill.core.models import SCHEMA
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Step, send
from threadmill.core.transitions import DOORBELL_CHANNEL, expire_outputs, ring_again

# No more bells are rung while this many wait unheard, so that a backlog is not rung for again and again.
MAX_WAITING_BELLS = 1_000
EXPIRY_INTERVAL = 60.0
# Listening cannot be interrupted, so it looks up this often, in seconds, whether to stop.
STOP_LATENCY = 0.2
EXPIRY_BATCH = 1_000

_LEAD = f"select pg_try_advisory_lock(hashtext('{SCHEMA}.leader')) as leads"

_log = structlog.get_logger("threadmill.sweeper")


class Sweeper:
    """Sweeps while this process leads, in a thread and a connection of its own."""

    def __init__(self, settings: Settings, doorbell: Doorbell) -> None:
        self._settings = settings
        self._doorbell = doorbell
        self._stopping = threading.Event()
        self._expired_at = float("-inf")
        self._thread = threading.Thread(target=self._work, name="threadmill-sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the sweep under way is done; another process leads from then on."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self._settings) as connection:
                    self._lead(connection)
            except (psycopg.Error, Unavailable) as error:
                _log.warning("sweeper.disconnected", error=type(error).__name__)
                self._stopping.wait(self._settings.sweep_interval)

    def _lead(self, connection: psycopg.Connection[DictRow]) -> None:
        """Waits for the leadership, then sweeps until the process stops or the connection breaks."""
        while not self._is_leader(connection):
            if self._stopping.wait(self._settings.sweep_interval):
                return
        _log.info("sweeper.leads")
        connection.execute(f"listen {DOORBELL_CHANNEL}")
        while not self._stopping.is_set():
            self._sweep(connection)
            self._listen(connection)

    def _listen(self, connection: psycopg.Connection[DictRow]) -> None:
        """Rings for what was enqueued in callers' transactions, until the next sweep is due."""
        ends_at = time.monotonic() + self._settings.sweep_interval
        while not self._stopping.is_set() and (left := ends_at - time.monotonic()) > 0:
            for notice in connection.notifies(timeout=min(left, STOP_LATENCY), stop_after=1):
                try:
                    bell = Bell.from_json(notice.payload)
                except (TypeError, ValueError):  # whoever may connect may notify, anything
                    _log.warning("sweeper.no_bell")
                else:
                    self._doorbell.ring([bell])

    def _is_leader(self, connection: psycopg.Connection[DictRow]) -> bool:
        row = connection.execute(_LEAD).fetchone()
        return row is not None and bool(row["leads"])

    def _sweep(self, connection: psycopg.Connection[DictRow]) -> None:
        try:
            allowance = MAX_WAITING_BELLS - self._doorbell.waiting()
        except BrokerUnavailable as error:
            # Nothing is marked as rung while the broker is away.
            _log.warning("sweeper.broker_away", reason=error.reason)
        else:
            if allowance > 0:
                self._ring(connection, allowance)
        if time.monotonic() - self._expired_at > EXPIRY_INTERVAL:
            self._expired_at = time.monotonic()
            step = Step(expire_outputs(), {"ttl": self._settings.output_ttl, "limit": EXPIRY_BATCH})
            send(connection, Batch([step]))

    def _ring(self, connection: psycopg.Connection[DictRow], limit: int) -> None:
        step = Step(ring_again(), {"limit": limit, "patience": self._settings.ring_again_after})
        (rows,) = send(connection, Batch([step]))
        if rows:
            rung = self._doorbell.ring([bell_of(row) for row in rows])
            _log.info("sweeper.rang", runs=rung)
