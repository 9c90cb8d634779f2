"""What ends runs on request: cancel, and an enqueue whose strategy is interrupt or rollback."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
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
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlalchemy.sql import Executable

from threadmill.core.transitions.enqueue import RUN_COLUMNS
from threadmill.core.transitions.lane import (
    attempt_record,
    bells,
    free_lane,
    next_of,
    ring_for,
    status_after,
    update_thread,
)
from threadmill.core.transitions.terms import LETTERS, RUNS, THREADS, is_unfinished, stands, word

_NOWHERE = literal_column("'{}'::text[]", ARRAY(Text))


@cache
def cancel() -> Executable:
    """pending | running → interrupted, which fences an attempt that is under way. After `lock_thread`.

    Then `roll_back`, where the action is rollback, and `forget_question`.
    Parameters: run_id, action (interrupt or rollback), error, cause. No row: the run was finished already.
    """
    before = (
        select(
            RUNS.c.id,
            RUNS.c.status,
            bindparam("action", type_=Text).label("action"),
            bindparam("error", type_=JSON).label("error"),
            bindparam("cause", type_=Text).label("cause"),
        )
        .where(RUNS.c.id == bindparam("run_id"), is_unfinished(RUNS.c.status))
        .with_for_update()
        .cte("before")
    )
    ended, *records = _end(before)
    following = next_of(ended)
    lane = _lane_after(ended, records[1])
    thread = update_thread(
        ended,
        status=status_after(
            following,
            case(
                (and_(ended.c.action == word("interrupt"), ended.c.had_begun), word("interrupted")),
                else_=_status_before(ended, lane["next_nodes"]),
            ),
        ),
        **lane,
    )
    return bells(thread, *records, rung=ring_for(following), ended=ended)


@cache
def supersede() -> Executable:
    """pending | running → interrupted, for every run that an enqueue takes the place of.

    After `enter_threads` and before `insert_runs`; between them `roll_back` of each thread whose action is
    rollback, and `forget_question`. Where a run has the idempotency key already, nothing will be enqueued and
    nothing is ended. Returns RUN_COLUMNS of the ended runs.
    Parameters: the_tenant, and arrays with an element for each thread: thread_ids, actions, keys (null where
    the enqueue has none), errors (JSON texts), causes.
    """
    names = ("thread_ids", "actions", "keys", "errors", "causes")
    entries = (
        func.unnest(*(bindparam(name, type_=ARRAY(Text)) for name in names))
        .table_valued("thread_id", "action", "key", "error", "cause")
        .render_derived("entries")
    )
    tenant = bindparam("the_tenant", type_=Text)
    known = RUNS.alias("known")
    # Row by row, as in `insert_runs`: few threads, each with few unfinished runs.
    unfinished = (
        select(RUNS.c.id, RUNS.c.status)
        .where(RUNS.c.tenant == tenant, RUNS.c.thread_id == entries.c.thread_id, is_unfinished(RUNS.c.status))
        .with_for_update()
        .lateral("unfinished")
    )
    before = (
        select(
            unfinished.c.id,
            unfinished.c.status,
            entries.c.action,
            cast(entries.c.error, JSON).label("error"),
            entries.c.cause,
        )
        .select_from(entries.join(unfinished, true()))
        .where(~exists(
            select(known.c.id).where(known.c.tenant == tenant, known.c.idempotency_key == entries.c.key)
        ))
        .cte("before")
    )  # fmt: skip
    ended, *records = _end(before)
    threads = (
        update(THREADS)
        .where(
            THREADS.c.tenant == tenant,
            THREADS.c.thread_id == func.any(func.array(select(ended.c.thread_id).scalar_subquery())),
        )
        .values(**_lane_after(ended, records[1]))
        .returning(THREADS.c.thread_id)
        .cte("freed_thread")
    )
    return select(*(ended.c[column.name] for column in RUN_COLUMNS)).add_cte(*records, threads)


def _end(before: CTE) -> tuple[CTE, CTE, CTE, CTE]:
    """Ends the runs of `before` (id, status, action, error, cause), as part of a larger statement.

    Returns the ended runs, what was under way as attempts, the dead letters that were being replayed, and
    the lanes that these held, which are free.
    """
    ended = (
        update(RUNS)
        .where(RUNS.c.id == before.c.id)
        .values(status=word("interrupted"), finished_at=func.now(), error=before.c.error)
        .returning(
            *RUN_COLUMNS,
            RUNS.c.worker_id,
            RUNS.c.dispatched_at,
            RUNS.c.replays,
            RUNS.c.started_at.is_not(None).label("had_begun"),
            before.c.status.label("was"),
            before.c.action,
            before.c.cause,
        )
        .cte("ended")
    )
    attempt = attempt_record(
        ended, "cancelled", {"cause": ended.c.cause}, where=ended.c.was == word("running")
    )
    discarded = (
        update(LETTERS)
        .where(LETTERS.c.run_id == ended.c.id, stands(LETTERS.c.status, "replaying"))
        .values(status=word("discarded"), updated_at=func.now(), next_replay_at=null())
        .returning(LETTERS.c.id, LETTERS.c.run_id)
        .cte("discarded_letter")
    )
    return ended, attempt, discarded, free_lane(discarded)


def _lane_after(ended: CTE, discarded: CTE) -> dict[str, ColumnElement[Any]]:
    """The columns of the ended runs' threads.

    Where a run is rolled back that had failed before, its thread stands at no node of it any more, but at
    the question that was open before, or nowhere.
    """
    later = RUNS.alias("later")
    moved = (
        select(later.c.id)
        .where(
            later.c.tenant == ended.c.tenant,
            later.c.thread_id == ended.c.thread_id,
            later.c.seq > ended.c.seq,
            later.c.started_at.is_not(None),
        )
        .correlate(ended)
    )
    undone = (
        select(ended.c.id)
        .where(
            ended.c.id.in_(select(discarded.c.run_id)),
            ended.c.thread_id == THREADS.c.thread_id,
            ended.c.action == word("rollback"),
            THREADS.c.interrupts.is_(null()),
            ~exists(moved),
        )
        .correlate(THREADS)
    )
    return {
        "next_nodes": case((exists(undone), _NOWHERE), else_=THREADS.c.next_nodes),
    }


def _status_before(ended: CTE, next_nodes: ColumnElement[Any]) -> ColumnElement[str]:
    """The status in which the last run that took effect had left the thread. next_nodes: its own by then."""
    last = RUNS.alias("last")
    status = (
        select(last.c.status)
        .where(
            last.c.tenant == ended.c.tenant,
            last.c.thread_id == ended.c.thread_id,
            last.c.id != ended.c.id,
            last.c.started_at.is_not(None),
            last.c.finished_at.is_not(None),
            func.coalesce(last.c.error["action"].astext, "") != word("rollback"),
        )
        .order_by(last.c.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    asks = or_(THREADS.c.interrupts.is_not(None), next_nodes != _NOWHERE)
    return case(
        {
            "": word("idle"),  # there was none
            "success": case((asks, word("interrupted")), else_=word("idle")),
            "interrupted": word("interrupted"),
        },
        value=func.coalesce(status, ""),
        else_=word("error"),
    )
