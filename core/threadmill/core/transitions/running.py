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
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, UUID
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.breaking import close_breakers
from threadmill.core.transitions.lane import (
    BELL_COLUMNS,
    bells,
    ended_only,
    failed_attempt,
    free_lane,
    held_run,
    next_of,
    promote,
    ring_for,
    status_after,
    update_thread,
)
from threadmill.core.transitions.starting import TAKEN_SETTING
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
    is_limited,
    rank_at,
    runs_alone,
    seconds,
    stands,
    word,
)


@cache
def claim() -> Executable:
    """pending → running: gives the run to one attempt of one worker, after `lock_thread`.

    Returns the run's row, with `seconds_left` until its deadline, and which of the thread's checkpoints are
    of no effect (base_checkpoint_id, dead_until); none where it is not due, past its deadline, not at its
    thread's head, held back by a dead letter or a breaker, or kept by a limit of its tenant or graph;
    where it is to run alone and this worker is not the place for that; and where the worker was struck off.
    Parameters: run_id, tenant, thread_id, worker_id, versions (a JSON object: the graphs'),
    alone (a boolean).
    """
    return _claim(
        RUNS.c.id == bindparam("run_id"),
        RUNS.c.tenant == bindparam("tenant"),
        RUNS.c.thread_id == bindparam("thread_id"),
        patient=True,
    )


@cache
def claim_taken() -> Executable:
    """`claim` for what was picked. After `pick_next` or `pick_many`. Returns a row for each that was claimed.

    Parameters: worker_id, versions, alone.
    """
    taken = func.nullif(func.current_setting(TAKEN_SETTING, true()), "")
    ids = func.unnest(cast(func.string_to_array(taken, ","), ARRAY(UUID(as_uuid=True)))).column_valued(
        "taken"
    )
    return _claim(RUNS.c.id == ids, patient=False)


def _claim(*which: ColumnElement[bool], patient: bool) -> Executable:
    return (
        update(RUNS)
        .where(
            *which,
            THREADS.c.tenant == RUNS.c.tenant,
            THREADS.c.thread_id == RUNS.c.thread_id,
            stands(RUNS.c.status, "pending"),
            RUNS.c.run_at <= func.now(),
            ~earlier_unfinished(RUNS),
            ~another_running(RUNS),
            ~is_held(RUNS),
            ~held_back_by_breaker(),
            ~is_expired(),
            or_(~runs_alone(), cast(bindparam("alone"), Boolean)),
            # Who was struck off and does not know it yet may not begin what nobody would rescue.
            exists(select(WORKERS.c.id).where(WORKERS.c.id == bindparam("worker_id"))),
            # Last, as it counts what it allows.
            case((is_limited(), _may_start(patient)), else_=true()),
        )
        .values(
            status=word("running"),
            attempt=RUNS.c.attempt + 1,
            worker_id=bindparam("worker_id", type_=UUID(as_uuid=True)),
            graph_version=cast(bindparam("versions", type_=Text), JSONB)[RUNS.c.graph].astext,
            # Not the transaction's time: it may have begun before that which ended the run before.
            started_at=func.coalesce(RUNS.c.started_at, func.clock_timestamp()),
            dispatched_at=func.clock_timestamp(),
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


def _may_start(patient: bool) -> ColumnElement[bool]:
    """The function of that name, of migration 0004."""
    function: ColumnElement[bool] = getattr(func, SCHEMA).may_start(
        RUNS.c.tenant, RUNS.c.graph, literal_column(str(patient).lower(), Boolean), type_=Boolean
    )
    return function


@cache
def succeed() -> Executable:
    """running → success: keeps the output, frees the thread, resolves the run's dead letter if it has one.

    After `lock_thread`. The thread's next run is ready for whoever looks, the caller first: no bell is rung.
    No row: the lease is lost and nothing was written.
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
    return ended_only(
        thread, resolved, free_lane(resolved), close_breakers(ended), promote(following), ended=ended
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
    Returns the run's own bell where it is due at once; or, where an earlier run of the thread was replayed
    meanwhile, that one's.
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
            rank=case(
                (
                    and_(~earlier_unfinished(RUNS), ~is_held(RUNS)),
                    rank_at(func.now() + seconds("delay"), RUNS.c.priority),
                )
            ),
            # As if nobody had rung: should the bell be lost, whoever looks next takes the run.
            dispatched_at=null(),
            failures=RUNS.c.failures + bindparam("spent", type_=Integer),
            worker_losses=RUNS.c.worker_losses + bindparam("lost", type_=Integer),
            throttled=RUNS.c.throttled + bindparam("waits", type_=Float),
            error=bindparam("error", type_=JSON(none_as_null=True)),
        )
        .returning(*BELL_COLUMNS, RUNS.c.seq, RUNS.c.rank)
        .cte("pending_again")
    )
    attempt = failed_attempt(held, outcome)
    other = next_of(pending)
    earlier = select(other).join(pending, other.c.seq < pending.c.seq).cte("earlier")
    own = select(*(pending.c[column.name] for column in BELL_COLUMNS)).where(due, pending.c.rank.is_not(None))
    rung = own.union_all(select(ring_for(earlier))).cte("bell")
    return bells(attempt, rung=rung, ended=pending)
