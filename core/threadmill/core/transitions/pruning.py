"""Which of a thread's checkpoints go: those past their time, and those beyond the newest so many.

The leader removes the first (`prune_thread`), the end of a run the others (`keep_newest`). Neither takes what
something may still go on from:

- A thread with an open dead letter is left alone: its replay goes back to where its run began or failed. So
  is one with a run that has begun and is not finished, which would go back there when it fails.
- So is a thread whose state stands in its older checkpoints too: a DeltaChannel's, or pending sends as
  LangGraph kept them before version 4.
- The newest that is live stays: the next run goes on from it. Where the thread's last run has failed for good
  it is not the newest of all.
- What a dead letter stands upon that is discarded but not yet removed stays: it can be restored.
- A subgraph call's namespace holds a colon and goes with the root checkpoint from which the call started. A
  subgraph with a checkpointer of its own outlives its calls, and its newest is kept like the root's.

LangGraph's tables are no models of the ledger's, so this is plain SQL.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import text
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.rollback import IS_LIVE, LIVE, REMOVAL

# How many checkpoints one run's end removes at the most; the ends that follow remove the rest.
REMOVED_AT_ONCE = 500

_STANDS_IN_SEVERAL = f"""exists (
                select from {SCHEMA}.checkpoints where thread_id = :key and (
                    metadata ? 'counters_since_delta_snapshot' or (checkpoint ->> 'v')::int < 4
                )
            )"""

# Rows of (checkpoint_ns, checkpoint_id). own: the thread's runs, those that failed at the least. idle: empty
# where the thread is to be left alone.
_NEEDED = f"""
        select checkpoint_ns, max(checkpoint_id) as checkpoint_id from {SCHEMA}.checkpoints, live
        where checkpoints.thread_id = :key and exists (select from idle) and {IS_LIVE}
        group by checkpoint_ns
        union all
        select checkpoint_ns, max(checkpoint_id) from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from idle)
            and checkpoint_ns <> '' and position(':' in checkpoint_ns) = 0
        group by checkpoint_ns
        union all
        select '', unnest(array[letter.base_checkpoint_id, letter.checkpoint_id])
        from own join {SCHEMA}.dead_letters as letter on letter.run_id = own.id
        where own.status in ('error', 'timeout', 'interrupted') and letter.status = 'discarded'
"""  # noqa: S608 - the schema's name is a constant

# The end of a statement: removes what `old` names (checkpoint_ns, checkpoint_id), and the calls made from it.
_REMOVED = f"""
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
            and not {_STANDS_IN_SEVERAL}
    ),
    recent as materialized (
        select own.id::text as name from own, idle
        where own.finished_at > now() - make_interval(secs => idle.ttl)
    ),
    {LIVE},
    needed as materialized ({_NEEDED}),
    old as materialized (
        select checkpoint_ns, checkpoint_id from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from idle) and position(':' in checkpoint_ns) = 0
            and (checkpoint_ns, checkpoint_id) not in (
                select checkpoint_ns, checkpoint_id from needed where checkpoint_id is not null
            )
            and (metadata ->> 'run_id' in (select name from recent)) is not true
    ),
    {_REMOVED}
"""  # noqa: S608 - the schema's name is a constant

# A pending run that has begun is the first of those that are unfinished: it had to be, and what was replayed
# before it has an open dead letter. Such a letter is found by its lane; a parked or discarded one by its run,
# which costs a look at all runs of the thread, and only where the tenant has dead letters.
_KEEP_NEWEST = f"""
    with ended as materialized (
        select from {SCHEMA}.runs
        where id = :run_id and attempt = :attempt and status || '' = 'success' and finished_at = now()
    ),
    own as materialized (
        select id, status from {SCHEMA}.runs
        where tenant = :tenant and thread_id = :thread_id
            and status in ('error', 'timeout', 'interrupted')
            and exists (select from ended)
            and exists (select from {SCHEMA}.dead_letters where tenant = :tenant)
        order by seq  -- so that the thread's index is the cheapest, whatever the tables are like
    ),
    idle as materialized (
        select from ended
        where coalesce((
                select attempt = 0 from {SCHEMA}.runs
                where tenant = :tenant and thread_id = :thread_id and status in ('pending', 'running')
                order by seq limit 1
            ), true)
            and not exists (
                select from {SCHEMA}.dead_letters
                where tenant = :tenant and thread_id = :thread_id and status in ('waiting', 'replaying')
            )
            and not exists (
                select from own join {SCHEMA}.dead_letters as letter on letter.run_id = own.id
                where letter.status not in ('resolved', 'discarded')
            )
            and not {_STANDS_IN_SEVERAL}
    ),
    {LIVE},
    newest as materialized (
        select checkpoint_id from {SCHEMA}.checkpoints, live
        where checkpoints.thread_id = :key and checkpoint_ns = '' and exists (select from idle) and {IS_LIVE}
        order by checkpoint_id desc limit :keep
    ),
    needed as materialized (
        select '' as checkpoint_ns, checkpoint_id from newest
        union all {_NEEDED}
    ),
    old as materialized (
        select checkpoint_ns, checkpoint_id from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from idle) and position(':' in checkpoint_ns) = 0
            and (checkpoint_ns, checkpoint_id) not in (
                select checkpoint_ns, checkpoint_id from needed where checkpoint_id is not null
            )
            and (checkpoint_ns = '' or checkpoint_id < (select min(checkpoint_id) from newest))
        order by checkpoint_id limit {REMOVED_AT_ONCE}
    ),
    {_REMOVED}
"""  # noqa: S608 - constants


@cache
def prune_thread() -> Executable:
    """Removes a thread's checkpoints but the latest live ones and those of runs that finished lately.

    What is lately its graph's policy says; of several graphs' the most patient one, and where one of them
    keeps all, all is kept. After `bind_retention` and `hold_thread`. Returns `pruned`, how many.
    Parameters: tenant, thread_id, key (the thread key), ttl (where no run of the thread is left).
    """
    return text(_PRUNE)


@cache
def keep_newest() -> Executable:
    """Removes a thread's checkpoints but the newest so many that are live, as a run on it has succeeded.

    After `succeed`, in its transaction and under the thread's lock: where that did not end the run this
    removes nothing, and the thread's next run finds it done. So a worker that is killed has either ended its
    run and pruned, or done neither, and the run goes on from where it stood. What a finish leaves (a thread
    that was to be left alone, more than REMOVED_AT_ONCE) the thread's next one removes.
    Returns `pruned`, how many. Parameters: run_id, attempt, tenant, thread_id, key (the thread key), keep.
    """
    return text(_KEEP_NEWEST)
