"""The checkpointer's hot writes: all of one transaction as one SQL statement that binds, fences and writes.

The stock saver sends a statement for each row, and the fence would be one more. One statement needs no
pipeline and no explicit transaction, and costs less of both sides' CPU than one for each write, of which a
run has seven. The rows go as JSON, one document for each table, and their bytes beside them as one array:
so the statement is the same for any number of rows, and is prepared once.

What makes it right: `bound` is computed before any row of the selects that read it, so the tenant is set
before row-level security looks at a row, and a fence that raises undoes the statement. Were it otherwise,
the rows would be refused, not written unbound. What a later write of the same transaction would change again
is a statement of its own, as one statement sees no row that it writes itself.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cache
from typing import Any

from threadmill.core.models import SCHEMA
from threadmill.core.statement import Compiled, Step
from threadmill.core.transitions import TENANT_SETTING

# A blob as `BasePostgresSaver._dump_blobs` gives it: thread, namespace, channel, version, type, bytes.
BlobRow = tuple[str, str, str, str, str, bytes | None]
# A write as `_dump_writes` gives it: thread, namespace, checkpoint, task, path, index, channel, type, bytes.
WriteRow = tuple[str, str, str, str, str, int, str, str, bytes]


@dataclass(frozen=True, slots=True)
class Binding:
    """Whom a write is made for: the tenant, and the run and attempt whose lease fences it, if any."""

    tenant: str
    run_id: uuid.UUID | None = None
    attempt: int | None = None


class Order(Enum):
    """Of a statement in its transaction. FIRST: it binds and fences. BOUND: it fences, and all is bound."""

    FIRST = auto()
    BOUND = auto()
    LATER = auto()


def _bound(order: Order, fenced: bool) -> str:
    bind = f"set_config('{TENANT_SETTING}', %(tenant)s, true)" if order is Order.FIRST else ""
    fence = f"{SCHEMA}.fence(%(run_id)s, %(attempt)s)" if fenced and order is not Order.LATER else ""
    return f"bound as materialized (select {', '.join(part for part in (bind, fence) if part)})"


def _rows(name: str, **columns: str) -> str:
    """The rows of this document, once it is bound."""
    typed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    return f"from bound cross join json_to_recordset(%({name})s::json) as row({typed})"


_CONTENT = "(%(contents)b::bytea[])[row.place]"
_BLOBS = f"""insert into {SCHEMA}.checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    select %(key)s, row.namespace, row.channel, row.version, row.type, {_CONTENT}
    {_rows("blobs", namespace="text", channel="text", version="text", type="text", place="int")}
    on conflict (thread_id, checkpoint_ns, channel, version) do nothing"""
_CHECKPOINTS = f"""insert into {SCHEMA}.checkpoints
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    select %(key)s, row.namespace, row.id, row.parent, row.checkpoint, row.metadata
    {_rows("checkpoints", namespace="text", id="text", parent="text", checkpoint="jsonb", metadata="jsonb")}
    on conflict (thread_id, checkpoint_ns, checkpoint_id)
        do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata"""
_REPLACES = """update set channel = excluded.channel, type = excluded.type, blob = excluded.blob,
        run_id = excluded.run_id"""


def _writes(name: str, fenced: bool, conflict: str) -> str:
    columns = {
        "namespace": "text", "checkpoint": "text", "task": "text", "path": "text", "index": "int",
        "channel": "text", "type": "text", "place": "int",
    }  # fmt: skip
    return f"""insert into {SCHEMA}.checkpoint_writes
        (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    select {"%(run_id)s::uuid" if fenced else "null::uuid"}, %(key)s,
        row.namespace, row.checkpoint, row.task, row.path, row.index, row.channel, row.type, {_CONTENT}
    {_rows(name, **columns)}
    on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do {conflict}"""


@cache
def _sql(order: Order, fenced: bool, names: frozenset[str]) -> Compiled:
    """names: of the documents that there are."""
    parts = {
        "blobs": _BLOBS,
        "checkpoints": _CHECKPOINTS,
        "writes": _writes("writes", fenced, "nothing"),
        "replacing": _writes("replacing", fenced, _REPLACES),
    }
    inserts = [f"{name} as (\n    {part}\n)" for name, part in parts.items() if name in names]
    return Compiled(f"with {', '.join([_bound(order, fenced), *inserts])} select from bound")


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

    def places(self) -> set[Hashable]:
        """The rows that it would change where they are there."""
        return {(self.namespace, self.checkpoint_id)}

    def add_to(self, documents: _Documents) -> None:
        for _, namespace, channel, version, kind, blob in self.blobs:
            row = {"namespace": namespace, "channel": channel, "version": version, "type": kind}
            documents.add("blobs", row, blob)
        checkpoint = {
            "namespace": self.namespace,
            "id": self.checkpoint_id,
            "parent": self.parent_id,
            "checkpoint": self.checkpoint,
            "metadata": self.metadata,
        }
        documents.add("checkpoints", checkpoint)


@dataclass(frozen=True, slots=True)
class TaskWrites:
    """What one task wrote, beside a checkpoint. rows: one or more. replaces: what stands at their index."""

    rows: Sequence[WriteRow]
    replaces: bool

    @property
    def key(self) -> str:
        return self.rows[0][0]

    @property
    def namespace(self) -> str:
        return self.rows[0][1]

    @property
    def checkpoint_id(self) -> str:
        return self.rows[0][2]

    def places(self) -> set[Hashable]:
        """The rows that it would change where they are there."""
        return {
            (namespace, checkpoint, task, index) for _, namespace, checkpoint, task, _, index, *_ in self.rows
        }

    def add_to(self, documents: _Documents) -> None:
        rows = self.rows
        if self.replaces:  # one statement may not replace a row twice; the last one counts
            rows = list({row[5]: row for row in rows}.values())
        for _, namespace, checkpoint, task, path, index, channel, kind, blob in rows:
            row = {
                "namespace": namespace, "checkpoint": checkpoint, "task": task, "path": path,
                "index": index, "channel": channel, "type": kind,
            }  # fmt: skip
            documents.add("replacing" if self.replaces else "writes", row, blob)


@dataclass
class _Documents:
    """The rows of one statement, by the names of their documents."""

    key: str
    places: set[Hashable] = field(default_factory=set)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    contents: list[bytes] = field(default_factory=list)

    def take(self, write: Write) -> bool:
        """Whether the write is among them now: it may change nothing that another does."""
        places = write.places()
        if write.key != self.key or not self.places.isdisjoint(places):
            return False
        self.places |= places
        write.add_to(self)
        return True

    def add(self, name: str, row: dict[str, Any], content: bytes | None = None) -> None:
        if content is not None:
            self.contents.append(bytes(content))  # an array is of one type, and it may be a bytearray
            row["place"] = len(self.contents)
        self.rows.setdefault(name, []).append(row)

    def statement(self, binding: Binding, order: Order) -> Step:
        fenced = binding.run_id is not None
        parameters: dict[str, Any] = {name: json.dumps(rows) for name, rows in self.rows.items()}
        parameters |= {"key": self.key, "contents": self.contents, "tenant": binding.tenant}
        parameters |= {"run_id": binding.run_id, "attempt": binding.attempt}
        return Step(_sql(order, fenced, frozenset(self.rows)), parameters)


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
    """Those of one transaction, in order: one, where no write changes what another has written.

    bound: the transaction is bound to the tenant already.
    """
    made: list[_Documents] = []
    for write in writes:
        if not made or not made[-1].take(write):
            made.append(_Documents(write.key))
            made[-1].take(write)
    first = Order.BOUND if bound else Order.FIRST
    return [each.statement(binding, Order.LATER if number else first) for number, each in enumerate(made)]
