"""What a database has written, and what it keeps."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

_TABLES = "select schemaname, relname from pg_stat_user_tables"


def wal_position(connection: psycopg.Connection[Any]) -> int:
    """How many bytes of WAL the server has written so far, those of its other databases among them."""
    return _one(connection, sql.SQL("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def rows_kept(connection: psycopg.Connection[Any]) -> int:
    """The rows of all tables of the connection's database."""
    tables = [sql.Identifier(*found) for found in connection.execute(_TABLES).fetchall()]
    return sum(_one(connection, sql.SQL("select count(*) from {}").format(table)) for table in tables)


def _one(connection: psycopg.Connection[Any], query: sql.SQL | sql.Composed) -> int:
    row: Any = connection.execute(query).fetchone()
    return int(row[0])
