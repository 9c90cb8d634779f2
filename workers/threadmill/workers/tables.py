"""LangGraph's own tables in the ledger's database: made by its `setup()`, guarded by row-level security."""

from __future__ import annotations

import asyncio

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg.rows import DictRow, dict_row

from threadmill.core.database import FLEET_ROLE, TENANT_ROLE, connection_info
from threadmill.core.models import SCHEMA
from threadmill.core.settings import Settings
from threadmill.core.transitions import TENANT_SETTING

CHECKPOINT_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
STORE_TABLE = "store"

_TENANT = f"current_setting('{TENANT_SETTING}', true)"
# An answer to a second question of one node replaces the answer to the first, and the second question the
# first one itself. What another run has replaced is kept beside it, so that rolling that run back can put it
# back: the thread then stands at its question again. A trigger, since LangGraph's statement is not the only
# one that writes; it is looked at by updates alone.
_KEEP_REPLACED = f"""
create or replace function {SCHEMA}.keep_replaced_write() returns trigger language plpgsql as $$
begin
    new.replaced_run_id := old.run_id;
    new.replaced_type := old.type;
    new.replaced_blob := old.blob;
    return new;
end
$$;
create or replace trigger keep_replaced before update on {SCHEMA}.checkpoint_writes for each row
    when (old.run_id is distinct from new.run_id and old.replaced_blob is not distinct from new.replaced_blob)
    execute function {SCHEMA}.keep_replaced_write()
"""
_RESTORABLE = "run_id, type, blob, replaced_run_id, replaced_type, replaced_blob"
# A thread key begins with the tenant and a colon; so does a store prefix, with the tenant's dots as slashes.
# `split_part`, not `like`: a tenant may hold the wildcard `_`.
_OWN_CHECKPOINT = f"split_part(thread_id, ':', 1) = {_TENANT}"
_OWN_ITEM = f"split_part(prefix, ':', 1) = replace({_TENANT}, '.', '/')"


def upgrade_langgraph_tables(settings: Settings) -> None:
    """Creates or upgrades LangGraph's checkpoint and store tables, and guards them; may be repeated.

    Call it after the ledger's own upgrade, which makes the roles.
    """
    asyncio.run(_upgrade(settings))


async def _upgrade(settings: Settings) -> None:
    async with await psycopg.AsyncConnection.connect(
        connection_info(settings.for_sessions(), role=None), autocommit=True, row_factory=dict_row
    ) as connection:
        await _take_turns(connection)
        await AsyncPostgresSaver(connection).setup()
        store = AsyncPostgresStore(connection)
        await store.setup()
        # Whose write it is, so that what a run wrote beside another's checkpoint can be told apart.
        for column in ("run_id uuid", "replaced_run_id uuid", "replaced_type text", "replaced_blob bytea"):
            await connection.execute(
                f"alter table {SCHEMA}.checkpoint_writes add column if not exists {column}"
            )
        await connection.execute(_KEEP_REPLACED)
        for table in CHECKPOINT_TABLES:
            # Nothing reads by it that the primary key, which begins with the same column, does not serve.
            await connection.execute(f"drop index if exists {SCHEMA}.{table}_thread_id_idx")
            await _guard(connection, table, _OWN_CHECKPOINT)
            # A producer that cancels a run may have what it wrote removed, and what that replaced put back.
            await connection.execute(f"grant delete on {SCHEMA}.{table} to {TENANT_ROLE}")
        await connection.execute(
            f"grant update ({_RESTORABLE}) on {SCHEMA}.checkpoint_writes to {TENANT_ROLE}"
        )
        await _guard(connection, STORE_TABLE, _OWN_ITEM)


async def _take_turns(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Locks for as long as the connection lives: LangGraph's setup() cannot be run by two at once.

    It asks again and again, as it builds indexes concurrently, and these wait for every statement that is
    under way: also for one that waits for the lock.
    """
    lock = f"select pg_try_advisory_lock(hashtext('{SCHEMA}.langgraph')) as locked"
    while True:
        row = await (await connection.execute(lock)).fetchone()
        if row is not None and row["locked"]:
            return
        await asyncio.sleep(0.1)


async def _guard(connection: psycopg.AsyncConnection[DictRow], table: str, own: str) -> None:
    """Binds both roles to the rows of the transaction's tenant."""
    roles = f"{FLEET_ROLE}, {TENANT_ROLE}"
    async with connection.transaction():
        for statement in (
            f"alter table {SCHEMA}.{table} enable row level security",
            f"drop policy if exists tenant on {SCHEMA}.{table}",
            f"create policy tenant on {SCHEMA}.{table} to {roles} using ({own})",
            f"grant select, insert, update, delete on {SCHEMA}.{table} to {FLEET_ROLE}",
            f"grant select on {SCHEMA}.{table} to {TENANT_ROLE}",
        ):
            await connection.execute(statement)
