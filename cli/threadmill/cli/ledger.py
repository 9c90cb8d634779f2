"""What an operator sees of the ledger: the rows of all tenants, read as the fleet's role."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select, true, tuple_
from sqlalchemy.sql import Executable

from threadmill.cli.standing import OBSTACLE_COLUMNS, STANDING_COLUMNS, Standing, standing_of
from threadmill.core.database import Database
from threadmill.core.errors import InvalidOption, InvalidTenant, InvalidThreadId, RunNotFound, ThreadNotFound
from threadmill.core.keys import check_tenant, check_thread_id, split_thread_key
from threadmill.core.models import RUN_STATUSES, THREAD_STATUSES, Attempt, Graph, HeldLane, Thread, table_of
from threadmill.core.models import Run as RunRow
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import RUN_COLUMNS
from threadmill.core.transitions.terms import is_unfinished
from threadmill.producers import Run
from threadmill.producers.queries import check_page, parse_run_id
from threadmill.producers.run import run_of

_runs = table_of(RunRow)
_threads = table_of(Thread)
_attempts = table_of(Attempt)
_graphs = table_of(Graph)
_held = table_of(HeldLane)

# So many of the runs that wait on a held thread are counted.
MOST_WAITING = 10_000

AnySelect = Select[tuple[object, ...]]


class RunRecord(NamedTuple):
    """A run with what its producer is not shown."""

    run: Run
    standing: Standing


class Ledger:
    """The operator's reading of the ledger; it connects at its first use."""

    def __init__(self, settings: Settings) -> None:
        """Raises ServicesNotFound."""
        self._database = Database(settings.located())

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _read(self, query: Executable) -> Rows:
        return self._database.carry_out(_read(query))

    def run(self, run_id: str, tenant: str | None = None) -> Run:
        """The run, of whichever tenant unless one is given. Raises RunNotFound."""
        return self.record(run_id, tenant).run

    def record(self, run_id: str, tenant: str | None = None) -> RunRecord:
        """The run, as `run` finds it, with how it stands. Raises RunNotFound."""
        query = _records(*OBSTACLE_COLUMNS).where(_runs.c.id == parse_run_id(run_id))
        if tenant is not None:
            query = query.where(_runs.c.tenant == check_tenant(tenant))
        rows = self._read(query)
        if not rows:
            raise RunNotFound(run_id)
        return _record(rows[0])

    def runs(
        self,
        *,
        tenant: str | None = None,
        thread_id: str | None = None,
        status: str | None = None,
        graph: str | None = None,
        limit: int,
        after: str | None = None,
    ) -> list[RunRecord]:
        """A page of runs, newest first. after: the id of the last run of the page before."""
        check_page(limit, after)
        _check_status(status, RUN_STATUSES)
        query = _records()
        if tenant is not None:
            query = query.where(_runs.c.tenant == check_tenant(tenant))
        if thread_id is not None:
            query = query.where(_runs.c.thread_id == check_thread_id(thread_id))
        for column, value in ((_runs.c.status, status), (_runs.c.graph, graph)):
            if value is not None:
                query = query.where(column == value)
        if after is not None:
            query = query.where(_runs.c.id < uuid.UUID(after))
        return [_record(row) for row in self._read(query.order_by(_runs.c.id.desc()).limit(limit))]

    def head(self, tenant: str, thread_id: str) -> RunRecord | None:
        """The run that a thread's lane belongs to: the first of its unfinished ones; None if it has none."""
        query = _records(*OBSTACLE_COLUMNS).where(
            _runs.c.tenant == check_tenant(tenant),
            _runs.c.thread_id == check_thread_id(thread_id),
            is_unfinished(_runs.c.status),
        )
        rows = self._read(query.order_by(_runs.c.seq).limit(1))
        return _record(rows[0]) if rows else None

    def attempts(self, run_id: str) -> Rows:
        """The run's attempts that did not simply succeed, in their order."""
        query = select(_attempts).where(_attempts.c.run_id == parse_run_id(run_id))
        return self._read(query.order_by(_attempts.c.attempt))

    def threads(
        self,
        *,
        tenant: str | None,
        status: str | None,
        held: bool,
        limit: int,
        after: str | None,
    ) -> Rows:
        """A page of threads, by tenant and thread id, each with what holds it.

        The first dead letter that holds a thread is held_by, since held_since, perhaps until held_until;
        held_runs wait behind it, counted up to MOST_WAITING. after: the last thread id of the page before;
        without a tenant, `tenant:thread_id`.
        """
        _check_status(status, THREAD_STATUSES)
        query = _threads_with_lanes(held_only=held)
        if tenant is not None:
            query = query.where(_threads.c.tenant == check_tenant(tenant))
        if status is not None:
            query = query.where(_threads.c.status == status)
        place = (_threads.c.tenant, _threads.c.thread_id)
        if after is not None:
            query = query.where(tuple_(*place) > tuple_(*_place(tenant, after)))
        return self._read(query.order_by(*place).limit(limit))

    def thread(self, tenant: str, thread_id: str) -> Row:
        """The thread's own row, as `threads` gives it. Raises ThreadNotFound."""
        rows = self._read(
            _threads_with_lanes().where(
                _threads.c.tenant == check_tenant(tenant), _threads.c.thread_id == check_thread_id(thread_id)
            )
        )
        if not rows:
            raise ThreadNotFound(tenant, thread_id)
        return rows[0]

    def graphs(self) -> Rows:
        """What the workers have announced, by name."""
        return self._read(select(_graphs).order_by(_graphs.c.name))


def _threads_with_lanes(*, held_only: bool = False) -> AnySelect:
    """Threads, each with the first lane that is held on it, if there is one."""
    first = (
        select(_held.c.letter_id, _held.c.since, _held.c.until, _held.c.seq)
        .where(_held.c.tenant == _threads.c.tenant, _held.c.thread_id == _threads.c.thread_id)
        .order_by(_held.c.seq)
        .limit(1)
        .lateral("held")
    )
    behind = (
        select(_runs.c.id)
        .where(
            _runs.c.tenant == _threads.c.tenant,
            _runs.c.thread_id == _threads.c.thread_id,
            _runs.c.seq > first.c.seq,
            is_unfinished(_runs.c.status),
        )
        .limit(MOST_WAITING)
        .correlate(_threads, first)
        .subquery()
    )
    columns = (
        first.c.letter_id.label("held_by"),
        first.c.since.label("held_since"),
        first.c.until.label("held_until"),
        select(func.count()).select_from(behind).scalar_subquery().label("held_runs"),
    )
    return select(_threads, *columns).select_from(_threads.join(first, true(), isouter=not held_only))


def _records(*more: ColumnElement[Any]) -> AnySelect:
    return select(*RUN_COLUMNS, *STANDING_COLUMNS, *more)


def _record(row: Row) -> RunRecord:
    return RunRecord(run_of(row), standing_of(row))


def _read(query: Executable) -> Plan[Rows]:
    (rows,) = yield Batch([Step(query, {})])
    return rows


def _check_status(status: str | None, statuses: tuple[str, ...]) -> None:
    if status is not None and status not in statuses:
        raise InvalidOption("status", status, f"must be one of {', '.join(statuses)}")


def _place(tenant: str | None, after: str) -> tuple[str, str]:
    """(tenant, thread id) of the last thread of the page before."""
    if tenant is not None:
        return tenant, check_thread_id(after)
    try:
        return split_thread_key(after)
    except (InvalidTenant, InvalidThreadId):
        raise InvalidOption("after", after, "without --tenant it must be tenant:thread") from None
