"""A ledger of any size, made of copies of one thread that was really run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from threadmill.core.models import SCHEMA

# The thread that is copied.
SHAPE = "shape"
SHAPE_KEY = f"{SHAPE}:{SHAPE}"
TURNS = 5
# The first copies are of few tenants, and are what is measured on; the others are of many.
LIVE, LIVE_TENANTS, TENANTS = 200, 10, 500
# So long ago the first copy was run, and so long outputs are kept, in seconds.
AGO, OUTPUT_TTL = 20 * 86_400, 20 * 3_600
# Copies in one transaction.
CHUNK = 20_000

_TENANT = (
    f"case when copy < {LIVE} then 't' || copy %% {LIVE_TENANTS}"
    f" else 't' || lpad((copy %% {TENANTS})::text, 3, '0') end"
)
_THREAD = "'thread-' || lpad(copy::text, 7, '0')"
_KEY = f"{_TENANT} || ':' || {_THREAD}"


@dataclass(frozen=True)
class Copies:
    """first up to, not including, last. of: how many there are to be in all."""

    first: int
    last: int
    of: int

    @property
    def moment(self) -> str:
        """SQL: the milliseconds since 1970 at which a copy's turn was run; the last ones are fresh."""
        step = AGO * 1_000 // (self.of * TURNS + 1)
        return f"(%(since)s::bigint + (copy::bigint * {TURNS} + coalesce(turn, 0)) * {step})"

    @property
    def run_id(self) -> str:
        """SQL: a UUID of version 7 (RFC 9562), of that moment."""
        return (
            f"(lpad(to_hex({self.moment}), 12, '0') || '7' || lpad(to_hex(turn), 3, '0')"
            " || '8' || lpad(to_hex(copy), 15, '0'))::uuid"
        )

    @property
    def time(self) -> str:
        return f"to_timestamp({self.moment} / 1000.0)"


def fill(connection: psycopg.Connection[Any], copies: Copies, checkpoints: int | None = None) -> None:
    """Copies the thread SHAPE. checkpoints: about so many rows of the three tables, on the newest copies;
    the others have been pruned. None: all have theirs."""
    row = connection.execute("select (extract(epoch from now()) * 1000)::bigint").fetchone()
    assert row is not None
    since = row[0] - AGO * 1_000
    of_a_copy = rows_of_shape(connection)
    kept = copies.first if checkpoints is None else max(copies.first, copies.last - checkpoints // of_a_copy)
    for first in range(copies.first, copies.last, CHUNK):
        chunk = {"since": since, "first": first, "last": min(first + CHUNK, copies.last)}
        with connection.transaction():
            _copy_runs(connection, copies, chunk)
            if chunk["last"] > kept:
                _copy_checkpoints(connection, copies, {**chunk, "first": max(first, kept)})
    connection.execute("vacuum (analyze, parallel 0)")
    connection.execute("checkpoint")


def rows_of_shape(connection: psycopg.Connection[Any]) -> int:
    """The rows of a copy in the three tables of checkpoints."""
    counts = " + ".join(
        f"(select count(*) from {SCHEMA}.{table} where thread_id = '{SHAPE_KEY}')"
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
    )
    row = connection.execute(f"select {counts}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def _copy_runs(connection: psycopg.Connection[Any], copies: Copies, chunk: Mapping[str, Any]) -> None:
    named = {"tenant": _TENANT, "thread_id": _THREAD}
    times = dict.fromkeys(("created_at", "updated_at"), copies.time)
    _copy(connection, "threads", f"thread_id = '{SHAPE}'", "null::int", {**named, **times}, chunk)
    times = dict.fromkeys(("created_at", "run_at", "dispatched_at", "started_at", "finished_at"), copies.time)
    output = f"case when {copies.time} > now() - interval '{OUTPUT_TTL} s' then output end"
    values = {**named, "id": copies.run_id, **times, "output": output}
    _copy(connection, "runs", f"thread_id = '{SHAPE}'", "seq::int", values, chunk)


def _copy_checkpoints(connection: psycopg.Connection[Any], copies: Copies, chunk: Mapping[str, Any]) -> None:
    def turn(run_id: str) -> str:
        return f"(select seq::int from {SCHEMA}.runs where id = {run_id})"

    here = f"thread_id = '{SHAPE_KEY}'"
    metadata = f"jsonb_set(metadata, '{{run_id}}', to_jsonb({copies.run_id}))"
    _copy(
        connection,
        "checkpoints",
        here,
        turn("(checkpoints.metadata ->> 'run_id')::uuid"),
        {"thread_id": _KEY, "metadata": metadata},
        chunk,
    )
    _copy(connection, "checkpoint_blobs", here, "null::int", {"thread_id": _KEY}, chunk)
    writes = {"thread_id": _KEY, "run_id": copies.run_id}
    _copy(connection, "checkpoint_writes", here, turn("checkpoint_writes.run_id"), writes, chunk)


def _copy(
    connection: psycopg.Connection[Any],
    table: str,
    where: str,
    turn: str,
    values: Mapping[str, str],
    chunk: Mapping[str, Any],
) -> None:
    """values: by column, what is not as in the row that is copied, as SQL of its columns, copy and turn."""
    found = connection.execute(
        "select quote_ident(column_name) from information_schema.columns"
        " where table_schema = %s and table_name = %s and is_generated = 'NEVER'",
        [SCHEMA, table],
    ).fetchall()
    columns = [row[0] for row in found]
    made = ", ".join(values.get(column, f"shape.{column}") for column in columns)
    insert = (
        f"with shape as materialized (select {table}.*, {turn} as turn from {SCHEMA}.{table} where {where})"
        f" insert into {SCHEMA}.{table} ({', '.join(columns)}) select {made}"
        " from (select copy from generate_series(%(first)s::int, %(last)s::int - 1) as copy"
        f" order by {_TENANT}, copy) as copies cross join shape"
    )
    connection.execute(insert.encode(), chunk)
