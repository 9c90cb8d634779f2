"""What happens to a run that goes on or succeeds: claim, succeed, requeue."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Float,
    Integer,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, UUID
from sqlalchemy.sql import Executable

from threadmill.core.transitions.breaking import close_breakers
from threadmill.core.transitions.lane import (
    BELL_COLUMNS,
    bells,
    failed_attempt,
    free_lane,
    held_run,
    next_of,
    ring_for,
    status_after,
    update_thread,
)
from threadmill.core.transitions.terms import (
    LETTERS,
    RUNS,
    THREADS,
    WORKERS,
    another_running,
    earlier_unfinished,
    held_back_by_breaker,
    is_expired,
    is_held,
    runs_alone,
    seconds,
    stands,
    tenant_is_paused,
    word,
)


@cache
def claim() -> Executable:
    """pending → running: gives the run to one attempt of one worker, after `lock_thread`.

    Returns the run's row, with `seconds_left` until its deadline, and which of the thread's checkpoints are
    of no effect (base_checkpoint_id, dead_until); none where it is not due, past its deadline, not at its
    thread's head, held back by a dead letter or a breaker, or its tenant is paused;
    where it is to run alone and this worker is not the place for that; and where the worker was struck off.
    Parameters: run_id, tenant, thread_id, worker_id, graph_version, alone (a boolean).
    """
    return (
        update(RUNS)
        .where(
            RUNS.c.id == bindparam("run_id"),
            RUNS.c.tenant == bindparam("tenant"),
            RUNS.c.thread_id == bindparam("thread_id"),
            THREADS.c.tenant == bindparam("tenant"),
            THREADS.c.thread_id == bindparam("thread_id"),
            stands(RUNS.c.status, "pending"),
            RUNS.c.run_at <= func.now(),
            ~earlier_unfinished(RUNS),
            ~another_running(RUNS),
            ~is_held(RUNS),
            ~tenant_is_paused(),
            ~held_back_by_breaker(),
            ~is_expired(),
            or_(~runs_alone(), cast(bindparam("alone"), Boolean)),
            # Who was struck off and does not know it yet may not begin what nobody would rescue.
            exists(select(WORKERS.c.id).where(WORKERS.c.id == bindparam("worker_id"))),
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
            RUNS.c.failures,
            RUNS.c.throttled,
            RUNS.c.worker_losses,
            RUNS.c.input,
            RUNS.c.command,
            RUNS.c.config,
            RUNS.c.context,
            RUNS.c.metadata,
            RUNS.c.durability,
            RUNS.c.stream_mode,
            RUNS.c.stream_subgraphs,
            RUNS.c.replays,
            RUNS.c.replay_mode,
            RUNS.c.state_patch,
            RUNS.c.scratch,
            THREADS.c.base_checkpoint_id,
            THREADS.c.dead_until,
            cast(func.extract("epoch", RUNS.c.deadline - func.now()), Float).label("seconds_left"),
        )
    )


@cache
def succeed() -> Executable:
    """running → success: keeps the output, frees the thread, resolves the run's dead letter if it has one.

    After `lock_thread`. No row: the lease is lost and nothing was written.
    Parameters: run_id, attempt, output, checkpoint_id, thread_status, interrupts, next_nodes, dependencies
    (the names that its nodes called, whose breakers it closes).
    """
    ended = (
        update(RUNS)
        .where(held_run())
        .values(
            status=word("success"),
            finished_at=func.now(),
            output=bindparam("output", type_=JSON(none_as_null=True)),
            error=null(),
            checkpoint_id=bindparam("checkpoint_id", type_=Text),
        )
        .returning(RUNS.c.id, RUNS.c.tenant, RUNS.c.thread_id, RUNS.c.seq, RUNS.c.graph, RUNS.c.replay_mode)
        .cte("ended")
    )
    following = next_of(ended)
    resolved = (
        update(LETTERS)
        .where(LETTERS.c.run_id == ended.c.id, stands(LETTERS.c.status, "replaying"))
        .values(status=word("resolved"), updated_at=func.now(), next_replay_at=null())
        .returning(LETTERS.c.id)
        .cte("resolved_letter")
    )
    thread = update_thread(
        ended,
        status=status_after(following, bindparam("thread_status", type_=Text)),
        interrupts=bindparam("interrupts", type_=JSON(none_as_null=True)),
        next_nodes=bindparam("next_nodes", type_=ARRAY(Text)),
        **_revived(ended),
    )
    return bells(
        thread, resolved, free_lane(resolved), close_breakers(ended), rung=ring_for(following), ended=ended
    )


def _revived(ended: CTE) -> dict[str, ColumnElement[Any]]:
    """The columns of the thread: a run that was resumed has built on what it had written when it failed."""
    resumed = ended.c.replay_mode == word("resume")
    return {
        name: case((resumed, null()), else_=THREADS.c[name]) for name in ("base_checkpoint_id", "dead_until")
    }


@cache
def requeue(outcome: str) -> Executable:
    """running → pending: retry, rescue and handing over. The lane stays the run's own. After `lock_thread`.

    outcome: of the attempt, as its record keeps it. No row: the lease is lost and nothing was written.
    Returns the run's own bell where it is due at once.
    Parameters: run_id, attempt, delay (seconds until it may run again), spent and lost (0 or 1: whether it
    cost an attempt, or a worker), waits (seconds of the delay that the run was told to wait), error, cause,
    node, checkpoint_id, exception_type, message, traceback.
    """
    held = (
        select(
            RUNS.c.id,
            RUNS.c.tenant,
            RUNS.c.attempt,
            RUNS.c.replays,
            RUNS.c.worker_id,
            RUNS.c.dispatched_at,
        )
        .where(held_run())
        .with_for_update()
        .cte("held")
    )
    due = bindparam("delay", type_=Float) <= 0
    pending = (
        update(RUNS)
        .where(RUNS.c.id == held.c.id)
        .values(
            status=word("pending"),
            run_at=func.now() + seconds("delay"),
            # As if nobody had rung: should the bell be lost, whoever looks next takes the run.
            dispatched_at=null(),
            failures=RUNS.c.failures + bindparam("spent", type_=Integer),
            worker_losses=RUNS.c.worker_losses + bindparam("lost", type_=Integer),
            throttled=RUNS.c.throttled + bindparam("waits", type_=Float),
            error=bindparam("error", type_=JSON(none_as_null=True)),
        )
        .returning(*BELL_COLUMNS)
        .cte("pending_again")
    )
    attempt = failed_attempt(held, outcome)
    rung = select(pending).where(due).cte("rung")
    return bells(attempt, rung=rung, ended=pending)
