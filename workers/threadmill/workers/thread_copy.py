"""A copy, in memory, of what of a thread a trial needs: where it sets out, and where the thread stands."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from threadmill.core.keys import thread_key
from threadmill.workers.checkpointer import STRICT, stay_ahead_of
from threadmill.workers.lease import Lease, Pool, bound_connection
from threadmill.workers.patience import patiently

_LETTER = """
    select letter.run_id, letter.thread_id, letter.seq, letter.checkpoint_id, letter.base_checkpoint_id,
        thread.base_checkpoint_id as live_base, thread.dead_until
    from dead_letters as letter join threads as thread using (tenant, thread_id)
    where letter.id = %(letter_id)s
"""
_HEAD = """
    select max(checkpoint_id) as checkpoint_id from checkpoints
    where thread_id = %(key)s and checkpoint_ns = '' and (
        %(dead_until)s::text is null or checkpoint_id > %(dead_until)s or checkpoint_id <= %(live_base)s
    )
"""
# The checkpoint itself, the newest of each subgraph that was called from it and of each that has a
# checkpointer of its own, and, where a DeltaChannel keeps a value in what was written since, those before.
# What runs of no effect have written is left out, as where such a run is replayed in earnest.
_COPIED = """
    with recursive undone as materialized (
        select id, id::text as name from runs
        where tenant = %(tenant)s and thread_id = %(thread_id)s and not %(resumes)s and (
            id = %(run_id)s or status in ('error', 'timeout') or %(goes_back)s and seq > %(seq)s
        )
    ),
    latest as materialized (
        select checkpoint_ns, max(checkpoint_id) as checkpoint_id from checkpoints
        where thread_id = %(key)s and checkpoint_ns <> ''
            and (metadata ->> 'run_id' in (select name from undone)) is not true
            and (position(':' in checkpoint_ns) = 0 or metadata -> 'parents' ->> '' = %(target)s)
        group by checkpoint_ns
        union all
        select '', %(target)s
    ),
    copied as (
        select c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint, c.metadata
        from checkpoints as c join latest using (checkpoint_ns, checkpoint_id)
        where c.thread_id = %(key)s
        union
        select c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint, c.metadata
        from copied join checkpoints as c
            on c.thread_id = %(key)s and c.checkpoint_ns = copied.checkpoint_ns
            and c.checkpoint_id = copied.parent_checkpoint_id
        where copied.metadata ? 'counters_since_delta_snapshot'
    )
"""
_CHECKPOINTS = f"{_COPIED} select * from copied"  # noqa: S608 - constants
_BLOBS = f"""
    {_COPIED}
    select distinct b.checkpoint_ns, b.channel, b.version, b.type, b.blob
    from copied cross join lateral jsonb_each_text(copied.checkpoint -> 'channel_versions') as version
        join checkpoint_blobs as b on b.thread_id = %(key)s and b.checkpoint_ns = copied.checkpoint_ns
            and b.channel = version.key and b.version = version.value
"""  # noqa: S608 - constants
_WRITES = f"""
    {_COPIED}
    select w.checkpoint_ns, w.checkpoint_id, w.task_id, w.task_path, w.idx, w.channel,
        coalesce(w.run_id = %(run_id)s, false) as own,
        case when w.run_id in (select id from undone) then w.replaced_type else w.type end as type,
        case when w.run_id in (select id from undone) then w.replaced_blob else w.blob end as blob
    from copied join checkpoint_writes as w on w.thread_id = %(key)s
        and w.checkpoint_ns = copied.checkpoint_ns and w.checkpoint_id = copied.checkpoint_id
    where (w.run_id in (select id from undone)) is not true
        or w.replaced_blob is not null and (w.replaced_run_id in (select id from undone)) is not true
"""  # noqa: S608 - constants


@dataclass(frozen=True)
class ThreadCopy:
    """saver: holds where the trial sets out; before: where the thread stands, to compare with.

    run_id: of the run that failed. begun: it has been given its input or command there already.
    """

    thread_id: str
    run_id: uuid.UUID
    saver: InMemorySaver
    before: InMemorySaver
    begun: bool


async def copy_thread(
    pool: Pool, tenant: str, lease: Lease, letter_id: uuid.UUID, mode: str
) -> ThreadCopy | None:
    """The copy for a trial of a dead letter; None if that is gone. Raises LeaseLost."""

    async def copied() -> ThreadCopy | None:
        async with bound_connection(pool, tenant, lease) as connection:
            letter = await _one(connection, _LETTER, {"letter_id": letter_id})
            return None if letter is None else await _copy(connection, tenant, letter, mode)

    return await patiently(copied)


async def _copy(connection: AsyncConnection[DictRow], tenant: str, letter: DictRow, mode: str) -> ThreadCopy:
    thread_id = letter["thread_id"]
    place = {**letter, "tenant": tenant, "key": thread_key(tenant, thread_id)}
    found = await _one(connection, _HEAD, place)
    head = None if found is None else found["checkpoint_id"]
    goes_back = mode == "restart" and letter["checkpoint_id"] is not None
    if goes_back:
        target = letter["base_checkpoint_id"]
    elif mode == "resume":
        target = letter["checkpoint_id"] or head
    else:
        target = head
    plain = {**place, "resumes": False, "goes_back": False}
    before = _Seeding(thread_id)
    await before.seed(connection, {**plain, "target": head})
    start = _Seeding(thread_id)
    await start.seed(
        connection, {**plain, "target": target, "resumes": mode == "resume", "goes_back": goes_back}
    )
    begun = mode == "resume" and start.holds_writes_of(str(letter["run_id"]), target)
    return ThreadCopy(thread_id, letter["run_id"], start.saver, before.saver, begun)


class _Seeding:
    """Fills a saver in memory with rows of Postgres', values as they are serialised there."""

    def __init__(self, thread_id: str) -> None:
        self.saver = InMemorySaver(serde=STRICT)
        self._thread_id = thread_id
        self._written_by: set[tuple[str, str | None]] = set()  # (checkpoint id, run id) at the root
        self._own_beside: set[str] = set()

    def holds_writes_of(self, run_id: str, checkpoint_id: str | None) -> bool:
        """As BoundSaver's: the run made the checkpoint, or has written beside it."""
        return checkpoint_id is not None and (
            (checkpoint_id, run_id) in self._written_by or checkpoint_id in self._own_beside
        )

    async def seed(self, connection: AsyncConnection[DictRow], place: dict[str, Any]) -> None:
        if place["target"] is None:
            return
        for row in await _all(connection, _BLOBS, place):
            key = (self._thread_id, row["checkpoint_ns"], row["channel"], row["version"])
            self.saver.blobs[key] = (row["type"], row["blob"] or b"")
        for row in await _all(connection, _CHECKPOINTS, place):
            self._add_checkpoint(row)
        for row in await _all(connection, _WRITES, place):
            self._add_write(row)

    def _add_checkpoint(self, row: DictRow) -> None:
        namespace, checkpoint_id = row["checkpoint_ns"], row["checkpoint_id"]
        stay_ahead_of(checkpoint_id)
        checkpoint = dict(row["checkpoint"])
        versions = checkpoint["channel_versions"]
        for name, value in (checkpoint.pop("channel_values", None) or {}).items():
            key = (self._thread_id, namespace, name, versions.get(name))
            if key not in self.saver.blobs:
                self.saver.blobs[key] = STRICT.dumps_typed(value)
        self.saver.storage[self._thread_id][namespace][checkpoint_id] = (
            STRICT.dumps_typed(checkpoint),
            STRICT.dumps_typed(row["metadata"]),
            row["parent_checkpoint_id"],
        )
        if not namespace:
            self._written_by.add((checkpoint_id, row["metadata"].get("run_id")))

    def _add_write(self, row: DictRow) -> None:
        beside = (self._thread_id, row["checkpoint_ns"], row["checkpoint_id"])
        value = (row["type"], row["blob"])
        self.saver.writes[beside][row["task_id"], row["idx"]] = (
            row["task_id"],
            row["channel"],
            value,
            row["task_path"],
        )
        if row["own"] and not row["checkpoint_ns"]:
            self._own_beside.add(row["checkpoint_id"])


async def _one(connection: AsyncConnection[DictRow], sql: str, parameters: dict[str, Any]) -> DictRow | None:
    return await (await connection.execute(sql, parameters)).fetchone()


async def _all(
    connection: AsyncConnection[DictRow], sql: str, parameters: dict[str, Any]
) -> Sequence[DictRow]:
    return await (await connection.execute(sql, parameters)).fetchall()
