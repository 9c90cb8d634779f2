"""Taking back what cancelled runs wrote into LangGraph's tables, and what they answered.

Both statements come after the one that ended the runs, in its transaction and under the thread's lock: ending
a run waits for the fence of each write that is in flight, so a later statement sees them all, and what an
attempt goes on to write is refused. LangGraph's tables are no models of the ledger's, so this is plain SQL.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import text
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA

# Those that this transaction has just ended with the action rollback. Another transaction that began in the
# same microsecond would have its own taken back once more, which changes nothing.
_TAKEN_BACK = f"""
    taken_back as materialized (
        select id, id::text as name from {SCHEMA}.runs
        where tenant = :tenant and thread_id = :thread_id and finished_at = now()
            and status = 'interrupted' and error ->> 'action' = 'rollback'
    )
"""  # noqa: S608 - the schema's name is a constant

# Which checkpoints are of effect on the thread's next run: those of a run that failed for good are not.
LIVE = f"""
    live as materialized (
        select base_checkpoint_id, dead_until from {SCHEMA}.threads
        where tenant = :tenant and thread_id = :thread_id
    )
"""  # noqa: S608 - the schema's name is a constant
IS_LIVE = """(
    live.dead_until is null or checkpoint_id > live.dead_until
    or checkpoint_id <= live.base_checkpoint_id
) is true"""

# Everything of the checkpoints that `gone` names (checkpoint_ns, checkpoint_id): themselves, the writes
# beside them, and the blobs to which no other checkpoint refers. All parts see the tables as they were
# before. Where a thread's rows are compared to a set that may be large, it is by `not in` or `in … is true`,
# which hash: the planner guesses that the sets are small, and would go through them for each row. The blobs
# are each looked up by its key, for the same reason: a join would compare all that the thread has with all
# that is freed. Nobody moves them meanwhile, as a blob is never updated.
REMOVAL = f"""
    removed_checkpoints as (
        delete from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from gone)
            and ((checkpoint_ns, checkpoint_id) in (select checkpoint_ns, checkpoint_id from gone)) is true
        returning checkpoint_ns, checkpoint -> 'channel_versions' as versions
    ),
    removed_writes as (
        delete from {SCHEMA}.checkpoint_writes
        where thread_id = :key and exists (select from gone)
            and ((checkpoint_ns, checkpoint_id) in (select checkpoint_ns, checkpoint_id from gone)) is true
    ),
    freed as (
        select checkpoint_ns, version.key as channel, version.value as version
        from removed_checkpoints cross join lateral jsonb_each_text(versions) as version
        except
        select checkpoint_ns, version.key, version.value
        from {SCHEMA}.checkpoints
            cross join lateral jsonb_each_text(checkpoint -> 'channel_versions') as version
        where thread_id = :key and exists (select from gone)
            and (checkpoint_ns in (select checkpoint_ns from gone)) is true
            and (checkpoint_ns, checkpoint_id) not in (select checkpoint_ns, checkpoint_id from gone)
    ),
    removed_blobs as (
        delete from {SCHEMA}.checkpoint_blobs where ctid = any(array(
            select found.ctid from freed cross join lateral (
                select ctid from {SCHEMA}.checkpoint_blobs as blob
                where blob.thread_id = :key and blob.checkpoint_ns = freed.checkpoint_ns
                    and blob.channel = freed.channel and blob.version = freed.version
                limit 1
            ) as found
        ))
    )
"""  # noqa: S608 - the schema's name is a constant

# The end of a statement: takes away the writes that `left_beside` names (checkpoint_ns, checkpoint_id,
# task_id, idx), but where one `replaces` what another run had written, that is put back.
TAKING_AWAY = f"""
    put_back as (
        update {SCHEMA}.checkpoint_writes
        set run_id = replaced_run_id, type = replaced_type, blob = replaced_blob,
            replaced_run_id = null, replaced_type = null, replaced_blob = null
        where thread_id = :key and exists (select from left_beside where replaces)
            and (checkpoint_ns, checkpoint_id, task_id, idx) in (
                select checkpoint_ns, checkpoint_id, task_id, idx from left_beside where replaces
            )
    )
    delete from {SCHEMA}.checkpoint_writes
    where thread_id = :key and exists (select from left_beside where not replaces)
        and (checkpoint_ns, checkpoint_id, task_id, idx) in (
            select checkpoint_ns, checkpoint_id, task_id, idx from left_beside where not replaces
        )
"""  # noqa: S608 - the schema's name is a constant

# What later runs have built upon stays: the checkpoints from which theirs descend, and the writes that led
# there. (A run has later ones when it failed, the thread went on, and it was being replayed.) What is dead
# was led on to by nothing that stays.
_ROLL_BACK = f"""
    with {_TAKEN_BACK},
    mine as materialized (
        select checkpoint_ns, checkpoint_id from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from taken_back)
            and metadata ->> 'run_id' in (select name from taken_back)
    ),
    built_upon as materialized (
        select checkpoint_ns, max(parent_checkpoint_id) as checkpoint_id from {SCHEMA}.checkpoints
        where thread_id = :key and exists (select from mine)
            and ((checkpoint_ns, parent_checkpoint_id) in (
                select checkpoint_ns, checkpoint_id from mine
            )) is true
            and (checkpoint_ns, checkpoint_id) not in (select checkpoint_ns, checkpoint_id from mine)
        group by checkpoint_ns
    ),
    gone as materialized (
        select mine.checkpoint_ns, mine.checkpoint_id
        from mine left join built_upon on built_upon.checkpoint_ns = mine.checkpoint_ns
        where built_upon.checkpoint_id is null or mine.checkpoint_id > built_upon.checkpoint_id
    ),
    {REMOVAL},
    {LIVE},
    led_on as materialized (
        select checkpoint_ns, parent_checkpoint_id as checkpoint_id from {SCHEMA}.checkpoints, live
        where checkpoints.thread_id = :key and exists (select from taken_back)
            and parent_checkpoint_id is not null and {IS_LIVE}
            and (checkpoint_ns, checkpoint_id) not in (select checkpoint_ns, checkpoint_id from gone)
    ),
    left_beside as materialized (
        select checkpoint_ns, checkpoint_id, task_id, idx, replaced_blob is not null
            and (replaced_run_id in (select id from taken_back)) is not true as replaces
        from {SCHEMA}.checkpoint_writes
        where thread_id = :key and exists (select from taken_back)
            and run_id in (select id from taken_back)
            and (checkpoint_ns, checkpoint_id) not in (select checkpoint_ns, checkpoint_id from gone)
            and (checkpoint_ns, checkpoint_id) not in (select checkpoint_ns, checkpoint_id from led_on)
    ),
    {TAKING_AWAY}
"""  # noqa: S608 - the schema's name is a constant

_FORGET_QUESTION = f"""
    with {LIVE},
    head as (
        select checkpoint_id, metadata ->> 'run_id' as run_id from {SCHEMA}.checkpoints, live
        where checkpoints.thread_id = :key and checkpoint_ns = '' and {IS_LIVE}
        order by checkpoint_id desc limit 1
    ),
    wrote as (
        select run_id from head
        union all
        select writes.run_id::text from head
            join {SCHEMA}.checkpoint_writes as writes on writes.checkpoint_id = head.checkpoint_id
        where writes.thread_id = :key and writes.checkpoint_ns = ''
    )
    update {SCHEMA}.threads set interrupts = null
    where tenant = :tenant and thread_id = :thread_id and interrupts is not null and exists (
        select from {SCHEMA}.runs where status = 'interrupted' and finished_at = now()
            and tenant = :tenant and thread_id = :thread_id and id::text in (select run_id from wrote)
    )
"""  # noqa: S608 - the schema's name is a constant


@cache
def roll_back() -> Executable:
    """Removes what the runs wrote that this transaction has cancelled with the action rollback.

    Their checkpoints in every namespace, the writes beside these, their blobs, and the writes that they left
    beside other runs' checkpoints; what such a write had replaced, as a second answer does the first, is put
    back. Items of the store are no part of the thread and stay.
    Parameters: tenant, thread_id, key (the thread key). The transaction is bound to the tenant.
    """
    return text(_ROLL_BACK)


@cache
def forget_question() -> Executable:
    """Has the thread ask no longer what a run has answered that this transaction has cancelled.

    A run that was rolled back has answered nothing. Parameters: those of `roll_back`.
    """
    return text(_FORGET_QUESTION)
