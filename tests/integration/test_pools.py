"""The pools of Postgres connections: whose turn it is, and what an outage leaves."""

from __future__ import annotations

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


async def test_the_connection_that_came_back_last_is_the_next_on_a_loop(few: Settings) -> None:
    database = AsyncDatabase(few)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        async with AsyncExitStack() as together:
            pids = [
                (await together.enter_async_context(database.connection())).info.backend_pid
                for _ in range(AT_ONCE)
            ]

        turns = []
        for _ in range(2 * AT_ONCE):
            async with database.connection() as connection:
                turns.append(connection.info.backend_pid)

    assert len(set(pids)) == AT_ONCE
    assert set(turns) == {pids[0]}


def test_after_an_outage_one_caller_meets_a_broken_connection(
    few: Settings, admin: psycopg.Connection[Any]
) -> None:
    with closing(Database(few)) as database:
        with ExitStack() as stack:
            pids = [stack.enter_context(database.connection()).info.backend_pid for _ in range(AT_ONCE)]
        admin.execute("select pg_terminate_backend(pid, 5000) from unnest(%s::int[]) pid", [pids])

        with pytest.raises(DatabaseUnavailable), database.connection() as connection:
            connection.execute("select 1")

        with ExitStack() as stack:
            for _ in range(AT_ONCE):
                stack.enter_context(database.connection()).execute("select 1")


async def test_after_an_outage_one_caller_meets_a_broken_connection_on_a_loop(
    few: Settings, admin: psycopg.Connection[Any]
) -> None:
    database = AsyncDatabase(few)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        async with AsyncExitStack() as together:
            pids = [
                (await together.enter_async_context(database.connection())).info.backend_pid
                for _ in range(AT_ONCE)
            ]
        admin.execute("select pg_terminate_backend(pid, 5000) from unnest(%s::int[]) pid", [pids])

        with pytest.raises(DatabaseUnavailable):
            async with database.connection() as connection:
                await connection.execute("select 1")

        async with AsyncExitStack() as together:
            for _ in range(AT_ONCE):
                connection = await together.enter_async_context(database.connection())
                await connection.execute("select 1")
