"""From where a thread's next run goes on: what failed for good is set aside, and a replay goes back.

LangGraph's tables are no models of the ledger's, so this is plain SQL. A thread's `base_checkpoint_id` and
`dead_until` say which of its checkpoints are of no effect. The writes that LangGraph saves beside a
checkpoint (an answer, an update, what finished siblings wrote) bear no such bounds: those that a run without
effect has left beside the base are taken away before another run begins there, or they would count for it.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import text
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.rollback import TAKING_AWAY

# What the run has written since it began, or was replayed, is of no effect on those that follow. Where it has
# written no checkpoint the thread goes on from where it stands, and what the run left there is still to be
# taken away. A subgraph's last checkpoint may be newer than its parent's. Only what this transaction has
# ended is set aside: who came too late to end the run sets aside nothing.
_SET_ASIDE = f"""
    with own as (
        select id, id::text as name from {SCHEMA}.runs
        where id = :run_id and attempt = :attempt and status in ('error', 'timeout') and finished_at = now()
    ),
    lane as (
        select base_checkpoint_id, dead_until from {SCHEMA}.threads
        where tenant = :tenant and thread_id = :thread_id
    ),
    written as materialized (
        select checkpoint_ns, checkpoint_id, parent_checkpoint_id from {SCHEMA}.checkpoints, own, lane
        where checkpoints.thread_id = :key and metadata ->> 'run_id' = own.name
            and checkpoint_id > coalesce(lane.dead_until, '')
    ),
    first as materialized (
        select parent_checkpoint_id as parent from written
        where checkpoint_ns = '' order by checkpoint_id limit 1
    ),
    standing as materialized (
        select max(checkpoint_id) as checkpoint_id from {SCHEMA}.checkpoints, lane
        where checkpoints.thread_id = :key and checkpoint_ns = '' and not exists (select from first)
            and (lane.dead_until is null or checkpoint_id > lane.dead_until
                or checkpoint_id <= lane.base_checkpoint_id)
    ),
    bounds as materialized (
        select case
                when not exists (select from first) then standing.checkpoint_id
                when dead_until is null then (select parent from first)
                when (select parent from first) > dead_until then (select parent from first)
                else base_checkpoint_id
            end as base_checkpoint_id,
            greatest(dead_until, standing.checkpoint_id, (select max(checkpoint_id) from written))
                as dead_until
        from {SCHEMA}.threads, standing
        where tenant = :tenant and thread_id = :thread_id
    ),
    letter as (
        update {SCHEMA}.dead_letters set base_checkpoint_id = bounds.base_checkpoint_id
        from bounds, own where dead_letters.run_id = own.id
    )
    update {SCHEMA}.threads
    set base_checkpoint_id = bounds.base_checkpoint_id, dead_until = bounds.dead_until
    from bounds, own
    where tenant = :tenant and thread_id = :thread_id
"""  # noqa: S608 - the schema's name is a constant

# Takes away what the runs of `undone` (id, name) wrote beside the checkpoint of `base` (checkpoint_id) and
# beside those of its subgraphs that are not their own; what such a write had replaced is put back.
_CLEARED = f"""
    left_beside as materialized (
        select w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.replaced_blob is not null
            and (w.replaced_run_id in (select id from undone)) is not true as replaces
        from {SCHEMA}.checkpoint_writes as w, base
        where w.thread_id = :key and w.run_id in (select id from undone) and case
            when w.checkpoint_ns = '' then w.checkpoint_id = base.checkpoint_id
            else not exists (
                select from {SCHEMA}.checkpoints as c
                where c.thread_id = :key and c.checkpoint_ns = w.checkpoint_ns
                    and c.checkpoint_id = w.checkpoint_id
                    and c.metadata ->> 'run_id' in (select name from undone)
            ) end
    ),
    {TAKING_AWAY}
"""  # noqa: S608 - the schema's name is a constant

# A restart goes back behind the runs that came later too, and so do their answers.
_FORK = f"""
    with letter as materialized (
        select tenant, thread_id, run_id, seq, base_checkpoint_id,
            replay_mode = 'restart' and checkpoint_id is not null as goes_back
        from {SCHEMA}.dead_letters
        where id = :letter_id and status = 'replaying' and replayed_at = now()
            and replay_mode in ('restart', 'append')
    ),
    forked as (
        update {SCHEMA}.threads as thread
        set base_checkpoint_id = letter.base_checkpoint_id,
            dead_until = (select max(checkpoint_id) from {SCHEMA}.checkpoints where thread_id = :key)
        from letter
        where letter.goes_back
            and thread.tenant = letter.tenant and thread.thread_id = letter.thread_id
    ),
    undone as materialized (
        select run.id, run.id::text as name from {SCHEMA}.runs as run, letter
        where run.tenant = letter.tenant and run.thread_id = letter.thread_id
            and (run.id = letter.run_id or letter.goes_back and run.seq > letter.seq)
    ),
    base as materialized (
        select base_checkpoint_id as checkpoint_id from letter where base_checkpoint_id is not null
    ),
    {_CLEARED}
"""  # noqa: S608 - the schema's name is a constant

_CLEAR_BASE = f"""
    with undone as materialized (
        select id, id::text as name from {SCHEMA}.runs
        where tenant = :tenant and thread_id = :thread_id and status in ('error', 'timeout')
    ),
    base as materialized (select cast(:base_checkpoint_id as text) as checkpoint_id),
    {_CLEARED}
"""  # noqa: S608 - the schema's name is a constant


@cache
def set_aside() -> Executable:
    """Has the thread's next run go on from before what this one wrote, which has just failed for good.

    After `bury`, `expire` or `reject`, in their transaction: ending the run has waited for its writes that
    were in flight, so this sees them all. The transaction is bound to the tenant.
    Parameters: run_id, attempt, tenant, thread_id, key (the thread key).
    """
    return text(_SET_ASIDE)


@cache
def fork_thread() -> Executable:
    """Has a run that this transaction replays begin anew: by `restart` from before its input.

    By `append` the thread stays where it stands. In both what the run had given there counts as not given.
    After `replay`; the transaction is bound to the tenant. Parameters: letter_id, key (the thread key).
    """
    return text(_FORK)


@cache
def clear_base() -> Executable:
    """Takes away what runs that failed for good have left beside the checkpoint from which a run sets out.

    Before the run's graph is invoked, each time; it changes nothing of what the run wrote itself. The
    transaction is bound to the tenant. Parameters: tenant, thread_id, key (the thread key),
    base_checkpoint_id.
    """
    return text(_CLEAR_BASE)
