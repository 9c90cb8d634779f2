"""What the transitions are written with: the tables, and conditions that several of them share."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    DateTime,
    Float,
    Interval,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    exists,
    false,
    func,
    literal_column,
    or_,
    select,
)

from threadmill.core.models import Attempt as AttemptRow
from threadmill.core.models import (
    Breaker,
    DeadLetter,
    DeadLetterAction,
    Graph,
    HeldLane,
    Limit,
    ReplayGroup,
    ReplayJob,
    Run,
    Thread,
    Worker,
    table_of,
)

# Has what follows in the transaction planned once for a connection. Postgres would go by what plans have
# cost before: those that were made while the tables were small look cheap beside one for tables that have
# grown, so it would plan anew for each of hundreds of runs, which takes longer than a claim. What follows
# finds its rows by keys, of which no value makes another plan; but one made while a table has few rows
# would read all of it, and be kept while it grows, until it is analysed again.
KEEP_PLANS = """set_config('plan_cache_mode', 'force_generic_plan', true),
    set_config('enable_seqscan', 'off', true)"""
TENANT_SETTING = "threadmill.tenant"
DOORBELL_CHANNEL = "threadmill_doorbell"

THREADS = table_of(Thread)
RUNS = table_of(Run)
LETTERS = table_of(DeadLetter)
ACTIONS = table_of(DeadLetterAction)
HELD = table_of(HeldLane)
GROUPS = table_of(ReplayGroup)
JOBS = table_of(ReplayJob)
ATTEMPTS = table_of(AttemptRow)
LIMITS = table_of(Limit)
WORKERS = table_of(Worker)
GRAPHS = table_of(Graph)
BREAKERS = table_of(Breaker)

# A run that has lost so many workers runs alone, beside nobody whom it could take with it; one loss more,
# and it is a dead letter.
QUARANTINE_LOSSES = 2
# A point of priority is worth so many seconds of waiting: so a run of any priority is some time the first.
PRIORITY_SECONDS = 10
# So many runs of a graph are let through at once while its breaker is half-open.
BREAKER_TRIALS = 3


def word(value: str) -> ColumnElement[str]:
    """A status as a literal in the SQL, so that predicates of partial indexes are recognised."""
    return literal_column(f"'{value}'", Text)


def seconds(parameter: str) -> ColumnElement[datetime.timedelta]:
    """An interval from a parameter in seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, bindparam(parameter, type_=Float), type_=Interval)


def stands(status: Column[str] | ColumnElement[str], value: str) -> ColumnElement[bool]:
    """Whether a run that is found by its id has this status, in words that match no partial index.

    Analysed in a quiet moment, the index of pending runs looks empty, and the planner then reads all of it,
    every pending run, to find the one with the id. What selects by status uses `word` and wants the index.
    """
    return status.op("||", return_type=Text())("") == word(value)


def counts_as(status: Column[str] | ColumnElement[str], value: str) -> ColumnElement[bool]:
    """Whether a run has this status, in the words of `runs_rung_idx` and `runs_running_idx` and of no other.

    Of the indexes that match, the planner may take any that looks small, and read all of it.
    """
    return literal_column("''", Text).op("||", return_type=Text())(status) == word(value)


def is_unfinished(status: Column[str] | ColumnElement[str]) -> ColumnElement[bool]:
    return status.in_([word("pending"), word("running")])


def _for_each(rows: Select[Any]) -> ColumnElement[bool]:
    """Whether there are such rows, asked for each row of the statement around it.

    The offset keeps the planner from making a join of it. Planned in a quiet moment, a join would read the
    whole index of unfinished runs, which looks empty then; and the plan is kept.
    """
    return exists(rows.offset(literal_column("0")))


def earlier_unfinished(run: Any) -> ColumnElement[bool]:
    """Whether the run's thread has an unfinished run before it."""
    earlier = RUNS.alias("earlier")
    return _for_each(
        select(earlier.c.id).where(
            earlier.c.tenant == run.c.tenant,
            earlier.c.thread_id == run.c.thread_id,
            earlier.c.seq < run.c.seq,
            is_unfinished(earlier.c.status),
        )
    )


def another_running(run: Any) -> ColumnElement[bool]:
    """Whether another run of the thread is running: a later one, where this one is replayed."""
    other = RUNS.alias("other")
    return _for_each(
        select(other.c.id).where(
            other.c.tenant == run.c.tenant,
            other.c.thread_id == run.c.thread_id,
            other.c.id != run.c.id,
            other.c.status == word("running"),
        )
    )


def is_held(run: Any) -> ColumnElement[bool]:
    """Whether a dead letter of an earlier run on the same thread holds the run."""
    return _for_each(
        select(HELD.c.seq).where(
            HELD.c.tenant == run.c.tenant,
            HELD.c.thread_id == run.c.thread_id,
            HELD.c.seq < run.c.seq,
        )
    )


def runs_alone() -> ColumnElement[bool]:
    return RUNS.c.worker_losses >= QUARANTINE_LOSSES


def is_expired() -> ColumnElement[bool]:
    return func.coalesce(RUNS.c.deadline <= func.now(), false())


def held_back_by_breaker() -> ColumnElement[bool]:
    """A breaker of the run's graph is open, or half-open with all its trials under way."""
    trial = RUNS.alias("trial")
    trials = (
        select(trial.c.id)
        .where(
            trial.c.status == word("running"),
            trial.c.graph == any_(BREAKERS.c.graphs),
            trial.c.dispatched_at >= BREAKERS.c.open_until,
        )
        .correlate(BREAKERS)
        .limit(BREAKER_TRIALS)
        .subquery("trials")
    )
    under_way = select(func.count()).select_from(trials).scalar_subquery()
    return exists(
        select(BREAKERS.c.name).where(
            RUNS.c.graph == any_(BREAKERS.c.graphs),
            BREAKERS.c.open_until.is_not(None),
            or_(BREAKERS.c.open_until > func.now(), under_way >= BREAKER_TRIALS),
        )
    )


def is_limited() -> ColumnElement[bool]:
    """Whether the run's tenant or its graph has a limit that `may_start` has to look at."""
    return exists(
        select(LIMITS.c.name).where(
            or_(
                and_(LIMITS.c.kind == word("tenant"), LIMITS.c.name == RUNS.c.tenant),
                and_(LIMITS.c.kind == word("graph"), LIMITS.c.name == RUNS.c.graph),
            ),
            or_(LIMITS.c.paused, LIMITS.c.max_running.is_not(None), LIMITS.c.rate.is_not(None)),
        )
    )


def is_paused(kind: str, name: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether the tenant, or the graph, is paused."""
    return exists(
        select(LIMITS.c.name).where(LIMITS.c.kind == word(kind), LIMITS.c.name == name, LIMITS.c.paused)
    )


def has_its_fill(kind: str, name: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether the tenant, or the graph, has as many running as it may."""
    other = RUNS.alias("running")
    running = (
        select(func.count())
        .select_from(other)
        .where(other.c[kind] == name, other.c.status == word("running"))
        .scalar_subquery()
    )
    return exists(
        select(LIMITS.c.name).where(
            LIMITS.c.kind == word(kind), LIMITS.c.name == name, LIMITS.c.max_running <= running
        )
    )


def rank_at(run_at: Any, priority: Any) -> ColumnElement[datetime.datetime]:
    """A run's place among its tenant's: when it is due, and earlier by its priority."""
    earlier = func.make_interval(0, 0, 0, 0, 0, 0, PRIORITY_SECONDS * priority, type_=Interval)
    return cast(run_at - earlier, DateTime(timezone=True))
