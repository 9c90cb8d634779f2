"""What the leader removes when its time is over: outputs, dead letters, runs; and which threads it prunes."""

from __future__ import annotations

from functools import cache

from sqlalchemy import (
    CTE,
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Text,
    any_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    null,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.terms import (
    GRAPHS,
    GROUPS,
    LETTERS,
    RUNS,
    TENANT_SETTING,
    THREADS,
    seconds,
    word,
)

_CHECKPOINT_TTL = cast(GRAPHS.c.policy["checkpoint_ttl"].astext, Float)


@cache
def expire_outputs() -> Executable:
    """Forgets outputs past their time. Parameters: ttl (seconds), limit."""
    old = (
        select(RUNS.c.id)
        .where(
            RUNS.c.output.is_not(None),
            RUNS.c.finished_at < func.now() - seconds("ttl"),
        )
        .limit(bindparam("limit", type_=Integer))
        .cte("old")
    )
    return update(RUNS).where(RUNS.c.id == old.c.id).values(output=null()).returning(RUNS.c.id)


def _seen(*where: ColumnElement[bool]) -> CTE:
    """The next runs in the order in which they finished, those of the last moment all of them.

    Parameters: after (a time, null from the beginning), ttl (seconds), limit.
    """
    after = bindparam("after", type_=DateTime(timezone=True))
    return (
        select(RUNS.c.id, RUNS.c.tenant, RUNS.c.thread_id, RUNS.c.graph, RUNS.c.finished_at)
        .where(
            RUNS.c.finished_at > func.coalesce(after, text("'-infinity'::timestamptz")),
            RUNS.c.finished_at <= func.now() - seconds("ttl"),
            *where,
        )
        .order_by(RUNS.c.finished_at)
        .fetch(bindparam("limit", type_=Integer), with_ties=True)
        .cte("seen")
    )


@cache
def remove_runs() -> Executable:
    """Removes runs past their time, with their attempts.

    A run stays as long as it has a dead letter, which shows its input and may bring it back. Returns
    `seen_to`, from where to go on (null: nothing is left), and the threads of those removed whose graph's
    checkpoints are to be pruned, each with `ttl`.
    Parameters: after, ttl, limit (how many are looked at).
    """
    seen = _seen()
    removable = (
        select(RUNS.c.id)
        .where(
            RUNS.c.id == func.any(func.array(select(seen.c.id).scalar_subquery())),
            RUNS.c.finished_at.is_not(None),
            ~exists(select(LETTERS.c.id).where(LETTERS.c.run_id == RUNS.c.id)),
        )
        .with_for_update(skip_locked=True)
        .cte("removable")
    )
    removed = (
        delete(RUNS)
        .where(RUNS.c.id == func.any(func.array(select(removable.c.id).scalar_subquery())))
        .returning(RUNS.c.tenant, RUNS.c.thread_id, RUNS.c.graph)
        .cte("removed")
    )
    threads = (
        select(removed.c.tenant, removed.c.thread_id, func.max(_CHECKPOINT_TTL).label("ttl"))
        .join_from(removed, GRAPHS, GRAPHS.c.name == removed.c.graph)
        .where(_CHECKPOINT_TTL.is_not(None))
        .group_by(removed.c.tenant, removed.c.thread_id)
        .subquery("threads")
    )
    progress = select(func.max(seen.c.finished_at).label("seen_to")).subquery("progress")
    return select(progress, threads).select_from(progress.outerjoin(threads, true())).add_cte(removed)


@cache
def remove_letters() -> Executable:
    """Removes dead letters that were closed some time ago, with what is recorded of them.

    Open ones stay, and parked ones too. Returns their ids. Parameters: ttl (seconds), limit.
    """
    old = (
        select(LETTERS.c.id)
        .where(
            LETTERS.c.status.in_([word("resolved"), word("discarded")]),
            LETTERS.c.updated_at < func.now() - seconds("ttl"),
        )
        .order_by(LETTERS.c.updated_at)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    return (
        delete(LETTERS)
        .where(LETTERS.c.id == func.any(func.array(select(old.c.id).scalar_subquery())))
        .returning(LETTERS.c.id)
    )


def _is_empty() -> ColumnElement[bool]:
    # A subquery of one row, so that each group is one look at the index: as `not exists` it would be a join,
    # for which the planner may read the whole index of dead letters.
    letter = select(LETTERS.c.id).where(LETTERS.c.fingerprint == GROUPS.c.fingerprint).limit(1)
    return letter.scalar_subquery().is_(null())


@cache
def empty_groups() -> Executable:
    """The next groups that have no dead letter any more.

    Returns `seen_to` beside each fingerprint, from where to go on; one row without a fingerprint where none
    is empty, and with a null where nothing is left.
    Parameters: after (a fingerprint), limit (how many are looked at).
    """
    seen = (
        select(GROUPS.c.fingerprint, _is_empty().label("is_empty"))
        .where(GROUPS.c.fingerprint > bindparam("after", type_=Text))
        .order_by(GROUPS.c.fingerprint)
        .limit(bindparam("limit", type_=Integer))
        .cte("seen")
    )
    empty = select(seen.c.fingerprint).where(seen.c.is_empty).subquery("empty")
    progress = select(func.max(seen.c.fingerprint).label("seen_to")).subquery("progress")
    return select(progress, empty).select_from(progress.outerjoin(empty, true()))


@cache
def hold_groups() -> Executable:
    """Waits until nobody is about to put a dead letter into a group, and lets nobody begin.

    Who buries a run finds its group there and locks nothing, so the group's removal could miss the letter.
    """
    return text(f"lock table {SCHEMA}.replay_groups in share row exclusive mode")


@cache
def remove_groups() -> Executable:
    """Removes those of the groups that are empty still. After `hold_groups`. Parameter: fingerprints."""
    return (
        delete(GROUPS)
        .where(GROUPS.c.fingerprint == any_(bindparam("fingerprints", type_=ARRAY(Text))), _is_empty())
        .returning(GROUPS.c.fingerprint)
    )


@cache
def pruned_graphs() -> Executable:
    """The graphs whose old checkpoints are pruned: name, `ttl` (seconds), pruned_to."""
    return select(GRAPHS.c.name, _CHECKPOINT_TTL.label("ttl"), GRAPHS.c.pruned_to).where(
        _CHECKPOINT_TTL.is_not(None)
    )


@cache
def finished_threads() -> Executable:
    """The threads on which a graph's runs finished next. Parameters: graph, after, ttl, limit (of runs).

    Returns `seen_to` beside each, from where to go on; one row without a thread where none is the graph's,
    and with a null where nothing is left.
    """
    seen = _seen()
    threads = (
        select(seen.c.tenant, seen.c.thread_id)
        .where(seen.c.graph == bindparam("graph", type_=Text))
        .distinct()
        .subquery("threads")
    )
    progress = select(func.max(seen.c.finished_at).label("seen_to")).subquery("progress")
    return select(progress, threads).select_from(progress.outerjoin(threads, true()))


@cache
def note_pruned() -> Executable:
    """Keeps up to where a graph's threads have been pruned. Parameters: graph, to."""
    return (
        update(GRAPHS)
        .where(GRAPHS.c.name == bindparam("graph", type_=Text))
        .values(pruned_to=bindparam("to", type_=DateTime(timezone=True)))
    )


@cache
def bind_retention() -> Executable:
    """Binds the transaction to a tenant, and each statement of it to a time.

    Parameters: tenant, milliseconds (text).
    """
    return select(
        func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()),
        func.set_config("statement_timeout", bindparam("milliseconds", type_=Text), true()),
    )


@cache
def hold_thread() -> Executable:
    """`lock_thread`, but it fails where it would have to wait. Parameters: tenant, thread_id."""
    return (
        select(THREADS.c.status)
        .where(THREADS.c.tenant == bindparam("tenant"), THREADS.c.thread_id == bindparam("thread_id"))
        .with_for_update(nowait=True)
    )
