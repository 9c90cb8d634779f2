"""The leader's sweep: rescues the runs of lost workers, ends what is past its deadline, and rings again.

Every worker process tries to be the leader; a session-level advisory lock of Postgres decides, and falls to
another when the leader's connection ends. Losing the leader costs one sweep interval.

A worker is lost when its heartbeat is stale, by the database's clock. The leader judges nobody before
Postgres has answered it, without delay, for as long: where Postgres was away, or frozen, it was so for all of
them, and those that live have beaten by then.

Between two sweeps the leader listens for the bells of runs that were enqueued in a caller's transaction, and
for the ids of those that were cancelled there: Postgres delivers the notification when, and only when, that
transaction commits.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog
from psycopg.rows import DictRow

from threadmill.core.database import break_off, connect
from threadmill.core.doorbell import Bell, Doorbell, bells_of
from threadmill.core.errors import BrokerUnavailable
from threadmill.core.floors import Looks
from threadmill.core.models import SCHEMA
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Step, carry_out_unpipelined, send_unpipelined
from threadmill.core.transitions import (
    CANCELLED_CHANNEL,
    DOORBELL_CHANNEL,
    expired_runs,
    lanes_held_too_long,
    rejected_runs,
    ring,
    runs_without_worker,
    strike_off_silent,
)
from threadmill.workers.burial import Policies
from threadmill.workers.herald import Herald
from threadmill.workers.patience import impatiently
from threadmill.workers.rescue import expire_run, free_lane, reject_run, rescue
from threadmill.workers.retention import Retention

# No more bells are rung while this many wait unheard, so that a backlog is not rung for again and again.
MAX_WAITING_BELLS = 1_000
# So many runs are rescued or expired in one sweep; the rest follow in the next.
BATCH = 500
# Listening cannot be interrupted, so it looks up this often, in seconds, whether to stop.
STOP_LATENCY = 0.2
# How long a sweep that is under way may go on when the process stops, in seconds.
LAST_WORDS = 5.0

_END_FROZEN = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where application_name = 'threadmill' and datname = current_database() and pid <> pg_backend_pid()
        and wait_event = 'ClientRead' and xact_start < now() - make_interval(secs => %s)
"""
_LEAD = f"select pg_try_advisory_lock(hashtext('{SCHEMA}.leader')) as leads"

_log = structlog.get_logger("threadmill.sweeper")


class Sweeper:
    """Sweeps while this process leads, in a thread and a connection of its own."""

    def __init__(self, settings: Settings, doorbell: Doorbell, herald: Herald, policies: Policies) -> None:
        """policies: of the graphs whose runs it ends."""
        self._settings = settings
        self._doorbell = doorbell
        self._herald = herald
        self._policies = policies
        self._stopping = threading.Event()
        self.leads = threading.Event()  # and hears what is notified
        self._retention = Retention(settings)
        self._connection: psycopg.Connection[DictRow] | None = None
        self._answered_since = 0.0
        self._told_away = False  # that the broker is
        self._looks = Looks()  # for runs to ring for
        self._rests_until = 0.0  # from looking for them
        self._silent: set[uuid.UUID] = set()  # workers that were struck off
        self._thread = threading.Thread(target=self._work, name="threadmill-sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the sweep under way is done, or given up; another process leads from then on."""
        self._stopping.set()
        if self._thread.ident is not None:  # it was started
            with impatiently(LAST_WORDS, self._break_off):
                self._thread.join()

    def _break_off(self) -> None:
        connection = self._connection
        if connection is not None:
            break_off(connection)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self._settings.for_sessions()) as connection:
                    self._connection = connection
                    self._answered_since = time.monotonic()
                    self._lead(connection)
            except Exception as error:  # whatever it is, it must not be the last sweep
                self.leads.clear()
                _log.warning("sweeper.interrupted", error=type(error).__name__)
                self._stopping.wait(self._settings.sweep_interval)

    def _lead(self, connection: psycopg.Connection[DictRow]) -> None:
        """Waits for the leadership, then sweeps until the process stops or the connection breaks."""
        while not self._is_leader(connection):
            if self._stopping.wait(self._settings.sweep_interval):
                return
        # A leader that is frozen keeps its connection, and with it the lock. Postgres ends a session from
        # which nothing has come for so long, and another leads.
        patience = round(max(self._settings.heartbeat_timeout / 2, 3 * self._settings.sweep_interval) * 1000)
        connection.execute(f"set idle_session_timeout = {patience}")
        connection.execute(f"set idle_in_transaction_session_timeout = {patience}")
        # Who holds a lane is not waited for long: the others are to be rescued meanwhile.
        connection.execute(f"set lock_timeout = {round(self._settings.heartbeat_timeout * 250)}")
        connection.execute(f"listen {DOORBELL_CHANNEL}")
        connection.execute(f"listen {CANCELLED_CHANNEL}")
        self.leads.set()
        _log.info("sweeper.leads")
        while not self._stopping.is_set():
            self._sweep(connection)
            self._listen(connection)

    def _listen(self, connection: psycopg.Connection[DictRow]) -> None:
        """Passes on what was enqueued and cancelled in callers' transactions, until the next sweep is due."""
        ends_at = time.monotonic() + self._settings.sweep_interval
        while not self._stopping.is_set() and (left := ends_at - time.monotonic()) > 0:
            for notice in connection.notifies(timeout=min(left, STOP_LATENCY), stop_after=1):
                try:
                    if notice.channel == CANCELLED_CHANNEL:
                        self._herald.announce_cancelled(uuid.UUID(notice.payload))
                    else:
                        self._herald.announce(None, Bell.from_json(notice.payload))
                except (TypeError, ValueError):  # whoever may connect may notify, anything
                    _log.warning("sweeper.no_bell")

    def _is_leader(self, connection: psycopg.Connection[DictRow]) -> bool:
        with self._asking():
            row = connection.execute(_LEAD).fetchone()
        return row is not None and bool(row["leads"])

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around whatever Postgres is to answer, to notice when it was away."""
        asked_at = time.monotonic()
        yield
        if time.monotonic() - asked_at > self._settings.heartbeat_timeout / 2:
            self._answered_since = time.monotonic()

    def _sweep(self, connection: psycopg.Connection[DictRow]) -> None:
        self._expire(connection)
        # Not first: what is sent to a Postgres that is frozen is done the moment it thaws.
        if time.monotonic() - self._answered_since > self._settings.heartbeat_timeout:
            self._rescue(connection)
        self._reject(connection)
        self._free_lanes(connection)
        self._ring_again(connection)
        with self._asking():
            self._retention.work(connection)

    def _rescue(self, connection: psycopg.Connection[DictRow]) -> None:
        """Gives the runs of lost workers to others.

        A worker is struck off first, and its runs follow one by one; should the leader be lost meanwhile,
        the next one finds runs that belong to nobody.
        """
        self._end_frozen(connection)
        silence = Step(strike_off_silent(), {"silence": self._settings.heartbeat_timeout})
        batch = Batch([silence, Step(runs_without_worker(), {"limit": BATCH})])
        silent, runs = send_unpipelined(connection, batch)
        for worker in silent:
            _log.warning(
                "sweeper.worker_lost", worker=str(worker["id"]), host=worker["host"], pid=worker["pid"]
            )
        self._silent |= {worker["id"] for worker in silent}
        rescued = 0
        for run in runs:
            cause = "heartbeat stale" if run["worker_id"] in self._silent else "worker gone"
            rescued += self._carry_out(
                connection, run, rescue(self._settings, run, cause, self._policies(run["graph"]))
            )
        if rescued:
            _log.warning("sweeper.rescued", runs=rescued)

    def _end_frozen(self, connection: psycopg.Connection[DictRow]) -> None:
        """Ends sessions whose process was frozen, or cut off, in the midst of a transaction.

        They hold what they have locked, a lane say, for as long as their connection stands; no timeout of
        Postgres counts for a pipeline of which only a part has come.
        """
        try:
            with connection.transaction():
                connection.execute("set local role none")  # a login may end its own sessions, a role none
                ended = connection.execute(_END_FROZEN, [self._settings.heartbeat_timeout]).fetchall()
        except psycopg.errors.InsufficientPrivilege:
            _log.warning("sweeper.frozen_sessions", reason="they are of another login")
            return
        if ended:
            _log.warning("sweeper.ended_frozen_sessions", sessions=len(ended))

    def _expire(self, connection: psycopg.Connection[DictRow]) -> None:
        with self._asking():
            (runs,) = send_unpipelined(connection, Batch([Step(expired_runs(), {"limit": BATCH})]))
        expired = sum(
            self._carry_out(connection, run, expire_run(self._settings, run, self._policies(run["graph"])))
            for run in runs
        )
        if expired:
            _log.warning("sweeper.expired", runs=expired)

    def _reject(self, connection: psycopg.Connection[DictRow]) -> None:
        """Ends what has waited behind an open breaker for longer than its graph allows."""
        with self._asking():
            (runs,) = send_unpipelined(connection, Batch([Step(rejected_runs(), {"limit": BATCH})]))
        rejected = sum(
            self._carry_out(connection, run, reject_run(self._settings, run, self._policies(run["graph"])))
            for run in runs
        )
        if rejected:
            _log.warning("sweeper.rejected", runs=rejected)

    def _free_lanes(self, connection: psycopg.Connection[DictRow]) -> None:
        with self._asking():
            (lanes,) = send_unpipelined(connection, Batch([Step(lanes_held_too_long(), {"limit": BATCH})]))
        for lane in lanes:
            if self._carry_out(connection, lane, free_lane(lane)):
                _log.warning("sweeper.freed_lane", dead_letter=str(lane["letter_id"]), tenant=lane["tenant"])

    def _carry_out(
        self, connection: psycopg.Connection[DictRow], run: Row, plan: Plan[tuple[bool, Bell | None]]
    ) -> bool:
        try:
            with self._asking():
                done, bell = carry_out_unpipelined(connection, plan)
        except psycopg.errors.LockNotAvailable:
            return False  # in the next sweep
        if done:
            self._herald.announce(run["id"], bell)  # who waits for it, looks whether it has ended
        return done

    def _ring_again(self, connection: psycopg.Connection[DictRow]) -> None:
        try:
            allowance = MAX_WAITING_BELLS - self._doorbell.waiting()
        except BrokerUnavailable as error:
            # Nothing is marked as rung while the broker is away.
            if not self._told_away:  # once, not in each sweep
                _log.warning("sweeper.broker_away", reason=error.reason)
            self._told_away = True
        else:
            self._told_away = False
            if allowance > 0:
                self._ring(connection, allowance)

    def _ring(self, connection: psycopg.Connection[DictRow], limit: int) -> None:
        if time.monotonic() < self._rests_until:
            return
        began = self._looks.begin()
        step = Step(ring(), {"limit": limit, "patience": self._settings.ring_again_after, **began})
        with self._asking():
            (rows,) = send_unpipelined(connection, Batch([step]))
        self._looks.learn(began, rows[0])
        bells = bells_of(rows)
        self._rests_until = time.monotonic() + (0.0 if bells else self._looks.rest)
        if bells:
            rung = self._doorbell.ring(bells)
            _log.info("sweeper.rang", runs=rung)
