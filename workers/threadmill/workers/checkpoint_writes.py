"""The checkpointer's two hot writes, each as one SQL statement that binds, fences and writes.

The stock saver sends a statement for each row, and the fence would be one more. One statement needs no
pipeline and no explicit transaction: a third of the messages, and less of both sides' CPU. Of several that
go out in one transaction the first binds and fences for all.

What makes it right: `bound` is computed before any row of the selects that read it, so the tenant is set
before row-level security looks at a row, and a fence that raises undoes the statement. Were it otherwise,
the rows would be refused, not written unbound.

The arrays are wrapped in selects so that Postgres cannot see how long they are: it would find its generic
plan, made for arrays of ten, too dear for arrays of one, and plan the statement anew each time.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from psycopg.types.json import Jsonb

from threadmill.core.models import SCHEMA
from threadmill.core.statement import Compiled, Step
from threadmill.core.transitions import TENANT_SETTING

# A blob as `BasePostgresSaver._dump_blobs` gives it: thread, namespace, channel, version, type, bytes.
BlobRow = tuple[str, str, str, str, str, bytes | None]
# A write as `_dump_writes` gives it: thread, namespace, checkpoint, task, path, index, channel, type, bytes.
WriteRow = tuple[str, str, str, str, str, int, str, str, bytes]


# Up to so many rows have parameters of their own; each number of rows is a statement to be prepared.
FEW = 8
_BLOB = {"channels": "text", "versions": "text", "types": "text", "blobs": "bytea"}
_WRITE = {"indexes": "int", "channels": "text", "types": "text", "blobs": "bytea"}


@dataclass(frozen=True, slots=True)
class Binding:
    """Whom a write is made for: the tenant, and the run and attempt whose lease fences it, if any."""

    tenant: str
    run_id: uuid.UUID | None = None
    attempt: int | None = None

    def parameters(self, order: Order) -> dict[str, Any]:
        """What a statement of this order needs to bind and to fence."""
        bind = {"tenant": self.tenant} if order is Order.FIRST else {}
        fenced = self.run_id is not None and order is not Order.LATER
        return {**bind, "run_id": self.run_id, "attempt": self.attempt} if fenced else bind


class Order(Enum):
    """Of a statement in its transaction. FIRST: it binds and fences. BOUND: it fences, and all is bound."""

    FIRST = auto()
    BOUND = auto()
    LATER = auto()


def _bound(order: Order, fenced: bool) -> str:
    bind = f"set_config('{TENANT_SETTING}', %(tenant)s, true)" if order is Order.FIRST else ""
    fence = f"{SCHEMA}.fence(%(run_id)s, %(attempt)s)" if fenced and order is not Order.LATER else ""
    return f"bound as materialized (select {', '.join(part for part in (bind, fence) if part)})"


def _table(columns: Mapping[str, str], count: int) -> str:
    """A table of so many rows (0: any number), its columns named and typed, its values parameters.

    A few rows are parameters each, name_0, name_1, …: for psycopg an array costs as much as eight scalars.
    """
    if not count:
        return f"unnest({', '.join(f'(select %({name})s::{kind}[])' for name, kind in columns.items())})"
    rows = (", ".join(f"%({name}_{row})s::{kind}" for name, kind in columns.items()) for row in range(count))
    return f"(values {', '.join(f'({row})' for row in rows)})"


def _values(columns: Mapping[str, Sequence[Any]], count: int) -> dict[str, Any]:
    """The parameters of `_table`."""
    if not count:
        return dict(columns)
    return {f"{name}_{row}": value for name, values in columns.items() for row, value in enumerate(values)}


@lru_cache(maxsize=128)
def _checkpoint_sql(order: Order, fenced: bool, blobs: int | None) -> Compiled:
    stored = f""", blobs as (
            insert into {SCHEMA}.checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
            select %(key)s, %(namespace)s, blob.*
            from bound cross join {_table(_BLOB, blobs or 0)} as blob
            on conflict (thread_id, checkpoint_ns, channel, version) do nothing
        )"""  # noqa: S608 - constants
    return Compiled(f"""
        with {_bound(order, fenced)}{stored if blobs is not None else ""}
        insert into {SCHEMA}.checkpoints
            (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        select %(key)s, %(namespace)s, %(checkpoint_id)s, %(parent_id)s, %(checkpoint)s, %(metadata)s
        from bound
        on conflict (thread_id, checkpoint_ns, checkpoint_id)
            do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata
    """)  # noqa: S608 - constants


@lru_cache(maxsize=128)
def _writes_sql(order: Order, fenced: bool, replaces: bool, count: int) -> Compiled:
    conflict = (
        "do update set channel = excluded.channel, type = excluded.type, blob = excluded.blob, "
        "run_id = excluded.run_id"
        if replaces
        else "do nothing"
    )
    return Compiled(f"""
        with {_bound(order, fenced)}
        insert into {SCHEMA}.checkpoint_writes
            (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
        select {"%(run_id)s::uuid" if fenced else "null::uuid"},
            %(key)s, %(namespace)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s, one.*
        from bound cross join {_table(_WRITE, count)} as one
        on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) {conflict}
    """)  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class CheckpointWrite:
    """A checkpoint, and the blobs that it is the first to use."""

    key: str
    namespace: str
    checkpoint_id: str
    parent_id: str | None
    checkpoint: Mapping[str, Any]
    metadata: Mapping[str, Any]
    blobs: Sequence[BlobRow]

    def statement(self, binding: Binding, order: Order = Order.FIRST) -> Step:
        columns: dict[str, Sequence[Any]] = {
            "channels": [row[2] for row in self.blobs],
            "versions": [row[3] for row in self.blobs],
            "types": [row[4] for row in self.blobs],
            "blobs": [row[5] for row in self.blobs],
        }
        count = len(self.blobs) if len(self.blobs) <= FEW else 0
        fields = {
            "key": self.key,
            "namespace": self.namespace,
            "checkpoint_id": self.checkpoint_id,
            "parent_id": self.parent_id,
            "checkpoint": Jsonb(self.checkpoint),
            "metadata": Jsonb(self.metadata),
        }
        sql = _checkpoint_sql(order, binding.run_id is not None, count if self.blobs else None)
        return Step(sql, {**binding.parameters(order), **fields, **_values(columns, count)})


@dataclass(frozen=True, slots=True)
class TaskWrites:
    """What one task wrote, beside a checkpoint. rows: one or more. replaces: what stands at their index."""

    rows: Sequence[WriteRow]
    replaces: bool

    @property
    def namespace(self) -> str:
        return self.rows[0][1]

    @property
    def checkpoint_id(self) -> str:
        return self.rows[0][2]

    def statement(self, binding: Binding, order: Order = Order.FIRST) -> Step:
        rows = self.rows
        if self.replaces:  # one statement may not replace a row twice; the last one counts
            rows = list({row[5]: row for row in rows}.values())
        key, namespace, checkpoint_id, task_id, task_path = rows[0][:5]
        fields = {
            "key": key,
            "namespace": namespace,
            "checkpoint_id": checkpoint_id,
            "task_id": task_id,
            "task_path": task_path,
        }
        columns: dict[str, Sequence[Any]] = {
            "indexes": [row[5] for row in rows],
            "channels": [row[6] for row in rows],
            "types": [row[7] for row in rows],
            "blobs": [row[8] for row in rows],
        }
        count = len(rows) if len(rows) <= FEW else 0
        fenced = binding.run_id is not None
        by = {"run_id": binding.run_id} if fenced else {}
        sql = _writes_sql(order, fenced, self.replaces, count)
        return Step(sql, {**by, **binding.parameters(order), **fields, **_values(columns, count)})


Write = CheckpointWrite | TaskWrites

# Where a checkpoint holds what a DeltaChannel has come to since its last snapshot, in LangGraph's metadata.
_DELTA = "counters_since_delta_snapshot"


def condensed(writes: Sequence[Write]) -> list[Write]:
    """Those of one transaction without the checkpoints that another of them supersedes.

    All become durable at once or not at all, so nobody could have gone on from a superseded one. The last
    takes over its predecessor's parent, and those blobs that it uses too. Left as they are where a subgraph's
    checkpoints hang upon one of them, and where state stands in several (a DeltaChannel's).
    """
    checkpoints = [write for write in writes if isinstance(write, CheckpointWrite)]
    if any(write.namespace for write in writes) or any(_DELTA in write.metadata for write in checkpoints):
        return list(writes)
    superseded: dict[str, CheckpointWrite] = {}
    kept: dict[str, CheckpointWrite] = {}
    for write in checkpoints:
        before = kept.pop(write.parent_id, None) if write.parent_id is not None else None
        if before is not None:
            superseded[before.checkpoint_id] = before
            versions = write.checkpoint["channel_versions"]
            used = [blob for blob in before.blobs if versions.get(blob[2]) == blob[3]]
            write = replace(write, parent_id=before.parent_id, blobs=[*used, *write.blobs])
        kept[write.checkpoint_id] = write
    return [
        kept[write.checkpoint_id] if isinstance(write, CheckpointWrite) else write
        for write in writes
        if write.checkpoint_id not in superseded
    ]


def statements(binding: Binding, writes: Sequence[Write], *, bound: bool = False) -> list[Step]:
    """Those of one transaction. bound: it is bound to the tenant already."""
    first = Order.BOUND if bound else Order.FIRST
    return [write.statement(binding, Order.LATER if number else first) for number, write in enumerate(writes)]
