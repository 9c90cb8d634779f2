"""SQLAlchemy Core statements, run by psycopg in pipelined transactions of one round trip.

The hot path is counted in round trips. A `Batch` of statements goes to Postgres in one message and
commits with it: psycopg's pipeline mode on an autocommit connection makes everything between two syncs
one transaction (https://www.postgresql.org/docs/current/libpq-pipeline-mode.html), and the first
statement that fails undoes the rest. SQLAlchemy's own execution has no pipeline, so a statement is
compiled by it, once, and handed to psycopg.

What is to be done with the ledger is written once, as a generator that yields batches and is sent their
rows (a `Plan`); the functions below drive it over a blocking or an asyncio connection, and over a
connection or session of the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql import Executable
from sqlalchemy.sql.compiler import SQLCompiler

T = TypeVar("T")
Row = Mapping[str, Any]
Rows = Sequence[Row]


class Compiled(NamedTuple):
    """A statement as psycopg takes it.

    numbered: its SQL as Postgres takes it, with $1 for the first of `names`; None where psycopg is to make
    it. What psycopg makes of a statement of more than 4,096 bytes it makes again each time.
    """

    sql: str
    literals: Mapping[str, Any] = {}
    processors: Mapping[str, Callable[[Any], Any]] = {}
    binary: bool = False  # how its rows are sent
    numbered: str | None = None
    names: Sequence[str] = ()

    def bind(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters, literal ones included, converted as SQLAlchemy's types ask for."""
        if not self.literals and not self.processors:
            return parameters
        values = {**self.literals, **parameters}
        for name, process in self.processors.items():
            values[name] = process(values[name])
        return values

    def ready(self, parameters: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | Sequence[Any]]:
        """The SQL and the values for psycopg's raw cursor where it is numbered, or else for its usual one."""
        values = self.bind(parameters)
        if self.numbered is None:
            return self.sql, values
        return self.numbered, [values[name] for name in self.names]


class Step(NamedTuple):
    """One statement and the values of its named parameters."""

    statement: Executable | Compiled
    parameters: Mapping[str, Any]


class Batch(NamedTuple):
    """Statements that go out together.

    steps: read once, in order; an iterator makes each while Postgres is at work on those before.
    final: the plan needs nothing more, so the batch may commit in the same round trip. A plan whose
    first batch is final is one round trip.
    """

    steps: Iterable[Step]
    final: bool = True


Plan = Generator[Batch, list[Rows], T]

DIALECT = PGDialect_psycopg()


def compiled(statement: Executable | Compiled) -> Compiled:
    """The statement compiled for psycopg; the transitions are built once, so each is compiled once."""
    return statement if isinstance(statement, Compiled) else _compile(statement)


@lru_cache(maxsize=256)
def _compile(statement: Executable) -> Compiled:
    result = statement.compile(dialect=DIALECT)  # type: ignore[attr-defined]
    assert isinstance(result, SQLCompiler)
    processors = {}
    literals = {}
    sql = result.string
    for name, bind in result.binds.items():
        if not bind.required and isinstance(bind.effective_value, int | str):
            # A constant of the statement: written into it, it need not be sent each time.
            sql = sql.replace(f"%({name})s", _literal(bind.effective_value))
            continue
        processor = bind.type.dialect_impl(DIALECT).bind_processor(DIALECT)
        if processor is not None:
            processors[name] = processor
        if not bind.required:
            literals[name] = bind.effective_value
    numbered, names = _numbered(sql)
    return Compiled(sql, literals, processors, numbered=numbered, names=names)


_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s|%)")


def _numbered(sql: str) -> tuple[str, Sequence[str]]:
    """The SQL with numbers in place of its parameters' names, and the names in that order."""
    numbers: dict[str, int] = {}

    def numbered(found: re.Match[str]) -> str:
        name = found[1]
        return f"${numbers.setdefault(name, len(numbers) + 1)}" if name else "%"

    return _PLACEHOLDER.sub(numbered, sql), tuple(numbers)


def _literal(value: int | str) -> str:
    """A constant of ours as SQL in which psycopg looks for parameters."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("%", "%%") + "'"
    return str(value).lower()


def _has_columns(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bool:
    """Whether there is anything to fetch; `description` would make an object of each column."""
    return cursor.pgresult is not None and cursor.pgresult.nfields > 0


def _fetch(cursor: psycopg.Cursor[Any]) -> Rows:
    return cursor.fetchall() if _has_columns(cursor) else []


async def _fetch_async(cursor: psycopg.AsyncCursor[Any]) -> Rows:
    return await cursor.fetchall() if _has_columns(cursor) else []


def send(connection: psycopg.Connection[Any], batch: Batch) -> list[Rows]:
    """The rows of each step, from one pipelined round trip in the connection's transaction, if it has one."""
    alone = connection.info.transaction_status == TransactionStatus.IDLE and connection.autocommit
    with connection.pipeline():
        cursors = []
        try:
            for statement, parameters in batch.steps:
                query = compiled(statement)
                kind = psycopg.Cursor if query.numbered is None else psycopg.RawCursor
                cursor = kind(connection, row_factory=dict_row)
                cursors.append(cursor.execute(*query.ready(parameters), binary=query.binary))
        except BaseException:
            if alone and connection.info.pipeline_status == PipelineStatus.ON:
                # The statement was never sent: psycopg could not take its parameters. What it believes to
                # have prepared may not be, so the connection is not to be used again.
                connection.execute("rollback")  # the pipeline's end would commit the steps before
                connection.close()
            raise
    return [_fetch(cursor) for cursor in cursors]


async def send_async(connection: psycopg.AsyncConnection[Any], batch: Batch) -> list[Rows]:
    """`send` on an asyncio connection."""
    alone = connection.info.transaction_status == TransactionStatus.IDLE and connection.autocommit
    async with connection.pipeline():
        cursors = []
        try:
            for statement, parameters in batch.steps:
                query = compiled(statement)
                kind = psycopg.AsyncCursor if query.numbered is None else psycopg.AsyncRawCursor
                cursor = kind(connection, row_factory=dict_row)
                cursors.append(await cursor.execute(*query.ready(parameters), binary=query.binary))
        except BaseException:
            if alone and connection.info.pipeline_status == PipelineStatus.ON:
                await connection.execute("rollback")
                await connection.close()
            raise
    return [await _fetch_async(cursor) for cursor in cursors]


def carry_out(connection: psycopg.Connection[Any], plan: Plan[T]) -> T:
    """What the plan returns, in one transaction of its own on an autocommit connection."""
    batch = next(plan)
    if batch.final:
        return _finish(plan, send(connection, batch))
    with connection.transaction():
        return _continue(plan, batch, lambda following: send(connection, following))


async def carry_out_async(connection: psycopg.AsyncConnection[Any], plan: Plan[T]) -> T:
    """`carry_out` on an asyncio connection."""
    batch = next(plan)
    if batch.final:
        return _finish(plan, await send_async(connection, batch))
    async with connection.transaction():
        return await _continue_async(plan, batch, lambda following: send_async(connection, following))


def send_unpipelined(connection: psycopg.Connection[Any], batch: Batch) -> list[Rows]:
    """`send`, one statement after the other, in a transaction.

    For a session that Postgres is to end when nothing comes from it: after a pipeline it does not count the
    silence, as psycopg's last message of it, a flush, begins what only a sync would end.
    """
    results = []
    with connection.transaction():
        for statement, parameters in batch.steps:
            query = compiled(statement)
            results.append(_fetch(connection.execute(query.sql, query.bind(parameters))))
    return results


def carry_out_unpipelined(connection: psycopg.Connection[Any], plan: Plan[T]) -> T:
    """`carry_out` by `send_unpipelined`."""
    with connection.transaction():
        return _continue(plan, next(plan), lambda batch: send_unpipelined(connection, batch))


SyncCaller = Session | Connection | psycopg.Connection[Any]
AsyncCaller = AsyncSession | AsyncConnection | psycopg.AsyncConnection[Any]


def carry_out_within(caller: SyncCaller, plan: Plan[T]) -> T:
    """What the plan returns, in the caller's own transaction, which the caller ends.

    Where the plan raises, the transaction stands as it did before.
    """
    if isinstance(caller, psycopg.Connection):
        if not caller.autocommit:
            caller.execute("select")  # begins the caller's transaction; the next line would begin and end one
        with caller.transaction():
            return _continue(plan, next(plan), lambda batch: send(caller, batch))

    def execute(batch: Batch) -> list[Rows]:
        return [_mappings(caller.execute(_executable(step), dict(step.parameters))) for step in batch.steps]

    with caller.begin_nested():
        return _continue(plan, next(plan), execute)


async def carry_out_within_async(caller: AsyncCaller, plan: Plan[T]) -> T:
    """`carry_out_within` for an asyncio session or connection."""
    if isinstance(caller, psycopg.AsyncConnection):
        if not caller.autocommit:
            await caller.execute("select")
        async with caller.transaction():
            return await _continue_async(plan, next(plan), lambda batch: send_async(caller, batch))

    async def execute(batch: Batch) -> list[Rows]:
        return [
            _mappings(await caller.execute(_executable(step), dict(step.parameters))) for step in batch.steps
        ]

    async with caller.begin_nested():
        return await _continue_async(plan, next(plan), execute)


def _executable(step: Step) -> Executable:
    assert not isinstance(step.statement, Compiled), "written for psycopg"
    return step.statement


def _mappings(result: Any) -> Rows:
    return list(result.mappings()) if result.returns_rows else []


def _continue(plan: Plan[T], batch: Batch, execute: Callable[[Batch], list[Rows]]) -> T:
    while True:
        rows = execute(batch)
        try:
            batch = plan.send(rows)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


async def _continue_async(
    plan: Plan[T], batch: Batch, execute: Callable[[Batch], Awaitable[list[Rows]]]
) -> T:
    while True:
        rows = await execute(batch)
        try:
            batch = plan.send(rows)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def _finish(plan: Plan[T], rows: list[Rows]) -> T:
    try:
        plan.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise RuntimeError("a plan yielded after its final batch")
