"""What happens to a dead letter: replay, discard, park, schedule."""

from __future__ import annotations

from functools import cache

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    case,
    exists,
    func,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import Executable

from threadmill.core.transitions.lane import (
    BELL_COLUMNS,
    bells,
    next_of,
    ring_for,
    status_after,
    update_thread,
)
from threadmill.core.transitions.terms import (
    LETTERS,
    QUARANTINE_LOSSES,
    RUNS,
    THREADS,
    seconds,
    word,
)


def _acts_on_letter(*statuses: str) -> ColumnElement[bool]:
    return and_(
        LETTERS.c.id == bindparam("letter_id"), LETTERS.c.status.in_([word(status) for status in statuses])
    )


def thread_has_moved() -> ColumnElement[bool]:
    """A later run has started on the dead letter's thread since its run failed."""
    own, later = RUNS.alias("own"), RUNS.alias("later")
    return exists(
        select(later.c.id)
        .join(own, and_(own.c.tenant == later.c.tenant, own.c.thread_id == later.c.thread_id))
        .where(own.c.id == LETTERS.c.run_id, later.c.seq > own.c.seq, later.c.started_at.is_not(None))
    )


@cache
def replay() -> Executable:
    """waiting | parked → replaying, and the run back to pending at its own place. After `lock_thread`.

    The run's id stays, so while the thread has not moved LangGraph goes on from the failed checkpoint
    (mode resume); where it has, the input is applied at the thread's head (mode append).
    Parameters: letter_id, note (a JSON object). No row: the letter's status was another.
    """
    letter = (
        update(LETTERS)
        .where(_acts_on_letter("waiting", "parked"))
        .values(
            status=word("replaying"),
            replays=LETTERS.c.replays + 1,
            replay_mode=case((thread_has_moved(), word("append")), else_=word("resume")),
            next_replay_at=null(),
            updated_at=func.now(),
            notes=LETTERS.c.notes.op("||")(bindparam("note", type_=JSONB)),
        )
        .returning(LETTERS.c.id, LETTERS.c.run_id, LETTERS.c.replay_mode)
        .cte("letter")
    )
    ended = (
        update(RUNS)
        .where(RUNS.c.id == letter.c.run_id, RUNS.c.status.in_([word("error"), word("timeout")]))
        .values(
            status=word("pending"),
            run_at=func.now(),
            finished_at=null(),
            error=null(),
            deadline=null(),
            worker_id=null(),
            dispatched_at=null(),
            failures=0,
            throttled=0,
            # What was buried for the workers that it cost goes on alone, and the next loss buries it again.
            worker_losses=func.least(RUNS.c.worker_losses, QUARANTINE_LOSSES),
        )
        .returning(*BELL_COLUMNS, letter.c.replay_mode)
        .cte("replayed")
    )
    thread = update_thread(ended, status=word("busy"))
    return select(ended).add_cte(thread)


@cache
def discard() -> Executable:
    """waiting | parked → discarded, which frees a held lane. After `lock_thread`.

    Parameters: letter_id, note. No row: the letter's status was another.
    """
    ended = (
        update(LETTERS)
        .where(_acts_on_letter("waiting", "parked"))
        .values(
            status=word("discarded"),
            next_replay_at=null(),
            updated_at=func.now(),
            notes=LETTERS.c.notes.op("||")(bindparam("note", type_=JSONB)),
        )
        .returning(LETTERS.c.run_id.label("id"), LETTERS.c.id.label("letter_id"), LETTERS.c.tenant,
                   LETTERS.c.thread_id)
        .cte("discarded_letter")
    )  # fmt: skip
    following = next_of(ended)
    held = THREADS.alias("held")
    held_by_other = exists(  # whom the lane is held for after this
        select(held.c.tenant).where(
            held.c.tenant == ended.c.tenant,
            held.c.thread_id == ended.c.thread_id,
            held.c.held_by.is_not(None),
            held.c.held_by != ended.c.letter_id,
        )
    )
    thread = update_thread(
        ended,
        held_by=case((THREADS.c.held_by == ended.c.letter_id, null()), else_=THREADS.c.held_by),
        status=case((THREADS.c.held_by == ended.c.letter_id, status_after(following, word("error"))),
                    else_=THREADS.c.status),
    )  # fmt: skip
    return bells(thread, rung=ring_for(following, unless=held_by_other), ended=ended)


@cache
def park() -> Executable:
    """waiting → parked: a person has to decide. Parameters: letter_id, note."""
    return (
        update(LETTERS)
        .where(_acts_on_letter("waiting"))
        .values(
            status=word("parked"),
            next_replay_at=null(),
            updated_at=func.now(),
            notes=LETTERS.c.notes.op("||")(bindparam("note", type_=JSONB)),
        )
        .returning(LETTERS.c.id)
    )


@cache
def schedule_replay() -> Executable:
    """Sets when a waiting dead letter is due. Parameters: letter_id, delay (seconds)."""
    return (
        update(LETTERS)
        .where(_acts_on_letter("waiting"), LETTERS.c.next_replay_at.is_(null()))
        .values(next_replay_at=func.now() + seconds("delay"))
        .returning(LETTERS.c.id)
    )
