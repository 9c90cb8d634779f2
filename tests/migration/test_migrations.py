"""The migrations: up, down, twice, at once, by an owner who is no superuser; and they equal the models."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from threadmill.core import migrate
from threadmill.core.database import Database
from threadmill.core.errors import DatabaseNotMigrated, MigrationFailed
from threadmill.core.models import SCHEMA, Base
from threadmill.core.revision import REVISION, REVISION_TABLE
from threadmill.core.settings import Settings
from threadmill.producers import Producer
from threadmill.workers.tables import upgrade_langgraph_tables

# Everything that a migration makes in the schema: columns, indexes, constraints, policies, rights, functions.
CATALOGUE = """
    select 'column', table_name, column_name, data_type || is_nullable || coalesce(column_default, '')
        from information_schema.columns where table_schema = 'threadmill'
    union all select 'index', tablename, indexname, indexdef from pg_indexes where schemaname = 'threadmill'
    union all select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        from pg_constraint where connamespace = 'threadmill'::regnamespace
    union all select 'policy', tablename, policyname, roles::text || coalesce(qual, '')
        from pg_policies where schemaname = 'threadmill'
    union all select 'right', table_name, grantee, string_agg(privilege_type, ',' order by privilege_type)
        from information_schema.role_table_grants where table_schema = 'threadmill' group by 1, 2, 3
    union all select 'secured', relname, relrowsecurity::text, relkind::text
        from pg_class where relnamespace = 'threadmill'::regnamespace
    union all select 'function', proname, proacl::text, prosrc
        from pg_proc where pronamespace = 'threadmill'::regnamespace
    order by 1, 2, 3, 4
"""


UPGRADER = """
import json, sys
from threadmill.core import migrate
from threadmill.core.settings import Settings
from threadmill.workers.tables import upgrade_langgraph_tables

settings = Settings(**json.loads(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(settings)
upgrade_langgraph_tables(settings)
"""


@pytest.fixture
def create_database(settings: Settings, admin: Any) -> Iterator[Callable[..., Settings]]:
    """Settings of an empty database."""
    names: list[str] = []

    def create(owner: str | None = None) -> Settings:
        names.append(f"{settings.queue}_{len(names)}")
        admin.execute(f"create database {names[-1]}" + (f" owner {owner}" if owner else ""))
        url = settings.database_url.replace(f"/{settings.queue}", f"/{names[-1]}")
        return settings.model_copy(update={"database_url": url})

    yield create
    for name in names:
        admin.execute(f"drop database {name} with (force)")
    admin.execute(f"drop role if exists owner_{settings.queue}")


@pytest.fixture
def empty(create_database: Callable[..., Settings]) -> Settings:
    return create_database()


def catalogue(settings: Settings) -> list[Any]:
    with psycopg.connect(settings.database_url) as connection:
        return connection.execute(CATALOGUE).fetchall()


def tables(settings: Settings) -> set[str]:
    with psycopg.connect(settings.database_url) as connection:
        rows = connection.execute(
            "select tablename from pg_tables where schemaname = 'threadmill'"
        ).fetchall()
    return {name for (name,) in rows}


def test_up_down_and_up_again_is_up(empty: Settings) -> None:
    assert migrate.current(empty) is None
    migrate.upgrade(empty)
    up = catalogue(empty)
    assert migrate.current(empty) == REVISION
    assert tables(empty) == {table.name for table in Base.metadata.tables.values()} | {REVISION_TABLE}

    migrate.downgrade(empty, "base")
    assert migrate.current(empty) is None
    assert tables(empty) == {REVISION_TABLE}

    migrate.upgrade(empty)
    assert catalogue(empty) == up


def test_every_step_of_the_chain_goes_down_and_up(empty: Settings) -> None:
    chain = [step.revision for step in ScriptDirectory.from_config(migrate.config()).walk_revisions()]
    chain.reverse()
    seen = []

    for revision in chain:
        migrate.upgrade(empty, revision)
        seen.append(catalogue(empty))
    for revision, expected in zip(reversed(chain[:-1]), reversed(seen[:-1]), strict=True):
        migrate.downgrade(empty, revision)
        assert (migrate.current(empty), catalogue(empty)) == (revision, expected)

    assert chain[-1] == REVISION, "the code expects the newest revision"


def test_an_upgraded_database_equals_the_models(empty: Settings) -> None:
    migrate.upgrade(empty)

    with migrate.owner_connection(empty) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": REVISION_TABLE,
                "version_table_schema": SCHEMA,
                "include_schemas": True,
                "include_name": lambda name, kind, _: name == SCHEMA if kind == "schema" else True,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def test_alembics_own_check_finds_nothing_to_do(settings: Settings) -> None:
    with migrate.owner_connection(settings) as connection:
        alembic = migrate.config()
        alembic.attributes["connection"] = connection
        command.check(alembic)  # beside LangGraph's tables, which are its own


def test_upgrading_twice_changes_nothing(empty: Settings) -> None:
    migrate.upgrade(empty)
    upgrade_langgraph_tables(empty)
    before = catalogue(empty)

    migrate.upgrade(empty)
    upgrade_langgraph_tables(empty)

    assert catalogue(empty) == before


def test_langgraphs_tables_outlive_the_ledgers(empty: Settings) -> None:
    migrate.upgrade(empty)
    upgrade_langgraph_tables(empty)
    ledger = {table.name for table in Base.metadata.tables.values()}
    before = catalogue(empty)

    migrate.downgrade(empty, "base")
    assert tables(empty).isdisjoint(ledger)
    assert {"checkpoints", "checkpoint_blobs", "checkpoint_writes", "store"} <= tables(empty)
    migrate.upgrade(empty)

    assert catalogue(empty) == before


def test_those_that_upgrade_at_once_take_turns(create_database: Callable[..., Settings]) -> None:
    one, other = create_database(), create_database()
    # The roles belong to both databases. Processes, as Alembic keeps its context in a global.
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADER, target.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for target in (one, other, one, other)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=30)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    assert [process.returncode for process in processes] == [0] * 4, errors
    assert migrate.current(one) == migrate.current(other) == REVISION
    assert catalogue(one) == catalogue(other)


def test_an_owner_who_is_no_superuser_migrates_and_works(
    create_database: Callable[..., Settings], settings: Settings, admin: Any
) -> None:
    owner = f"owner_{settings.queue}"
    # The role of the fleet is another's, who gave it to this owner.
    admin.execute(f"create role {owner} login password '{owner}' in role threadmill_fleet")
    mine = create_database(owner)
    url = re.sub("//[^@/]*@", f"//{owner}:{owner}@", mine.database_url)
    mine = mine.model_copy(update={"database_url": url})

    migrate.upgrade(mine)
    upgrade_langgraph_tables(mine)

    with Producer(mine) as producer:
        assert producer.list(tenant="acme") == []
    owned = "select distinct tableowner from pg_tables where schemaname = 'threadmill'"
    with psycopg.connect(url) as connection:
        assert connection.execute(owned).fetchall() == [(owner,)]


def test_a_revision_that_nobody_knows_is_named(empty: Settings) -> None:
    migrate.upgrade(empty)

    with pytest.raises(MigrationFailed, match="9999"):
        migrate.downgrade(empty, "9999")

    assert migrate.current(empty) == REVISION


def test_the_code_refuses_a_database_that_went_down(empty: Settings) -> None:
    migrate.upgrade(empty)
    migrate.downgrade(empty, "base")
    database = Database(empty)

    with pytest.raises(DatabaseNotMigrated) as raised, database.connection():
        pass

    assert (raised.value.found, raised.value.expected) == (None, REVISION)
