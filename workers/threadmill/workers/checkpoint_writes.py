"""The checkpointer's two hot writes, each as one SQL statement that binds, fences and writes.

The stock saver sends a statement for each row, and the fence would be one more. One statement needs no
pipeline and no explicit transaction: a third of the messages, and less of both sides' CPU.

What makes it right: `bound` is computed before any row of the selects that read it, so the tenant is set
before row-level security looks at a row, and a fence that raises undoes the statement. Were it otherwise,
the rows would be refused, not written unbound.

The arrays are wrapped in selects so that Postgres cannot see how long they are: it would find its generic
plan, made for arrays of ten, too dear for arrays of one, and plan the statement anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from langgraph.checkpoint.base import WRITES_IDX_MAP

from threadmill.core.models import SCHEMA
from threadmill.core.transitions import TENANT_SETTING

# A blob as `BasePostgresSaver._dump_blobs` gives it: thread, namespace, channel, version, type, bytes.
BlobRow = tuple[str, str, str, str, str, bytes | None]
# A write as `_dump_writes` gives it: thread, namespace, checkpoint, task, path, index, channel, type, bytes.
WriteRow = tuple[str, str, str, str, str, int, str, str, bytes]


# Up to so many rows have parameters of their own; each number of rows is a statement to be prepared.
FEW = 8
_BLOB = {"channels": "text", "versions": "text", "types": "text", "blobs": "bytea"}
_WRITE = {"indexes": "int", "channels": "text", "types": "text", "blobs": "bytea"}


class Write(NamedTuple):
    """One statement with its named parameters."""

    sql: str
    parameters: dict[str, Any]


def _bound(fenced: bool) -> str:
    fence = f", {SCHEMA}.fence(%(run_id)s, %(attempt)s)" if fenced else ""
    return f"bound as materialized (select set_config('{TENANT_SETTING}', %(tenant)s, true){fence})"


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


@lru_cache(maxsize=64)
def _checkpoint_sql(fenced: bool, blobs: int | None) -> str:
    stored = f""", blobs as (
            insert into {SCHEMA}.checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
            select %(key)s, %(namespace)s, blob.*
            from bound cross join {_table(_BLOB, blobs or 0)} as blob
            on conflict (thread_id, checkpoint_ns, channel, version) do nothing
        )"""  # noqa: S608 - constants
    return f"""
        with {_bound(fenced)}{stored if blobs is not None else ""}
        insert into {SCHEMA}.checkpoints
            (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        select %(key)s, %(namespace)s, %(checkpoint_id)s, %(parent_id)s, %(checkpoint)s, %(metadata)s
        from bound
        on conflict (thread_id, checkpoint_ns, checkpoint_id)
            do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata
    """  # noqa: S608 - constants


@lru_cache(maxsize=64)
def _writes_sql(fenced: bool, replaces: bool, count: int) -> str:
    conflict = (
        "do update set channel = excluded.channel, type = excluded.type, blob = excluded.blob, "
        "run_id = excluded.run_id"
        if replaces
        else "do nothing"
    )
    return f"""
        with {_bound(fenced)}
        insert into {SCHEMA}.checkpoint_writes
            (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
        select {"%(run_id)s" if fenced else "null::uuid"},
            %(key)s, %(namespace)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s, one.*
        from bound cross join {_table(_WRITE, count)} as one
        on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) {conflict}
    """  # noqa: S608 - constants


def checkpoint_write(
    binding: Mapping[str, Any], fields: Mapping[str, Any], blobs: Sequence[BlobRow]
) -> Write:
    """Saves a checkpoint and the blobs that it is the first to use.

    binding: tenant, and with a lease run_id and attempt. fields: key, namespace, checkpoint_id, parent_id,
    checkpoint, metadata.
    """
    columns: dict[str, Sequence[Any]] = {
        "channels": [row[2] for row in blobs],
        "versions": [row[3] for row in blobs],
        "types": [row[4] for row in blobs],
        "blobs": [row[5] for row in blobs],
    }
    count = len(blobs) if len(blobs) <= FEW else 0
    sql = _checkpoint_sql("run_id" in binding, count if blobs else None)
    return Write(sql, {**binding, **fields, **_values(columns, count)})


def pending_writes(
    binding: Mapping[str, Any],
    writes: Sequence[tuple[str, Any]],
    rows: Sequence[WriteRow],
    *,
    replaces: bool | None = None,
) -> Write:
    """Saves what one task wrote. rows: of the writes, one or more, all of one task.

    replaces: what stands at their index. By default, as in the stock saver, writes to LangGraph's own
    channels do and others leave it.
    """
    if replaces is None:
        replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
    if replaces:  # one statement may not replace a row twice; the last one counts
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
    sql = _writes_sql("run_id" in binding, replaces, count)
    return Write(sql, {**binding, **fields, **_values(columns, count)})
