"""One pool of Postgres connections per process: SQLAlchemy writes the statements, psycopg carries them.

Every connection acts as the role `threadmill_fleet`, which owns no table and is no superuser, so
row-level security binds it: it sees the whole ledger, and of LangGraph's tables only the rows of the
tenant that its transaction is bound to. What is done for one tenant goes further down, to
`threadmill_tenant`, which sees nothing of any other (see `transitions.bind_tenant`).

Role, search path and what the planner may do are asked for on connecting. Through a pooler in transaction
mode nothing can be: there they must be the defaults of the login, and that they are is looked at.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from threadmill.core.errors import DatabaseNotMigrated, DatabaseUnavailable, PoolerInTheWay, SettingsInvalid
from threadmill.core.models import SCHEMA
from threadmill.core.pooler import AsyncPooledConnection, PooledConnection
from threadmill.core.revision import REVISION, REVISION_TABLE
from threadmill.core.settings import Settings
from threadmill.core.statement import Plan, carry_out, carry_out_async

T = TypeVar("T")

FLEET_ROLE = "threadmill_fleet"
TENANT_ROLE = "threadmill_tenant"

STUCK_SECONDS = 30.0

_NO_TABLES = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
)
_READ_REVISION = f"""
    select session_user as login, current_database() as database, current_user = '{FLEET_ROLE}' as role,
        current_schema() is not distinct from '{SCHEMA}' as search_path,
        current_setting('enable_seqscan') = 'off' as enable_seqscan, version_num
    from {SCHEMA}.{REVISION_TABLE}
"""  # noqa: S608 - constants
# What each session must have, by its name in the row above.
_SESSION = {"role": FLEET_ROLE, "search_path": f"{SCHEMA}, public", "enable_seqscan": "off"}
_DECLARE = "set THREADMILL_DATABASE_POOLER=transaction"
_UNPREPARED = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)


def address(url: str) -> str:
    """Where a database URL points, without its password: what errors and logs may show."""
    parts = conninfo_to_dict(_libpq_url(url))
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def connection_info(settings: Settings, *, role: str | None = FLEET_ROLE) -> str:
    """The libpq connection string of these settings; `role=None` stays the role that logs in (the owner)."""
    url = _libpq_url(settings.database_url)
    return make_conninfo(
        url,
        options=_options(conninfo_to_dict(url).get("options"), settings, role),
        application_name="threadmill",
        connect_timeout=max(2, round(settings.connect_timeout)),  # libpq takes no less than 2 s
        # A server that is gone without a word is noticed within seconds, busy or idle.
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=round(settings.heartbeat_timeout * 1000),
    )


def _options(given: Any, settings: Settings, role: str | None) -> str:
    """What is asked for on connecting; given: by the URL."""
    asked = [str(given)] if given else []
    if settings.database_pooler == "transaction":
        return " ".join(asked)
    # Every statement has its index. While the tables are small the planner would rather read them whole, and
    # a prepared statement keeps that plan as they grow.
    asked.append(f"-c search_path={SCHEMA},public -c enable_seqscan=off")
    # The login's default may be the fleet's role. The URL may ask for the owner's, so its word counts.
    return " ".join([*asked, f"-c role={role}"] if role else ["-c role=none", *asked])


def _libpq_url(url: str) -> str:
    """The URL without SQLAlchemy's driver. Raises SettingsInvalid for what libpq does not understand."""
    scheme, separator, rest = url.partition("://")
    found = f"{scheme.partition('+')[0]}{separator}{rest}"
    try:
        conninfo_to_dict(found)
    except psycopg.ProgrammingError:  # its text may hold the password
        raise SettingsInvalid(
            ["database_url: is no URL like postgresql://user:password@host:port/database"]
        ) from None
    return found


def connect(settings: Settings, *, role: str | None = FLEET_ROLE) -> psycopg.Connection[DictRow]:
    """A connection of its own, in autocommit mode, outside the pool.

    Raises DatabaseUnavailable and, where the role is not there yet, DatabaseNotMigrated.
    """
    try:
        return _connection_class(settings).connect(
            connection_info(settings, role=role), **_keywords(settings)
        )
    except psycopg.OperationalError as error:
        raise _named(error, settings) from error


def _connection_class(settings: Settings) -> type[psycopg.Connection[DictRow]]:
    return psycopg.Connection[DictRow] if settings.database_pooler == "none" else PooledConnection


def _async_connection_class(settings: Settings) -> type[psycopg.AsyncConnection[DictRow]]:
    return psycopg.AsyncConnection[DictRow] if settings.database_pooler == "none" else AsyncPooledConnection


def _keywords(settings: Settings) -> dict[str, Any]:
    """Of psycopg's connect. Behind a pooler nothing is prepared, as the next transaction is elsewhere."""
    prepare = {} if settings.database_pooler == "none" else {"prepare_threshold": None}
    return {"autocommit": True, "row_factory": dict_row, **prepare}


def _named(error: Exception, settings: Settings) -> Exception:
    """The error of Threadmill's own for what psycopg raised on connecting."""
    # libpq's hints stand indented below what happened.
    lines = [line for line in str(error).splitlines() if line.strip() and not line[0].isspace()]
    reason = lines[-1] if lines else type(error).__name__
    where = address(settings.database_url)
    if f'role "{FLEET_ROLE}" does not exist' in str(error) or '"role"' in reason:
        return DatabaseNotMigrated(where, None, REVISION)
    if "unsupported startup parameter" in reason:
        return PoolerInTheWay(where, reason, _DECLARE)
    return DatabaseUnavailable(where, reason)


@contextmanager
def _prepared(settings: Settings) -> Iterator[None]:
    """Names what goes wrong behind a pooler that the settings do not speak of."""
    try:
        yield
    except _UNPREPARED as error:
        raise PoolerInTheWay(address(settings.database_url), str(error), _DECLARE) from error


def _pool_options(settings: Settings) -> dict[str, Any]:
    return {
        "kwargs": {"prepare_threshold": 0, **_keywords(settings)},
        "min_size": 1,
        "max_size": settings.pool_size,
        "timeout": settings.connect_timeout,
        "open": False,
    }


class _LatestFirst:
    """Makes a pool of psycopg's give out the connection that came back last, not the one idle for longest.

    Taken in turns, each session finds what it needs gone from the processor's caches. The pool has no
    setting for the order: this is the step at which it takes a connection (psycopg_pool 3.3, BasePool).
    """

    _pool: deque[Any]

    def _get_ready_connection(self, timeout: float | None) -> Any:
        self._pool.rotate()  # the next one is taken from the left, and given back on the right
        return super()._get_ready_connection(timeout)  # type: ignore[misc]


class _Pool(_LatestFirst, ConnectionPool[psycopg.Connection[DictRow]]):
    """The pool of a process that blocks."""

    def putconn(self, conn: psycopg.Connection[DictRow]) -> None:
        super().putconn(conn)
        if conn.broken:
            self.drain()  # what broke it has broken those that idle too: only one caller is to meet it


class Database:
    """The pool of a process that blocks: a producer, the CLI, the replay worker.

    The first use connects, and raises DatabaseUnavailable or DatabaseNotMigrated.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: _Pool | None = None
        self._opening = threading.Lock()

    def _open(self) -> _Pool:
        with self._opening:  # threads that share a producer open one pool
            if self._pool is None:
                with connect(self._settings) as connection:
                    check_revision(connection, self._settings)
                pool = _Pool(
                    connection_info(self._settings),
                    connection_class=_connection_class(self._settings),
                    **_pool_options(self._settings),
                )
                pool.open()
                self._pool = pool
            return self._pool

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[DictRow]]:
        """A connection of the pool, in autocommit mode. Raises DatabaseUnavailable."""
        pool = self._open()
        try:
            connection = pool.getconn()
        except PoolTimeout as error:
            raise _named(error, self._settings) from error
        try:
            with _prepared(self._settings):
                yield connection
        except psycopg.OperationalError as error:
            if connection.broken:
                raise _named(error, self._settings) from error
            raise
        finally:
            pool.putconn(connection)

    def carry_out(self, plan: Plan[T]) -> T:
        """What the plan returns, in one transaction."""
        with self.connection() as connection:
            return carry_out(connection, plan)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class WatchedPool(_LatestFirst, AsyncConnectionPool[psycopg.AsyncConnection[DictRow]]):
    """A pool whose connections are broken off when a caller has kept one too long.

    Everything that Threadmill sends is over in moments. Where no answer comes, and no word that the
    connection is gone either (a frozen server, a proxy that swallows), the caller would wait for ever: not
    even cancelling helps, as psycopg then waits for the server to confirm.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watched: dict[psycopg.AsyncConnection[DictRow], asyncio.TimerHandle] = {}

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[DictRow]:
        connection = await super().getconn(timeout)
        loop = asyncio.get_running_loop()
        self._watched[connection] = loop.call_later(STUCK_SECONDS, break_off, connection)
        return connection

    async def putconn(self, conn: psycopg.AsyncConnection[DictRow]) -> None:
        if (watch := self._watched.pop(conn, None)) is not None:
            watch.cancel()
        await super().putconn(conn)  # first, as a caller that is cancelled meanwhile must not keep it
        if conn.broken:
            await self.drain()  # as in _Pool

    def break_off(self) -> None:
        """Breaks off every connection that is in use; whoever waits on it gets an OperationalError."""
        for connection in list(self._watched):
            break_off(connection)


def break_off(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """Ends the connection under whoever waits on it, from any thread."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


class AsyncDatabase:
    """The pool of a process with an event loop: a worker, an asyncio producer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: WatchedPool | None = None
        self._opening = asyncio.Lock()

    async def pool(self) -> WatchedPool:
        """The pool itself, opened at first use. Raises DatabaseUnavailable or DatabaseNotMigrated."""
        if self._pool is not None:
            return self._pool
        async with self._opening:
            if self._pool is None:
                try:
                    connection = await _async_connection_class(self._settings).connect(
                        connection_info(self._settings), **_keywords(self._settings)
                    )
                except psycopg.OperationalError as error:
                    raise _named(error, self._settings) from error
                async with connection:
                    await check_revision_async(connection, self._settings)
                pool = WatchedPool(
                    connection_info(self._settings),
                    connection_class=_async_connection_class(self._settings),
                    **_pool_options(self._settings),
                )
                await pool.open()
                self._pool = pool
            return self._pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
        """A connection of the pool, in autocommit mode. Raises DatabaseUnavailable."""
        pool = await self.pool()
        try:
            connection = await pool.getconn()
        except PoolTimeout as error:
            raise _named(error, self._settings) from error
        try:
            with _prepared(self._settings):
                yield connection
        except psycopg.OperationalError as error:
            if connection.broken:
                raise _named(error, self._settings) from error
            raise
        finally:
            await pool.putconn(connection)

    async def carry_out(self, plan: Plan[T]) -> T:
        """What the plan returns, in one transaction."""
        async with self.connection() as connection:
            return await carry_out_async(connection, plan)

    def break_off(self) -> None:
        """Breaks off every connection that is in use; see WatchedPool."""
        if self._pool is not None:
            self._pool.break_off()

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
            self._pool = None


def check_revision(connection: psycopg.Connection[Any], settings: Settings) -> None:
    """Raises DatabaseNotMigrated unless the tables are of the revision that this code was written for.

    And PoolerInTheWay where the fleet's connection is not as it was asked for.
    """
    try:
        row = connection.execute(_READ_REVISION).fetchone()
    except _NO_TABLES:
        row = None
    _judge_revision(row, settings)


async def check_revision_async(connection: psycopg.AsyncConnection[Any], settings: Settings) -> None:
    """`check_revision` on an asyncio connection."""
    try:
        row = await (await connection.execute(_READ_REVISION)).fetchone()
    except _NO_TABLES:
        row = None
    _judge_revision(row, settings)


def _judge_revision(row: Any, settings: Settings) -> None:
    found = row["version_num"] if row else None
    if found != REVISION:
        raise DatabaseNotMigrated(address(settings.database_url), found, REVISION)
    _judge_session(row, settings)


def _judge_session(row: Any, settings: Settings) -> None:
    """Without its role a connection may do what its login may, and row-level security may not bind it."""
    if not (missing := {name: value for name, value in _SESSION.items() if not row[name]}):
        return
    login = f"""alter role "{row["login"]}" in database "{row["database"]}" set"""
    remedy = "; ".join(f"{login} {name} = {value}" for name, value in missing.items())
    declare = "" if settings.database_pooler == "transaction" else f"{_DECLARE}, and "
    reason = f"its sessions have not {' and '.join(f'{name} {value}' for name, value in missing.items())}"
    raise PoolerInTheWay(address(settings.database_url), reason, f"{declare}once, `{remedy}`, then reconnect")
