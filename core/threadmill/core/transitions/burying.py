"""How a run ends in a dead letter: bury, expire, reject."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, UUID
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import Executable
from sqlalchemy.types import TypeEngine

from threadmill.core.transitions.lane import (
    bells,
    failed_attempt,
    held_run,
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
    held_back_by_breaker,
    is_expired,
    seconds,
    stands,
    word,
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
        held_run(),
        status,
        failures=RUNS.c.failures + bindparam("spent", type_=Integer),
        worker_losses=RUNS.c.worker_losses + bindparam("lost", type_=Integer),
    )
    return _buried(ended, failed_attempt(ended, outcome))


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
