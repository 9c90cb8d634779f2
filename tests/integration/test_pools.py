"""The pools of Postgres connections: whose turn it is, and what an outage leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, closing
from typing import Any

import psycopg
import pytest

from threadmill.core.database import AsyncDatabase, Database
from threadmill.core.errors import DatabaseUnavailable
from threadmill.core.settings import Settings

AT_ONCE = 3


@pytest.fixture
def few(settings: Settings) -> Settings:
    """As many connections as are taken at once: a pool that may grow gets one more, some time later."""
    return settings.model_copy(update={"pool_size": AT_ONCE})


@pytest.fixture
async def on_a_loop(few: Settings) -> AsyncIterator[AsyncDatabase]:
    database = AsyncDatabase(few)
    yield database
    await database.close()


async def taken_together(database: AsyncDatabase) -> list[int]:
    """The server processes of as many connections as there may be; the first one is given back last."""
    async with AsyncExitStack() as stack:
        return [
            (await stack.enter_async_context(database.connection())).info.backend_pid for _ in range(AT_ONCE)
        ]


def end_sessions(admin: psycopg.Connection[Any], pids: list[int]) -> None:
    admin.execute("select pg_terminate_backend(pid, 5000) from unnest(%s::int[]) pid", [pids])


def test_the_connection_that_came_back_last_is_the_next(few: Settings) -> None:
    with closing(Database(few)) as database:
        with ExitStack() as stack:
            pids = [
                stack.enter_context(database.connection()).info.backend_pid for _ in range(AT_ONCE)
            ]  # the first one is given back last

        turns = []
        for _ in range(2 * AT_ONCE):
            with database.connection() as connection:
                turns.append(connection.info.backend_pid)

    assert len(set(pids)) == AT_ONCE
    assert set(turns) == {pids[0]}


async def test_the_connection_that_came_back_last_is_the_next_on_a_loop(on_a_loop: AsyncDatabase) -> None:
    pids = await taken_together(on_a_loop)

    turns = []
    for _ in range(2 * AT_ONCE):
        async with on_a_loop.connection() as connection:
            turns.append(connection.info.backend_pid)

    assert len(set(pids)) == AT_ONCE
    assert set(turns) == {pids[0]}


def test_after_an_outage_one_caller_meets_a_broken_connection(
    few: Settings, admin: psycopg.Connection[Any]
) -> None:
    with closing(Database(few)) as database:
        with ExitStack() as stack:
            pids = [stack.enter_context(database.connection()).info.backend_pid for _ in range(AT_ONCE)]
        end_sessions(admin, pids)

        with pytest.raises(DatabaseUnavailable), database.connection() as connection:
            connection.execute("select 1")

        with ExitStack() as stack:
            for _ in range(AT_ONCE):
                stack.enter_context(database.connection()).execute("select 1")


async def test_after_an_outage_one_caller_meets_a_broken_connection_on_a_loop(
    on_a_loop: AsyncDatabase, admin: psycopg.Connection[Any]
) -> None:
    end_sessions(admin, await taken_together(on_a_loop))

    with pytest.raises(DatabaseUnavailable):
        async with on_a_loop.connection() as connection:
            await connection.execute("select 1")

    async with AsyncExitStack() as together:
        for _ in range(AT_ONCE):
            connection = await together.enter_async_context(on_a_loop.connection())
            await connection.execute("select 1")


async def test_a_caller_cancelled_while_the_pool_is_drained_does_not_keep_its_connection(
    on_a_loop: AsyncDatabase, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await on_a_loop.pool()
    draining = asyncio.Event()

    async def drain_without_end() -> None:
        draining.set()
        await asyncio.Event().wait()

    async def meets_a_broken_connection() -> None:
        async with on_a_loop.connection() as connection:
            end_sessions(admin, [connection.info.backend_pid])
            await connection.execute("select 1")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "drain", drain_without_end)
        caller = asyncio.create_task(meets_a_broken_connection())
        await asyncio.wait_for(draining.wait(), 10)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller

    assert len(set(await taken_together(on_a_loop))) == AT_ONCE
