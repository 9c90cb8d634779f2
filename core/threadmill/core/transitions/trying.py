"""A trial of a dead letter's run on a copy of its thread, of which nothing is left.

A trial is a run of its own, on a thread of its own, for as long as it lasts: so a worker claims it like any
other, and no other table knows of it. Who asked for it removes both; what one that died has left behind is
removed by the leader.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import Boolean, Integer, Text, and_, bindparam, case, cast, delete, func, insert, select, true
from sqlalchemy import update as change
from sqlalchemy.dialects.postgresql import JSON, JSONB, UUID
from sqlalchemy.sql import Executable

from threadmill.core.transitions.lane import BELL_COLUMNS
from threadmill.core.transitions.terms import LETTERS, RUNS, THREADS, rank_at, seconds, stands, word

_COPIED = ("graph", "command", "config", "context", "priority", "durability")


@cache
def begin_trial() -> Executable:
    """Enters a trial and its thread, and returns its bell. No row: the dead letter has no run.

    Parameters: letter_id, run_id and thread_id (the trial's own), mode (resume, restart or append), edited (a
    boolean), input (JSON, the run's own unless it was edited), state_patch (JSON), metadata (JSON).
    """
    run = RUNS.alias("run")
    letter = (
        select(LETTERS.c.id, LETTERS.c.tenant, LETTERS.c.run_id)
        .where(LETTERS.c.id == bindparam("letter_id", type_=UUID(as_uuid=True)))
        .cte("letter")
    )
    thread = (
        insert(THREADS)
        .from_select(
            ["tenant", "thread_id", "status", "last_seq"],
            select(
                letter.c.tenant, bindparam("thread_id", type_=Text), word("busy"), cast(1, Integer)
            ).select_from(letter.join(run, run.c.id == letter.c.run_id)),
        )
        .returning(THREADS.c.tenant, THREADS.c.thread_id)
        .cte("thread")
    )
    values = {
        "id": bindparam("run_id", type_=UUID(as_uuid=True)),
        "tenant": thread.c.tenant,
        "thread_id": thread.c.thread_id,
        "seq": cast(1, Integer),
        "input": case(
            (cast(bindparam("edited"), Boolean), bindparam("input", type_=JSON(none_as_null=True))),
            else_=run.c.input,
        ),
        "metadata": bindparam("metadata", type_=JSONB),
        "max_attempts": cast(1, Integer),
        "scratch": letter.c.id,
        "replay_mode": bindparam("mode", type_=Text),
        "state_patch": bindparam("state_patch", type_=JSON(none_as_null=True)),
        "dispatched_at": func.now(),
        "rank": rank_at(func.now(), run.c.priority),
        **{name: run.c[name] for name in _COPIED},
    }
    rows = select(*values.values()).select_from(
        letter.join(run, run.c.id == letter.c.run_id).join(thread, true())
    )
    return insert(RUNS).from_select(list(values), rows).returning(*BELL_COLUMNS)


@cache
def end_trial() -> Executable:
    """running → success: keeps what came of it. No row: the lease is lost, or nobody waits for it any more.

    Parameters: run_id, attempt, output.
    """
    return (
        change(RUNS)
        .where(
            RUNS.c.id == bindparam("run_id"),
            RUNS.c.attempt == bindparam("attempt", type_=Integer),
            stands(RUNS.c.status, "running"),
            RUNS.c.scratch.is_not(None),
        )
        .values(
            status=word("success"),
            finished_at=func.now(),
            output=bindparam("output", type_=JSON(none_as_null=True)),
        )
        .returning(RUNS.c.id)
    )


@cache
def remove_trial() -> Executable:
    """Removes a trial's run. Then `remove_trial_thread`. Parameter: run_id."""
    return (
        delete(RUNS)
        .where(RUNS.c.id == bindparam("run_id", type_=UUID(as_uuid=True)), RUNS.c.scratch.is_not(None))
        .returning(RUNS.c.tenant, RUNS.c.thread_id)
    )


@cache
def old_trials() -> Executable:
    """Trials for which nobody waits any more: run_id, tenant, thread_id.

    Parameters: age (seconds since they were begun), limit.
    """
    return (
        select(RUNS.c.id.label("run_id"), RUNS.c.tenant, RUNS.c.thread_id)
        .where(RUNS.c.scratch.is_not(None), RUNS.c.created_at < func.now() - seconds("age"))
        .limit(bindparam("limit", type_=Integer))
    )


@cache
def remove_trial_thread() -> Executable:
    """Removes a trial's thread. After `remove_trial`. Parameters: tenant, thread_id."""
    return delete(THREADS).where(
        and_(
            THREADS.c.tenant == bindparam("tenant", type_=Text),
            THREADS.c.thread_id == bindparam("thread_id", type_=Text),
        )
    )
