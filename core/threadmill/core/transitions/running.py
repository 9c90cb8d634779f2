"""What happens to a run: claim, succeed, bury, cancel."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, UUID
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import Executable

from threadmill.core.transitions.lane import (
    attempt_record,
    bells,
    next_of,
    ring_for,
    status_after,
    update_thread,
)
from threadmill.core.transitions.terms import (
    LETTERS,
    RUNS,
    TENANTS,
    THREADS,
    another_running,
    earlier_unfinished,
    is_unfinished,
    lane_is_free,
    stands,
    tenant_is_paused,
    word,
)


@cache
def claim() -> Executable:
    """pending → running: gives the run to one attempt of one worker, after `lock_thread`.

    Returns the run's row; none where it is not due, not at its thread's head, held back by a dead letter,
    or its tenant is paused. Parameters: run_id, tenant, thread_id, worker_id,
    graph_version.
    """
    return (
        update(RUNS)
        .where(
            RUNS.c.id == bindparam("run_id"),
            RUNS.c.tenant == bindparam("tenant"),
            RUNS.c.thread_id == bindparam("thread_id"),
            stands(RUNS.c.status, "pending"),
            RUNS.c.run_at <= func.now(),
            ~earlier_unfinished(RUNS),
            ~another_running(RUNS),
            lane_is_free(),
            ~tenant_is_paused(),
        )
        .values(
            status=word("running"),
            attempt=RUNS.c.attempt + 1,
            worker_id=bindparam("worker_id", type_=UUID(as_uuid=True)),
            graph_version=bindparam("graph_version", type_=Text),
            started_at=func.coalesce(RUNS.c.started_at, func.now()),
            dispatched_at=func.now(),
        )
        .returning(
            RUNS.c.id,
            RUNS.c.tenant,
            RUNS.c.thread_id,
            RUNS.c.seq,
            RUNS.c.graph,
            RUNS.c.attempt,
            RUNS.c.max_attempts,
            RUNS.c.input,
            RUNS.c.command,
            RUNS.c.config,
            RUNS.c.context,
            RUNS.c.metadata,
            RUNS.c.durability,
            RUNS.c.deadline,
        )
    )


def _held_run() -> ColumnElement[bool]:
    """The attempt still holds its lease: compare-and-set by status and attempt."""
    return and_(
        RUNS.c.id == bindparam("run_id"),
        RUNS.c.attempt == bindparam("attempt", type_=Integer),
        stands(RUNS.c.status, "running"),
    )


@cache
def succeed() -> Executable:
    """running → success: keeps the output, frees the thread, resolves the run's dead letter if it has one.

    After `lock_thread`. No row: the lease is lost and nothing was written.
    Parameters: run_id, attempt, output, checkpoint_id, thread_status, interrupts, next_nodes.
    """
    ended = (
        update(RUNS)
        .where(_held_run())
        .values(
            status=word("success"),
            finished_at=func.now(),
            output=bindparam("output", type_=JSON(none_as_null=True)),
            error=null(),
            checkpoint_id=bindparam("checkpoint_id", type_=Text),
        )
        .returning(RUNS.c.id, RUNS.c.tenant, RUNS.c.thread_id)
        .cte("ended")
    )
    following = next_of(ended)
    resolved = (
        update(LETTERS)
        .where(LETTERS.c.run_id == ended.c.id, LETTERS.c.status == word("replaying"))
        .values(status=word("resolved"), updated_at=func.now(), next_replay_at=null())
        .returning(LETTERS.c.id)
        .cte("resolved_letter")
    )
    thread = update_thread(
        ended,
        status=status_after(following, bindparam("thread_status", type_=Text)),
        interrupts=bindparam("interrupts", type_=JSON(none_as_null=True)),
        next_nodes=bindparam("next_nodes", type_=ARRAY(Text)),
        held_by=case((THREADS.c.held_by.in_(select(resolved.c.id)), null()), else_=THREADS.c.held_by),
    )
    return bells(thread, resolved, rung=ring_for(following), ended=ended)


def _letter(ended: CTE, fields: dict[str, Any]) -> CTE:
    """The ended run's dead letter: a new one, or its own again, which then waits without a time."""
    new = upsert(LETTERS).from_select(
        ["id", "run_id", "tenant", "thread_id", "graph", *fields],
        select(
            bindparam("letter_id", type_=UUID(as_uuid=True)),
            ended.c.id,
            ended.c.tenant,
            ended.c.thread_id,
            ended.c.graph,
            *fields.values(),
        ),
    )
    return (
        new.on_conflict_do_update(
            index_elements=[LETTERS.c.run_id],
            set_={
                **{name: new.excluded[name] for name in fields},
                "status": word("waiting"),
                "next_replay_at": null(),
                "updated_at": func.now(),
            },
        )
        .returning(LETTERS.c.id)
        .cte("letter")
    )


@cache
def bury() -> Executable:
    """running → error: the run's end, its attempt's record and its dead letter, all or nothing.

    After `lock_thread`. A replayed run's own dead letter goes back to waiting. With `hold`, the thread's
    later runs wait for the dead letter. No row: the lease is lost and nothing was written.
    Parameters: run_id, attempt, letter_id, reason, error, node, checkpoint_id, exception_type, message,
    traceback, fingerprint, next_nodes, hold (a boolean).
    """
    error = bindparam("error", type_=JSON)
    node = bindparam("node", type_=Text)
    checkpoint_id = bindparam("checkpoint_id", type_=Text)
    traceback = bindparam("traceback", type_=Text)
    hold = cast(bindparam("hold"), TENANTS.c.paused.type)
    ended = (
        update(RUNS)
        .where(_held_run())
        .values(status=word("error"), finished_at=func.now(), error=error, checkpoint_id=checkpoint_id)
        .returning(
            RUNS.c.id,
            RUNS.c.tenant,
            RUNS.c.thread_id,
            RUNS.c.graph,
            RUNS.c.attempt,
            RUNS.c.worker_id,
            RUNS.c.dispatched_at,
        )
        .cte("ended")
    )
    attempt = attempt_record(
        ended,
        "failed",
        node=node,
        checkpoint_id=checkpoint_id,
        exception_type=bindparam("exception_type", type_=Text),
        message=bindparam("message", type_=Text),
        traceback=traceback,
    )
    fields = {
        "reason": bindparam("reason", type_=Text),
        "error": error,
        "traceback": traceback,
        "node": node,
        "checkpoint_id": checkpoint_id,
        "fingerprint": bindparam("fingerprint", type_=Text),
    }
    letter = _letter(ended, fields)
    following = next_of(ended)
    thread = update_thread(
        ended,
        status=case((hold, word("error")), else_=status_after(following, word("error"))),
        next_nodes=bindparam("next_nodes", type_=ARRAY(Text)),
        held_by=case((hold, select(letter.c.id).scalar_subquery()), else_=THREADS.c.held_by),
    )
    return bells(thread, attempt, rung=ring_for(following, unless=hold), ended=ended)


@cache
def cancel() -> Executable:
    """pending | running → interrupted, which fences an attempt that is under way. After `lock_thread`.

    Parameters: run_id, error. No row: the run was finished already.
    """
    before = (
        select(RUNS.c.id, RUNS.c.status)
        .where(RUNS.c.id == bindparam("run_id"), is_unfinished(RUNS.c.status))
        .with_for_update()
        .cte("before")
    )
    ended = (
        update(RUNS)
        .where(RUNS.c.id == before.c.id)
        .values(status=word("interrupted"), finished_at=func.now(), error=bindparam("error", type_=JSON))
        .returning(
            RUNS.c.id,
            RUNS.c.tenant,
            RUNS.c.thread_id,
            RUNS.c.attempt,
            RUNS.c.worker_id,
            RUNS.c.dispatched_at,
            before.c.status.label("was"),
        )
        .cte("ended")
    )
    attempt = attempt_record(ended, "cancelled", where=ended.c.was == word("running"))
    discarded = (
        update(LETTERS)
        .where(LETTERS.c.run_id == ended.c.id, LETTERS.c.status == word("replaying"))
        .values(status=word("discarded"), updated_at=func.now(), next_replay_at=null())
        .returning(LETTERS.c.id)
        .cte("discarded_letter")
    )
    following = next_of(ended)
    was_running = exists(select(ended.c.id).where(ended.c.was == word("running")))
    thread = update_thread(
        ended,
        status=status_after(following, case((was_running, word("interrupted")), else_=word("idle"))),
        held_by=case((THREADS.c.held_by.in_(select(discarded.c.id)), null()), else_=THREADS.c.held_by),
    )
    return bells(thread, attempt, discarded, rung=ring_for(following), ended=ended)
