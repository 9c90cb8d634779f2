"""LangGraph's Postgres checkpointer, bound to a tenant and fenced by an attempt's lease."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.base import id as checkpoint_ids
from langgraph.checkpoint.postgres import aio
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from threadmill.core.errors import ForeignThread
from threadmill.core.keys import thread_key
from threadmill.core.policy import History
from threadmill.core.statement import Row, Step, compiled
from threadmill.core.transitions import clear_base
from threadmill.workers.checkpoint_writes import (
    Binding,
    CheckpointWrite,
    TaskWrites,
    Write,
    WriteRow,
    statements,
)
from threadmill.workers.heads import UNREAD, Head
from threadmill.workers.lease import Lease, Pool, bound_connection, bound_transaction
from threadmill.workers.patience import patiently
from threadmill.workers.state_patch import NULL_TASK_ID, PatchWrite
from threadmill.workers.write_group import WriteGroup

# Strict: what is no safe type and not in a graph's own state comes back as plain data, never as an object
# that a crafted blob names. The default serialiser rebuilds anything importable.
STRICT = JsonPlusSerializer(allowed_msgpack_modules=None)

# From this version on a checkpoint holds its pending sends itself.
CURRENT_FORMAT = 4
# LangGraph's own (langgraph._internal._constants): which node an error handler is called for.
ERROR_SOURCE_NODE = "__error_source_node__"

# Of a DeltaChannel's thread the stock saver reads 1,024 checkpoints at once, with a look for a value at each.
# By default there is one within the last fifty turns; where there is none, it reads on.
aio._DELTA_PAGE_SIZE = 128  # type: ignore[attr-defined]

# Which checkpoints are of effect, where some are not. A subgraph's stand under the parent's checkpoint from
# which it was called, and are newer: what earlier runs have left there, which stopped at a question and were
# answered, is within the bounds and counts all the same.
_IS_LIVE = """(
    checkpoint_id > %(dead_until)s or checkpoint_id <= %(base)s
    or position(':' in checkpoint_ns) > 0 and exists (
        select from runs where tenant = %(tenant)s and runs.thread_id = %(thread)s and seq < %(before)s
            and runs.id::text = checkpoints.metadata ->> 'run_id' and status in ('success', 'interrupted')
    )
)"""
_NEWEST_LIVE = f"""
    select checkpoint_id from checkpoints
    where thread_id = %(key)s and checkpoint_ns = %(namespace)s and {_IS_LIVE}
    order by checkpoint_id desc limit 1
"""  # noqa: S608 - constants

_PATCHED = "update runs set state_patch = null where id = %(run_id)s"

_HOLDS_WRITES = """
    with head as (
        select checkpoint_id, metadata ->> 'run_id' as run_id from checkpoints
        where thread_id = %(key)s and checkpoint_ns = '' {live} order by checkpoint_id desc limit 1
    )
    select from head where run_id = %(run_id)s or exists (
        select from checkpoint_writes w where w.thread_id = %(key)s and w.checkpoint_ns = ''
            and w.checkpoint_id = head.checkpoint_id and w.run_id = %(run_id)s::uuid
    )
"""


@dataclass(frozen=True)
class Aside:
    """What of a thread is of no effect on a run: the checkpoints after `base` up to `dead_until`.

    base: None for the beginning of the thread. before: the seq up to which runs may have gone on in a
    subgraph that the base had called.
    """

    base: str | None
    dead_until: str
    before: int


@dataclass
class Progress:
    """How far an attempt has come. An object of its own, as LangGraph runs on a copy of the saver."""

    checkpoint_id: str | None = None


class BoundSaver(aio.AsyncPostgresSaver):
    """One tenant's checkpoints; cheap, made for each attempt over the process's pool.

    Callers name threads by their plain ids; in the tables they stand under the thread key, so no id that a
    node makes up reaches another tenant's thread, and row-level security would hide it if one did.

    With a lease, writes go to the lease's thread only (ForeignThread) and while it holds (LeaseLost).
    Without one the saver reads and maintains, which is for Threadmill's own use.

    In the background, a write returns at once and is made as soon as those before it are; what has not been
    sent when the attempt ends is `take_writes`'s. A read is made when they are all committed.

    With `aside`, the newest checkpoint is the newest that is of effect; one that is asked for by its id, and
    the history, are given as they are.
    """

    def __init__(
        self,
        pool: Pool,
        tenant: str,
        lease: Lease | None = None,
        aside: Aside | None = None,
        *,
        background: bool = False,
        history: History = "full",
        head: Head = UNREAD,
    ) -> None:
        """history: which checkpoints are kept; see GraphPolicy. head: the newest checkpoint of the lease's
        thread, where it is known."""
        super().__init__(pool, serde=STRICT)
        self._pool = pool
        self._tenant = tenant
        self._lease = lease
        self._aside = aside
        self._pruning = False
        self._background = background
        self._binding = Binding(tenant, *(() if lease is None else (lease.run_id, lease.attempt)))
        self._writes = WriteGroup(pool, self._binding, lease, history)
        self._taken: list[Write] = []
        self._head = [head] if head is not UNREAD and aside is None else []  # shared with LangGraph's copy
        self.progress = Progress()

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        # The stock saver serialises its callers on a lock of the instance, and takes it for reads too;
        # here each call has a connection of the pool to itself. `pipeline` marks the stock saver's writes.
        if self._pruning:
            async with bound_transaction(self._pool, self._tenant) as connection:
                yield connection.cursor(binary=True, row_factory=dict_row)
            return
        await self._writes.flush()
        lease = self._lease if pipeline else None
        async with (
            bound_connection(self._pool, self._tenant, lease) as connection,
            connection.cursor(binary=True, row_factory=dict_row) as cursor,
        ):
            yield cursor

    def _key(self, thread_id: str) -> str:
        return thread_key(self._tenant, str(thread_id))

    def _keyed(self, config: RunnableConfig) -> RunnableConfig:
        configurable = config["configurable"]
        return {
            **config,
            "configurable": {**configurable, "thread_id": self._key(configurable["thread_id"])},
        }

    def _writable(self, config: RunnableConfig) -> RunnableConfig:
        """The keyed config. Raises ForeignThread for a thread that the lease does not cover."""
        thread_id = config["configurable"]["thread_id"]
        if self._lease is not None and thread_id != self._lease.thread_id:
            raise ForeignThread(str(thread_id), self._lease.thread_id)
        return self._keyed(config)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        keyed, stock, aside = self._keyed(config), super().aget_tuple, self._aside
        if aside is not None and not get_checkpoint_id(config):
            stay_ahead_of(aside.dead_until)
            target = keyed["configurable"]
            newest = await self._newest_live(target["thread_id"], target.get("checkpoint_ns", ""), aside)
            if newest is None:
                return None
            keyed = {**keyed, "configurable": {**target, "checkpoint_id": newest}}
        elif self._head and not get_checkpoint_id(config) and self._is_own(config):
            head = self._head.pop()  # for the first who asks; after that there may be newer ones
            if head is None:
                return None
            if head["checkpoint"]["v"] >= CURRENT_FORMAT:
                stay_ahead_of(head["checkpoint_id"])
                return await self._load_checkpoint_tuple(head)
        found = await patiently(lambda: stock(keyed))
        if found is not None:
            stay_ahead_of(found.checkpoint["id"])
        return found

    def _is_own(self, config: RunnableConfig) -> bool:
        target = config["configurable"]
        own = self._lease is not None and target["thread_id"] == self._lease.thread_id
        return own and not target.get("checkpoint_ns", "")

    async def _newest_live(self, key: str, namespace: str, aside: Aside) -> str | None:
        row = await self._ask(_NEWEST_LIVE, {"namespace": namespace, **self._bounds(key, aside)})
        return None if row is None else str(row["checkpoint_id"])

    def _bounds(self, key: str, aside: Aside) -> dict[str, Any]:
        """The parameters of _IS_LIVE."""
        thread_id = key.partition(":")[2]
        return {"key": key, "tenant": self._tenant, "thread": thread_id, **asdict(aside)}

    async def _ask(self, sql: str, parameters: dict[str, Any]) -> DictRow | None:
        async def ask() -> DictRow | None:
            async with self._cursor() as cursor:
                await cursor.execute(sql, parameters)
                return await cursor.fetchone()

        return await patiently(ask)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's signature
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        keyed = None if config is None else self._keyed(config)
        found = super().alist(keyed, filter=filter, before=before, limit=limit)
        # All at once: between two items the stock saver would keep its connection from the others.
        for item in [item async for item in found]:
            yield item

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        target = self._writable(config)["configurable"]
        namespace = target["checkpoint_ns"]
        inline, stored = _split(checkpoint["channel_values"])
        versions = {name: version for name, version in new_versions.items() if name in stored}
        # Serialised here, not in a thread as the stock saver does: the interpreter's lock lets a thread do
        # nothing meanwhile, and two hops cost more than most values.
        blobs = self._dump_blobs(target["thread_id"], namespace, stored, versions)
        write = CheckpointWrite(
            key=target["thread_id"],
            namespace=namespace,
            checkpoint_id=checkpoint["id"],
            parent_id=target.get("checkpoint_id"),
            checkpoint={**checkpoint, "channel_values": inline},
            metadata=get_serializable_checkpoint_metadata(config, metadata),
            blobs=blobs,
        )
        await self._write(write, waits=not self._background)
        if not namespace:
            self.progress.checkpoint_id = checkpoint["id"]
        return {
            "configurable": {
                "thread_id": config["configurable"]["thread_id"],
                "checkpoint_ns": namespace,
                "checkpoint_id": checkpoint["id"],
            }
        }

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        target = self._writable(config)["configurable"]
        rows = self._dump_writes(
            target["thread_id"], target["checkpoint_ns"], target["checkpoint_id"], task_id, task_path, writes
        )
        if rows:
            # As in the stock saver, writes to LangGraph's own channels replace what is there.
            replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
            # An error handler runs only once it is known for good whose error it handles.
            handled = any(channel == ERROR_SOURCE_NODE for channel, _ in writes)
            await self._write(TaskWrites(rows, replaces), waits=handled or not self._background)

    async def _write(self, write: Write, *, waits: bool) -> None:
        self._head.clear()
        if waits:
            await self._writes.write(write)
        else:
            self._writes.put(write)

    async def flush(self) -> None:
        """Returns when all that was written by now is committed, or could not be."""
        await self._writes.flush()

    async def take_writes(self) -> list[Step]:
        """What is still to be written, for the caller's transaction, which is bound, and which it fences.

        Raises LeaseLost, or why an earlier write could not be made.
        """
        self._taken = await self._writes.take()
        return statements(self._binding, self._taken, bound=True)

    async def write_taken(self) -> None:
        """Writes what was taken after all, each by itself. Raises why the first that could not be was not."""
        made = await asyncio.gather(
            *(self._writes.write(write) for write in self._taken), return_exceptions=True
        )
        for error in made:
            if error is not None:
                raise error

    def ignore(self, aside: Aside) -> None:
        """Has these checkpoints be of no effect from now on."""
        self._aside = aside
        self._head.clear()

    async def put_patch(self, found: CheckpointTuple, writes: Sequence[PatchWrite]) -> None:
        """Saves a patch of the state beside the checkpoint, and takes it off the run, which then has had it.

        Raises LeaseLost, with nothing written.
        """
        lease = self._lease
        assert lease is not None
        self._head.clear()
        target = self._writable(found.config)["configurable"]
        place = target["thread_id"], target["checkpoint_ns"], target["checkpoint_id"]
        rows: list[WriteRow] = [
            (*place, NULL_TASK_ID, "", write.position, write.channel, *self.serde.dumps_typed(write.value))
            for write in writes
        ]
        saved = statements(self._binding, [TaskWrites(rows, replaces=True)] if rows else [])

        async def send() -> None:
            async with bound_connection(self._pool, self._tenant, lease) as connection:
                for step in saved:
                    await connection.execute(compiled(step.statement).sql, step.parameters)
                await connection.execute(_PATCHED, {"run_id": lease.run_id})

        await patiently(send)

    async def clear_base(self, thread_id: str) -> None:
        """Takes away what runs of no effect have left where this one sets out. Raises LeaseLost."""
        if self._aside is None or self._aside.base is None:
            return
        parameters = {
            "tenant": self._tenant,
            "thread_id": thread_id,
            "key": self._key(thread_id),
            "base_checkpoint_id": self._aside.base,
        }
        statement = compiled(clear_base())

        async def send() -> None:
            async with bound_connection(self._pool, self._tenant, self._lease) as connection:
                await connection.execute(statement.sql, statement.bind(parameters))

        await patiently(send)

    async def holds_writes_of(self, thread_id: str, run_id: uuid.UUID) -> bool:
        """Whether the thread stands at a checkpoint of this run's, or at one beside which it has written.

        A command is saved beside the checkpoint at which the thread stood, before anything is run.
        """
        key, live = self._key(thread_id), ""
        parameters: dict[str, Any] = {"key": key, "run_id": str(run_id)}
        if self._aside is not None:
            live = f"and {_IS_LIVE}"
            parameters |= self._bounds(key, self._aside)
        return await self._ask(_HOLDS_WRITES.format(live=live), parameters) is not None

    async def adelete_thread(self, thread_id: str) -> None:
        keyed = self._writable({"configurable": {"thread_id": thread_id}})
        await super().adelete_thread(keyed["configurable"]["thread_id"])

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Raises NotImplementedError with a lease: pruning opens transactions of its own, unfenced."""
        if self._lease is not None:
            raise NotImplementedError("an attempt does not prune; only a saver without a lease does")
        if isinstance(thread_ids, str):
            raise TypeError("thread_ids must be a sequence of thread ids, not a string")
        # A copy, so that what else this saver is doing keeps its own transactions.
        pruner = copy.copy(self)
        pruner._pruning = True
        await super(BoundSaver, pruner).aprune([self._key(id_) for id_ in thread_ids], strategy=strategy)

    async def aget_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Any:
        if not get_checkpoint_id(config):  # the stock saver would look for the newest by the keyed config
            newest = await self.aget_tuple(config)
            if newest is None:
                return {channel: {"writes": []} for channel in channels}
            config = newest.config
        return await super().aget_delta_channel_history(config=self._keyed(config), channels=channels)

    async def _load_checkpoint_tuple(self, value: Row) -> CheckpointTuple:
        named = {"thread_id": value["thread_id"].partition(":")[2], "checkpoint_ns": value["checkpoint_ns"]}
        parent = value["parent_checkpoint_id"]
        saved = value["checkpoint"]
        return CheckpointTuple(
            config={"configurable": {**named, "checkpoint_id": value["checkpoint_id"]}},
            checkpoint=cast(
                Checkpoint,
                {
                    **saved,
                    "channel_values": {
                        **(saved.get("channel_values") or {}),
                        **self._load_blobs(value["channel_values"]),
                    },
                },
            ),
            metadata=value["metadata"],
            parent_config={"configurable": {**named, "checkpoint_id": parent}} if parent else None,
            pending_writes=self._load_writes(value["pending_writes"]),
        )

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> BoundSaver:
        """A copy that also rebuilds a graph's own types; LangGraph asks for one at each run."""
        clone = copy.copy(self)
        clone.serde = _serde(frozenset(extra_allowlist))
        return clone


def stay_ahead_of(checkpoint_id: str) -> None:
    """Has every checkpoint that this process makes from now on sort after this one, whatever its clock says.

    The newest of a thread is the one with the highest id, a UUID of version 6 (RFC 9562), which begins with
    the time on the machine that made it. One that was made where the clock is behind would not be found.
    LangGraph makes its ids ascend within a process; this carries that on from one process to the next.
    """
    number = uuid.UUID(checkpoint_id).int
    made_at = (number >> 80) << 12 | (number >> 64) & 0xFFF
    if (number >> 76) & 0xF == 6 and made_at > (checkpoint_ids._last_v6_timestamp or 0):
        checkpoint_ids._last_v6_timestamp = made_at  # type: ignore[assignment]


@cache
def _serde(allowlist: frozenset[tuple[str, ...]]) -> JsonPlusSerializer:
    return STRICT.with_msgpack_allowlist(allowlist)


def _split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The channels' values that stand in the checkpoint's own row, and those that are blobs beside it."""
    inline, stored = {}, {}
    for name, value in values.items():
        if value is None or isinstance(value, str | int | float | bool):
            inline[name] = value
        else:
            stored[name] = value
            if isinstance(value, _DeltaSnapshot):
                inline[name] = True  # marks, as in the stock saver, that there is a blob
    return inline, stored
