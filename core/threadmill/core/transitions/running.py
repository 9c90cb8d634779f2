"""What happens to a run: claim, succeed, requeue, bury, expire, reject."""

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
    insert,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, UUID
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import Executable
from sqlalchemy.types import TypeEngine

from threadmill.core.transitions.breaking import close_breakers
from threadmill.core.transitions.lane import (
    BELL_COLUMNS,
    attempt_record,
    bells,
    free_lane,
    next_of,
    ring_for,
    status_after,
    update_thread,
)
from threadmill.core.transitions.terms import (
    ACTIONS,
    GRAPHS,
    GROUPS,
    HELD,
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
            RUNS.c.replays,
            RUNS.c.replay_mode,
            RUNS.c.state_patch,
            RUNS.c.scratch,
            THREADS.c.base_checkpoint_id,
            THREADS.c.dead_until,
            cast(func.extract("epoch", RUNS.c.deadline - func.now()), Float).label("seconds_left"),
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
    Parameters: run_id, attempt, output, checkpoint_id, thread_status, interrupts, next_nodes, dependencies
    (the names that its nodes called, whose breakers it closes).
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
        .where(_held_run())
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
    attempt = _attempt_record(held, outcome)
    rung = select(pending).where(due).cte("rung")
    return bells(attempt, rung=rung, ended=pending)


def _attempt_record(ended: CTE, outcome: str) -> CTE:
    return attempt_record(
        ended,
        outcome,
        {
            name: bindparam(name, type_=Text)
            for name in ("cause", "node", "checkpoint_id", "exception_type", "message", "traceback")
        },
    )


# What a dead letter records, beside what is its run's own.
_RECORDED: dict[str, TypeEngine[Any]] = {
    "reason": Text(),
    "error": JSON(),
    "exception_type": Text(),
    "exceptions": JSONB(),
    "traceback": Text(),
    "node": Text(),
    "task": Text(),
    "next_nodes": ARRAY(Text),
    "checkpoint_id": Text(),
    "fingerprint": Text(),
    "versions": JSONB(),
}


def _letter(ended: CTE) -> CTE:
    """The ended run's dead letter: a new one, or its own again.

    It waits until `replay_in` seconds have passed, or (null) for a person; or it is parked.
    """
    parked = cast(bindparam("parked"), Boolean)
    topology_hash = (
        select(GRAPHS.c.topology_hash)
        .where(GRAPHS.c.name == ended.c.graph, GRAPHS.c.version == ended.c.graph_version)
        .scalar_subquery()
    )
    fields: dict[str, ColumnElement[Any]] = {
        **{name: bindparam(name, type_=type_) for name, type_ in _RECORDED.items()},
        "graph_version": ended.c.graph_version,
        "topology_hash": topology_hash,
        "replays": ended.c.replays,
        "status": case((parked, word("parked")), else_=word("waiting")),
        "next_replay_at": case((~parked, func.now() + seconds("replay_in"))),
    }
    new = upsert(LETTERS).from_select(
        ["id", "run_id", "tenant", "thread_id", "seq", "graph", *fields],
        select(
            bindparam("letter_id", type_=UUID(as_uuid=True)),
            ended.c.id,
            ended.c.tenant,
            ended.c.thread_id,
            ended.c.seq,
            ended.c.graph,
            *fields.values(),
        ),
    )
    return (
        new.on_conflict_do_update(
            index_elements=[LETTERS.c.run_id],
            set_={**{name: new.excluded[name] for name in fields}, "updated_at": func.now()},
        )
        .returning(LETTERS.c.id, LETTERS.c.tenant, LETTERS.c.thread_id, LETTERS.c.seq, LETTERS.c.graph)
        .cte("letter")
    )


@cache
def bury(status: str = "error", outcome: str = "failed") -> Executable:
    """running → error | timeout: the run's end, its attempt's record and its dead letter, all or nothing.

    After `lock_thread`, before `set_aside`. A replayed run's own dead letter goes back to waiting. With
    `hold`, unless the run says otherwise, the thread's later runs wait for the dead letter. No row: the lease
    is lost and nothing was written.
    Parameters: run_id, attempt, letter_id, the record (reason, error, exception_type, exceptions, traceback,
    node, task, next_nodes, checkpoint_id, fingerprint, versions), cause, message, spent and
    lost (0 or 1: what the attempt cost), replay_in (seconds; None: it waits for a person), parked and hold
    (booleans) and hold_timeout (seconds; None: until the dead letter is closed).
    """
    ended = _ended_badly(
        _held_run(),
        status,
        failures=RUNS.c.failures + bindparam("spent", type_=Integer),
        worker_losses=RUNS.c.worker_losses + bindparam("lost", type_=Integer),
    )
    return _buried(ended, _attempt_record(ended, outcome))


@cache
def expire() -> Executable:
    """pending → timeout: the deadline passed before the run was claimed again. After `lock_thread`.

    Parameters: those of `bury` but cause, message, spent and lost. No row: it is not pending.
    """
    return _buried(_ended_badly(and_(_pending_run(), is_expired()), "timeout"))


@cache
def reject() -> Executable:
    """pending → error: a breaker has held the run back for longer than its graph allows. After `lock_thread`.

    Parameters: those of `expire`. No row: it is not pending, or no longer held back.
    """
    return _buried(_ended_badly(and_(_pending_run(), held_back_by_breaker()), "error"))


def _pending_run() -> ColumnElement[bool]:
    return and_(
        RUNS.c.id == bindparam("run_id"),
        RUNS.c.attempt == bindparam("attempt", type_=Integer),
        stands(RUNS.c.status, "pending"),
    )


def _ended_badly(where: ColumnElement[bool], status: str, **values: Any) -> CTE:
    return (
        update(RUNS)
        .where(where)
        .values(
            status=word(status),
            finished_at=func.now(),
            error=bindparam("error", type_=JSON),
            checkpoint_id=bindparam("checkpoint_id", type_=Text),
            **values,
        )
        .returning(
            RUNS.c.id,
            RUNS.c.tenant,
            RUNS.c.thread_id,
            RUNS.c.seq,
            RUNS.c.graph,
            RUNS.c.graph_version,
            RUNS.c.on_dead_letter,
            RUNS.c.replays,
            RUNS.c.attempt,
            RUNS.c.worker_id,
            RUNS.c.dispatched_at,
        )
        .cte("ended")
    )


def _buried(ended: CTE, *records: CTE) -> Executable:
    """The dead letter of a run that has ended, and what becomes of its thread."""
    hold = case(
        (ended.c.on_dead_letter.is_(null()), cast(bindparam("hold"), Boolean)),
        else_=ended.c.on_dead_letter == word("hold"),
    )
    letter = _letter(ended)
    group = (
        upsert(GROUPS)
        .from_select(
            ["fingerprint", "graph"],
            select(bindparam("fingerprint", type_=Text), letter.c.graph),
        )
        .on_conflict_do_nothing()
        .returning(GROUPS.c.fingerprint)
        .cte("replay_group")
    )
    lane = upsert(HELD).from_select(
        ["tenant", "thread_id", "seq", "letter_id", "until"],
        select(
            letter.c.tenant,
            letter.c.thread_id,
            letter.c.seq,
            letter.c.id,
            func.now() + seconds("hold_timeout"),
        )
        .select_from(letter.join(ended, true()))
        .where(hold),
    )
    held = lane.on_conflict_do_nothing().returning(HELD.c.letter_id).cte("held_lane")
    following = next_of(ended, holds=hold)
    thread = update_thread(
        ended,
        status=status_after(following, word("error")),
        next_nodes=func.coalesce(bindparam("next_nodes", type_=ARRAY(Text)), THREADS.c.next_nodes),
    )
    return bells(
        thread, *records, group, held, _parked_by_drain(letter, ended), rung=ring_for(following), ended=ended
    )


def _parked_by_drain(letter: CTE, ended: CTE) -> CTE:
    """Keeps that the letter was parked, as where it is parked by itself. Parameter: parked."""
    reason = func.jsonb_build_object(word("reason"), func.concat(word("failed in replay "), ended.c.replays))
    return (
        insert(ACTIONS)
        .from_select(
            ["letter_id", "tenant", "by", "action", "facts"],
            select(letter.c.id, letter.c.tenant, word("drain"), word("park"), reason)
            .select_from(letter.join(ended, true()))
            .where(cast(bindparam("parked"), Boolean)),
        )
        .returning(ACTIONS.c.letter_id)
        .cte("parked_action")
    )
