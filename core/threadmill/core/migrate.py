"""The ledger's migrations: up, down, and where the database stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from psycopg.rows import tuple_row
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from threadmill.core.database import address, connect
from threadmill.core.errors import MigrationFailed
from threadmill.core.models import SCHEMA
from threadmill.core.revision import REVISION_TABLE
from threadmill.core.settings import Settings


def config() -> Config:
    """Alembic's configuration, without a file of its own."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return settings


@contextmanager
def owner_connection(settings: Settings) -> Iterator[Connection]:
    """A SQLAlchemy connection as the role that logs in, which will own the tables.

    Raises DatabaseUnavailable, and MigrationFailed for what goes wrong inside.
    """
    settings = settings.for_sessions()

    def creator() -> object:
        connection = connect(settings, role=None)
        # Alembic compares names with their schema; a schema that is the default one would have no name.
        connection.execute("set search_path to public")
        connection.autocommit = False
        connection.row_factory = tuple_row  # type: ignore[assignment]
        return connection

    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=creator, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except CommandError as error:
        raise MigrationFailed(address(settings.database_url), str(error)) from error
    except DBAPIError as error:
        reason = str(error.orig).partition("\n")[0]
        raise MigrationFailed(address(settings.database_url), reason) from error


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Brings the ledger's tables, roles and policies up to a revision.

    Raises DatabaseUnavailable and MigrationFailed.
    """
    with owner_connection(settings) as connection:
        # Two that migrate at once take turns; the second finds nothing to do.
        connection.exec_driver_sql(f"select pg_advisory_lock(hashtext('{SCHEMA}.migrate'))")
        connection.exec_driver_sql(f"create schema if not exists {SCHEMA}")
        connection.commit()
        alembic = config()
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, revision)
        connection.commit()


def downgrade(settings: Settings, revision: str) -> None:
    """Takes the ledger down to a revision; `base` removes its tables.

    Raises DatabaseUnavailable and MigrationFailed.
    """
    with owner_connection(settings) as connection:
        alembic = config()
        alembic.attributes["connection"] = connection
        command.downgrade(alembic, revision)
        connection.commit()


def current(settings: Settings) -> str | None:
    """The revision the database is at; None before the first upgrade.

    Raises DatabaseUnavailable and MigrationFailed.
    """
    with owner_connection(settings) as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": REVISION_TABLE, "version_table_schema": SCHEMA}
        )
        return context.get_current_revision()
