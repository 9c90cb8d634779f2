"""A thread as a lane: its lock, and what follows on it when a run ends."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql import Executable

from threadmill.core.transitions.terms import (
    ATTEMPTS,
    HELD,
    KEEP_PLANS,
    RUNS,
    TENANT_SETTING,
    THREADS,
    is_unfinished,
    rank_at,
    runs_alone,
    stands,
    word,
)

# What a bell is made of.
BELL_COLUMNS = (RUNS.c.id, RUNS.c.tenant, RUNS.c.thread_id, RUNS.c.graph, runs_alone().label("alone"))


@cache
def lock_thread() -> Executable:
    """Takes the lane. Parameters: tenant, thread_id."""
    return (
        select(THREADS.c.status)
        .where(THREADS.c.tenant == bindparam("tenant"), THREADS.c.thread_id == bindparam("thread_id"))
        .with_for_update()
    )


@cache
def lock_and_bind() -> Executable:
    """`lock_thread`, and binds the transaction to the tenant, as the fleet, for the thread's checkpoints."""
    return (
        select(
            THREADS.c.status,
            func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()),
            literal_column(KEEP_PLANS),
        )
        .where(THREADS.c.tenant == bindparam("tenant"), THREADS.c.thread_id == bindparam("thread_id"))
        .with_for_update()
    )


def next_of(ended: CTE, *, holds: ColumnElement[bool] | None = None) -> CTE:
    """The thread's next run, whether due or not; whether a dead letter holds it, and whether it waits for a
    later one that is running, as a replayed run does.

    What held the lane for the ended run itself does so no more, unless `holds`: then its dead letter does.
    """
    own = false() if holds is None else and_(holds, ended.c.seq < RUNS.c.seq)
    others = exists(
        select(HELD.c.seq)
        .where(
            HELD.c.tenant == RUNS.c.tenant,
            HELD.c.thread_id == RUNS.c.thread_id,
            HELD.c.seq < RUNS.c.seq,
            HELD.c.seq != ended.c.seq,
        )
        .correlate(RUNS, ended)
    )
    running = RUNS.alias("running")
    waits = exists(
        select(running.c.id)
        .where(
            running.c.tenant == RUNS.c.tenant,
            running.c.thread_id == RUNS.c.thread_id,
            running.c.id != RUNS.c.id,
            running.c.id != ended.c.id,
            running.c.status == word("running"),
        )
        .correlate(RUNS, ended)
    )
    # Lateral: from a plain join the planner may make a reading of the whole index of unfinished runs.
    head = (
        select(RUNS.c.id, RUNS.c.seq, RUNS.c.run_at, or_(own, others).label("held"), waits.label("waits"))
        .where(
            RUNS.c.tenant == ended.c.tenant,
            RUNS.c.thread_id == ended.c.thread_id,
            RUNS.c.id != ended.c.id,
            is_unfinished(RUNS.c.status),
        )
        .order_by(RUNS.c.seq)
        .limit(1)
        .lateral("head")
    )
    return select(*head.c).select_from(ended.join(head, true())).cte("following")


def ring_for(following: CTE) -> CTE:
    """Gives the next run its rank, if nothing holds it; where it is due, the caller is to ring for it."""
    is_due = following.c.run_at <= func.now()
    promoted = _promote(following, dispatched_at=case((is_due, func.now()), else_=RUNS.c.dispatched_at))
    ready = promoted.returning(*BELL_COLUMNS, is_due.label("is_due")).cte("promoted")
    bell = (ready.c[column.name] for column in BELL_COLUMNS)
    return select(*bell).where(ready.c.is_due).cte("rung")


def promote(following: CTE) -> CTE:
    """Gives the next run its rank, if nothing holds it. Whoever looks for what is ready finds it."""
    return _promote(following).returning(RUNS.c.id).cte("promoted")


def _promote(following: CTE, **values: Any) -> Update:
    return (
        update(RUNS)
        .where(
            RUNS.c.id == following.c.id,
            ~following.c.held,
            ~following.c.waits,
            stands(RUNS.c.status, "pending"),
        )
        .values(rank=rank_at(RUNS.c.run_at, RUNS.c.priority), **values)
    )


def ended_only(*extra: CTE, ended: CTE) -> Executable:
    """One row if the run was ended."""
    return select(ended.c.id.label("run_id")).add_cte(*extra)


def bells(*extra: CTE, rung: CTE, ended: CTE) -> Executable:
    """One row if the run was ended, with the bell that is the caller's to ring, if there is one."""
    statement = select(
        ended.c.id.label("run_id"),
        rung.c.id.label("next_id"),
        rung.c.tenant.label("next_tenant"),
        rung.c.thread_id.label("next_thread_id"),
        rung.c.graph.label("next_graph"),
        rung.c.alone.label("next_alone"),
    ).select_from(ended.outerjoin(rung, true()))
    return statement.add_cte(*extra) if extra else statement


def update_thread(ended: CTE, **values: Any) -> CTE:
    return (
        update(THREADS)
        .where(THREADS.c.tenant == ended.c.tenant, THREADS.c.thread_id == ended.c.thread_id)
        .values(updated_at=func.now(), **values)
        .returning(THREADS.c.tenant)
        .cte("thread")
    )


def status_after(following: CTE, status: ColumnElement[str]) -> ColumnElement[str]:
    """busy while the thread has another run to do, error while that is held, else what its last run left."""
    return case(
        (exists(select(following.c.id).where(~following.c.held)), word("busy")),
        (exists(select(following.c.id)), word("error")),
        else_=status,
    )


def free_lane(closed: CTE) -> CTE:
    """Lets go on what the closed dead letters held. closed: with the letter's `id`."""
    return (
        delete(HELD)
        .where(HELD.c.letter_id.in_(select(closed.c.id)))
        .returning(HELD.c.letter_id)
        .cte("freed_lane")
    )


def attempt_record(
    ended: CTE,
    outcome: str,
    fields: Mapping[str, ColumnElement[Any]],
    *,
    where: ColumnElement[bool] | None = None,
) -> CTE:
    """Records how the ended run's attempt came out. where: only if this holds.

    The attempt began when it was claimed, which is when `dispatched_at` was last set.
    """
    values = {
        "run_id": ended.c.id,
        "attempt": ended.c.attempt,
        "tenant": ended.c.tenant,
        "worker_id": ended.c.worker_id,
        "started_at": ended.c.dispatched_at,
        "replay": ended.c.replays,
        "outcome": word(outcome),
        **fields,
    }
    rows = select(*values.values())
    return (
        insert(ATTEMPTS)
        .from_select(list(values), rows if where is None else rows.where(where))
        .returning(ATTEMPTS.c.run_id)
        .cte("recorded_attempt")
    )


def held_run() -> ColumnElement[bool]:
    """The attempt still holds its lease: compare-and-set by status and attempt."""
    return and_(
        RUNS.c.id == bindparam("run_id"),
        RUNS.c.attempt == bindparam("attempt", type_=Integer),
        stands(RUNS.c.status, "running"),
    )


def failed_attempt(ended: CTE, outcome: str) -> CTE:
    """The record of an attempt that was not cancelled, with what is known of its failure as parameters."""
    return attempt_record(
        ended,
        outcome,
        {
            name: bindparam(name, type_=Text)
            for name in ("cause", "node", "checkpoint_id", "exception_type", "message", "traceback")
        },
    )
