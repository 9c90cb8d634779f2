"""The leader's sweep, and what worker processes write about themselves."""

from __future__ import annotations

from functools import cache

from sqlalchemy import (
    DateTime,
    Float,
    Integer,
    any_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import Executable

from threadmill.core.transitions.terms import (
    ATTEMPTS,
    BREAKERS,
    GRAPHS,
    RUNS,
    WORKERS,
    another_running,
    earlier_unfinished,
    is_expired,
    is_held,
    seconds,
    word,
)


@cache
def announce_graph() -> Executable:
    """Says what a graph's workers serve. Parameters: name, version, topology_hash, input_schema, channels,
    nodes, policy."""
    new = upsert(GRAPHS).values(
        name=bindparam("name"),
        version=bindparam("version"),
        topology_hash=bindparam("topology_hash"),
        input_schema=bindparam("input_schema"),
        channels=bindparam("channels"),
        nodes=bindparam("nodes"),
        policy=bindparam("policy"),
    )
    fields = ("version", "topology_hash", "input_schema", "channels", "nodes", "policy")
    return new.on_conflict_do_update(
        index_elements=[GRAPHS.c.name],
        set_={**{field: new.excluded[field] for field in fields}, "announced_at": func.now()},
    )


@cache
def enlist() -> Executable:
    """Enters a worker process. Parameters: worker_id, host, pid, queues, concurrency, versions."""
    return insert(WORKERS).values(
        id=bindparam("worker_id"),
        host=bindparam("host"),
        pid=bindparam("pid"),
        queues=bindparam("queues"),
        concurrency=bindparam("concurrency"),
        versions=bindparam("versions"),
    )


@cache
def beat() -> Executable:
    """The worker's heartbeat; returns `heartbeat_at`. Parameter: worker_id.

    No row: it was struck off, and its runs are others'.
    """
    return (
        update(WORKERS)
        .where(WORKERS.c.id == bindparam("worker_id"))
        .values(heartbeat_at=func.now())
        .returning(WORKERS.c.heartbeat_at)
    )


@cache
def strike_off() -> Executable:
    """Removes a worker that has stopped, or is known to be gone. Parameter: worker_id."""
    return delete(WORKERS).where(WORKERS.c.id == bindparam("worker_id")).returning(WORKERS.c.id)


@cache
def strike_off_silent() -> Executable:
    """Removes the workers whose heartbeat is stale. Parameter: silence (seconds).

    A worker that beats at this moment keeps its row, or loses it and is told: both change the same row.
    """
    return (
        delete(WORKERS)
        .where(WORKERS.c.heartbeat_at < func.now() - seconds("silence"))
        .returning(WORKERS.c.id, WORKERS.c.host, WORKERS.c.pid)
    )


_HELD_COLUMNS = (
    RUNS.c.id,
    RUNS.c.tenant,
    RUNS.c.thread_id,
    RUNS.c.graph,
    RUNS.c.attempt,
    RUNS.c.worker_id,
    RUNS.c.worker_losses,
    RUNS.c.replays,
)


@cache
def runs_of_worker() -> Executable:
    """What a worker has claimed and not given back. Parameters: worker_id, since (the first of it was claimed
    then, or later)."""
    return select(*_HELD_COLUMNS, RUNS.c.dispatched_at).where(
        RUNS.c.worker_id == bindparam("worker_id"),
        RUNS.c.status == word("running"),
        RUNS.c.dispatched_at >= bindparam("since", type_=DateTime(timezone=True)),
    )


@cache
def runs_without_worker() -> Executable:
    """Running runs whose worker is struck off. Parameter: limit."""
    # Not in: one look at the few workers there are, and one reading of the index of running runs.
    return (
        select(*_HELD_COLUMNS)
        .where(
            RUNS.c.status == word("running"),
            RUNS.c.worker_id.is_not(None),
            RUNS.c.worker_id.not_in(select(WORKERS.c.id)),
        )
        .order_by(RUNS.c.worker_id)
        .limit(bindparam("limit", type_=Integer))
    )


@cache
def expired_runs() -> Executable:
    """Pending runs past their deadline, with their graph's policy. Parameter: limit."""
    return (
        select(*_HELD_COLUMNS, GRAPHS.c.policy)
        .join_from(RUNS, GRAPHS, GRAPHS.c.name == RUNS.c.graph, isouter=True)
        .where(RUNS.c.status == word("pending"), RUNS.c.deadline.is_not(None), is_expired())
        .order_by(RUNS.c.deadline)
        .limit(bindparam("limit", type_=Integer))
    )


@cache
def rejected_runs() -> Executable:
    """Runs that have been due behind an open breaker for longer than their graph's `breaker_budget`.

    Of each thread its next run only, and none that a dead letter holds. With the graph's policy, the
    breaker's name as `breaker`, and how long it is open still as `open_for` (seconds). Parameter: limit.
    """
    budget = func.make_interval(0, 0, 0, 0, 0, 0, cast(GRAPHS.c.policy["breaker_budget"].astext, Float))
    # Few or none, so that the pending runs are looked at only where there is one.
    spent = (
        select(
            GRAPHS.c.name,
            GRAPHS.c.policy,
            budget.label("budget"),
            func.min(BREAKERS.c.opened_at).label("opened_at"),
            func.min(BREAKERS.c.name).label("breaker"),
            cast(func.extract("epoch", func.max(BREAKERS.c.open_until) - func.now()), Float).label(
                "open_for"
            ),
        )
        .join_from(GRAPHS, BREAKERS, GRAPHS.c.name == any_(BREAKERS.c.graphs))
        .where(BREAKERS.c.open_until > func.now(), BREAKERS.c.opened_at <= func.now() - budget)
        .group_by(GRAPHS.c.name)
        .cte("spent")
    )
    return (
        select(*_HELD_COLUMNS, spent.c.policy, spent.c.breaker, spent.c.open_for)
        .join_from(RUNS, spent, spent.c.name == RUNS.c.graph)
        .where(
            RUNS.c.status == word("pending"),
            RUNS.c.run_at <= func.now() - spent.c.budget,
            RUNS.c.scratch.is_(null()),  # who asked for a trial waits for it no longer than that
            ~earlier_unfinished(RUNS),
            ~another_running(RUNS),
            ~is_held(RUNS),
        )
        .order_by(RUNS.c.run_at)
        .limit(bindparam("limit", type_=Integer))
    )


@cache
def count_fenced() -> Executable:
    """Counts what attempts went on to write after they had lost their lease, and were refused.

    Parameters: run, number (of the attempt), refused (how many writes).
    """
    return (
        update(ATTEMPTS)
        .where(ATTEMPTS.c.run_id == bindparam("run"), ATTEMPTS.c.attempt == bindparam("number"))
        .values(fenced_writes=ATTEMPTS.c.fenced_writes + bindparam("refused", type_=Integer))
    )
