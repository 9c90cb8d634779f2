"""A worker process's lease: its entry in the ledger, kept alive by a thread and a connection of their own.

A blocked event loop does not stop the heartbeat, so a busy worker is not taken for dead. And the worker
believes in its lease no longer than the leader does: when it could not beat for `heartbeat_timeout`, because
it was frozen or cut off from Postgres, it stops what it runs before it does anything else; and when its beat
is refused, because it was struck off meanwhile, it goes on under a new id.

It goes the way that the leader goes, past a pooler: where that is away, or has no session to lend, the leader
would strike off everybody.

With each beat it compares what it runs with what it holds in the ledger, in both directions: what was taken
from it (cancelled, say, while Redis was away) it stops, and what it holds without knowing, because Postgres
went away before it answered a claim, it gives back.
"""

from __future__ import annotations

import datetime
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import psycopg
import structlog
from psycopg.rows import DictRow
from uuid_utils.compat import uuid7

from threadmill.core.database import break_off, connect
from threadmill.core.doorbell import Bell
from threadmill.core.errors import Unavailable
from threadmill.core.floors import BEGINNING
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Rows, Step, carry_out, send
from threadmill.core.transitions import beat, enlist, open_breakers, runs_of_worker, strike_off
from threadmill.workers.attempts import Attempts
from threadmill.workers.patience import impatiently
from threadmill.workers.rescue import give_back

# How long a worker that stops waits for an answer of Postgres, in seconds.
LAST_WORDS = 2.0
# What it holds is looked for from the first on that it held at the last beat: the index entries of what it
# held before stay beside a transaction that is held open. After so many seconds it looks for all.
LOOK_BACK_AFTER = 60.0
# A claim is committed so long after it was made, at the most.
CLAIM_TAKES = datetime.timedelta(seconds=60)

_log = structlog.get_logger("threadmill.heartbeat")


class Heartbeat:
    """Beats every `heartbeat_interval`, and tells what follows from it.

    on_cut_off is called, in a thread of ours, when the lease has run out; on_taken for an attempt that is no
    longer this worker's; on_given_back with the bell of a run that was given back.
    """

    def __init__(
        self,
        settings: Settings,
        attempts: Attempts,
        *,
        on_cut_off: Callable[[], None],
        on_taken: Callable[[uuid.UUID, int], None],
        on_given_back: Callable[[Bell], None],
    ) -> None:
        self._settings = settings
        self._attempts = attempts
        self._on_cut_off = on_cut_off
        self._on_taken = on_taken
        self._on_given_back = on_given_back
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat_on, name="threadmill-heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="threadmill-lease", daemon=True),
        ]
        self._connection: psycopg.Connection[DictRow] | None = None
        self._breakers: Mapping[str, float] = {}
        self._beaten_at = time.monotonic()
        self._cut_off = False
        self._dropped: set[tuple[uuid.UUID, int]] = set()  # what ran when the lease ran out
        # What it holds and does not know, and which claims were not answered yet when that was seen first.
        self._unknown: dict[tuple[uuid.UUID, int], frozenset[object]] = {}
        # The first of what it held at the last beat was claimed then, or later.
        self._since, self._since_until = BEGINNING, 0.0
        self.worker_id = uuid7()

    @property
    def is_alive(self) -> bool:
        """Whether the lease holds, so that runs may be claimed under it."""
        return not self._cut_off and self._silence() < self._settings.heartbeat_timeout

    def open_for(self, dependency: str) -> float | None:
        """Seconds for which a dependency's breaker is still open, as of the last beat; None if it is not."""
        until = self._breakers.get(dependency)
        left = None if until is None else until - time.monotonic()
        return left if left is not None and left > 0 else None

    def start(self) -> None:
        """Enters the worker. Raises DatabaseUnavailable."""
        self._beat()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Strikes the worker off, if Postgres answers."""
        self._stopping.set()
        with impatiently(LAST_WORDS, self._break_off):
            for thread in self._threads:
                thread.join()
            try:
                self._send(Step(strike_off(), {"worker_id": self.worker_id}))
            except (psycopg.Error, Unavailable) as error:
                _log.warning("heartbeat.not_struck_off", error=type(error).__name__)
            finally:
                self._disconnect()

    def _silence(self) -> float:
        return time.monotonic() - self._beaten_at

    def _beat_on(self) -> None:
        pause = self._settings.heartbeat_interval
        while not self._stopping.wait(pause):
            self._check()
            try:
                self._beat()
            except Exception as error:
                # Whatever it is, the next beat may succeed; until then the lease runs out.
                if pause == self._settings.heartbeat_interval:  # said once, not at every try
                    _log.warning("heartbeat.missed", error=type(error).__name__)
                self._disconnect()
                pause = min(self._settings.heartbeat_interval / 2, 0.2)
            else:
                pause = self._settings.heartbeat_interval

    def _watch(self) -> None:
        """Beside the thread that beats, as that may be waiting for an answer that does not come."""
        while not self._stopping.wait(self._settings.heartbeat_interval / 4):
            self._check()

    def _check(self) -> None:
        """Stops everything, once, when the lease has run out."""
        if self._cut_off or self._silence() < self._settings.heartbeat_timeout:
            return
        self._cut_off = True
        self._dropped = set(self._attempts.held().items())
        _log.error("worker.cut_off", silent=round(self._silence(), 1), runs=len(self._dropped))
        self._on_cut_off()
        self._break_off()

    def _beat(self) -> None:
        self._connect()
        sent = time.monotonic()  # not before: a beat that was long in connecting is no older for that
        before = self._attempts.held()
        since = self._since if sent < self._since_until else BEGINNING
        beaten, runs, breakers = self._send(
            Step(beat(), {"worker_id": self.worker_id}),
            Step(runs_of_worker(), {"worker_id": self.worker_id, "since": since}),
            Step(open_breakers(), {}),
        )
        if since == BEGINNING:
            self._since_until = sent + LOOK_BACK_AFTER
        if beaten:
            claimed = [row["dispatched_at"] for row in runs]
            self._since = min([*claimed, beaten[0]["heartbeat_at"] - CLAIM_TAKES])
            if self._cut_off:
                _log.info("worker.back", worker=str(self.worker_id), runs=len(runs))
        else:
            self._enter()
        self._beaten_at = sent
        self._breakers = {
            row["name"]: sent + row["open_for"] for row in breakers if row["kind"] == "dependency"
        }
        # What stands under an id that was struck off is the leader's to give to others.
        self._compare(before, runs if beaten else [])
        self._cut_off = False

    def _enter(self) -> None:
        """Enters the worker under a new id; what ran under the old one is another's by now."""
        if self._attempts.held():
            _log.error("worker.struck_off", worker=str(self.worker_id), runs=len(self._attempts))
            self._cut_off = True
            self._on_cut_off()
        self.worker_id = uuid7()
        self._send(Step(enlist(), self._entry()))

    def _compare(self, before: Mapping[uuid.UUID, int], runs: Rows) -> None:
        """before: what ran here before the ledger was asked."""
        held = {(row["id"], row["attempt"]) for row in runs}
        for run_id, number in before.items():
            if (run_id, number) not in held:
                self._on_taken(run_id, number)
        unresolved = self._attempts.unresolved()
        unknown = {}
        for row in runs:
            if not self._attempts.knows(row["id"], row["attempt"]):
                key = (row["id"], row["attempt"])
                unknown[key] = self._unknown.get(key, unresolved)
                if unknown[key] & unresolved:
                    continue  # it may be one of those
                assert self._connection is not None
                dropped = (row["id"], row["attempt"]) in self._dropped
                cause = "cut off" if dropped else "claim unanswered"
                given, bell = carry_out(self._connection, give_back(row, cause))
                if given:
                    _log.warning("run.given_back", run=str(row["id"]), attempt=row["attempt"], cause=cause)
                if bell is not None:
                    self._on_given_back(bell)
        self._unknown = unknown

    def _entry(self) -> dict[str, Any]:
        packages = ("threadmill", "langgraph", "celery")
        return {
            "worker_id": self.worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": [self._settings.queue],
            "concurrency": self._settings.concurrency,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
        }

    def _send(self, *steps: Step) -> list[Rows]:
        return send(self._connect(), Batch(steps))

    def _connect(self) -> psycopg.Connection[DictRow]:
        if self._connection is None:
            self._connection = connect(self._settings.for_sessions())
        return self._connection

    def _break_off(self) -> None:
        connection = self._connection
        if connection is not None:
            break_off(connection)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
