"""What the leader removes when its time is over: outputs, runs with their records, checkpoints."""

from __future__ import annotations

from functools import cache

from sqlalchemy import (
    CTE,
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Text,
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
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.rollback import REMOVAL
from threadmill.core.transitions.terms import GRAPHS, LETTERS, RUNS, TENANT_SETTING, THREADS, seconds, word

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
    """Removes runs past their time, with their attempts and their closed dead letters.

    A run with an open dead letter stays. Returns `seen_to`, from where to go on (null: nothing is left), and
    the threads of those removed whose graph's checkpoints are to be pruned, each with `ttl`.
    Parameters: after, ttl, limit (how many are looked at).
    """
    seen = _seen()
    removable = (
        select(RUNS.c.id)
        .where(
            RUNS.c.id == func.any(func.array(select(seen.c.id).scalar_subquery())),
            RUNS.c.finished_at.is_not(None),
            ~exists(
                select(LETTERS.c.id).where(
                    LETTERS.c.run_id == RUNS.c.id,
                    LETTERS.c.status.not_in([word("resolved"), word("discarded")]),
                )
            ),
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


# A thread with an unfinished run or an open dead letter is left alone, and so is one whose state stands in
# its older checkpoints too: a DeltaChannel's, or pending sends as LangGraph kept them before version 4.
# A subgraph call's namespace holds a colon and goes with the root checkpoint from which the call started.
# A subgraph with a checkpointer of its own outlives its calls, and is kept like the root.
_PRUNE = f"""
    with own as materialized (
        select id, status, graph, finished_at from {SCHEMA}.runs
        where tenant = :tenant and thread_id = :thread_id
    ),
    policy as materialized (
        select case when count(*) = 0 then cast(:ttl as double precision)
            when bool_and(ttl is not null) then max(ttl) end as ttl
        from (
            select (
                select (policy ->> 'checkpoint_ttl')::float from {SCHEMA}.graphs where name = own.graph
            ) as ttl
            from own
        ) as of_run
    ),
    idle as materialized (
        select ttl from policy
        where ttl is not null
            and not exists (select from own where status in ('pending', 'running'))
            and not exists (
                select from own join {SCHEMA}.dead_letters as letter on letter.run_id = own.id
                where own.status in ('error', 'timeout')
                    and letter.status not in ('resolved', 'discarded')
            )
            and not exists (
                select from {SCHEMA}.checkpoints where thread_id = :key and (
                    metadata ? 'counters_since_delta_snapshot' or (checkpoint ->> 'v')::int < 4
                )
            )
    ),
    recent as materialized (
        select own.id::text as name from own, idle
        where own.finished_at > now() - make_interval(secs => idle.ttl)
    ),
    latest as materialized (
        select checkpoint_ns, max(checkpoint_id) as checkpoint_id from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from idle) group by checkpoint_ns
    ),
    old as materialized (
        select checkpoint_ns, checkpoint_id from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from idle) and position(':' in checkpoint_ns) = 0
            and (checkpoint_ns, checkpoint_id) not in (select checkpoint_ns, checkpoint_id from latest)
            and (metadata ->> 'run_id' in (select name from recent)) is not true
    ),
    old_calls as materialized (
        select distinct checkpoint_ns from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from old) and position(':' in checkpoint_ns) > 0
            and (metadata -> 'parents' ->> '' in (
                select checkpoint_id from old where checkpoint_ns = ''
            )) is true
    ),
    gone as materialized (
        select checkpoint_ns, checkpoint_id from old
        union all
        select checkpoint_ns, checkpoint_id from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from old_calls)
            and (checkpoint_ns in (select checkpoint_ns from old_calls)) is true
    ),
    {REMOVAL},
    orphaned as (
        update {SCHEMA}.checkpoints set parent_checkpoint_id = null
        where thread_id = :key and exists (select from gone)
            and ((checkpoint_ns, parent_checkpoint_id) in (
                select checkpoint_ns, checkpoint_id from gone
            )) is true
            and (checkpoint_ns, checkpoint_id) not in (select checkpoint_ns, checkpoint_id from gone)
    )
    select count(*) as pruned from gone
"""  # noqa: S608 - the schema's name is a constant


@cache
def prune_thread() -> Executable:
    """Removes a thread's checkpoints but the latest ones and those of runs that finished lately.

    What is lately its graph's policy says; of several graphs' the most patient one, and where one of them
    keeps all, all is kept. After `bind_retention` and `hold_thread`. Returns `pruned`, how many.
    Parameters: tenant, thread_id, key (the thread key), ttl (where no run of the thread is left).
    """
    return text(_PRUNE)
