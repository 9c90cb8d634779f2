"""What counts as Postgres being away, and that a worker waits for it and for nothing else."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import PoolTimeout

from threadmill.core.errors import BrokerUnavailable, DatabaseUnavailable, LeaseLost
from threadmill.workers.patience import is_outage, patiently

AWAY = [
    DatabaseUnavailable("localhost:5432/x", "refused"),
    PoolTimeout("no connection in 5 s"),
    psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly"),
    psycopg.InterfaceError("the connection is closed"),
    errors.AdminShutdown("terminating connection due to administrator command"),
    errors.CrashShutdown(),
    errors.CannotConnectNow("the database system is starting up"),
    errors.IdleSessionTimeout(),
    errors.TooManyConnections(),
    errors.DiskFull(),
    errors.ConnectionFailure(),
    errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction"),
    errors.DeadlockDetected(),
    errors.SerializationFailure(),
]
NOT_AWAY = [
    errors.UniqueViolation(),
    errors.UntranslatableCharacter("unsupported Unicode escape sequence"),
    errors.QueryCanceled("canceling statement due to statement timeout"),
    errors.UndefinedTable(),
    errors.RaiseException(),
    psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"),
    LeaseLost("r", 1),
    BrokerUnavailable("redis://", "refused"),
    ConnectionRefusedError(),
    ValueError(),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
async def test_a_call_is_made_again_until_postgres_is_back(error: Exception) -> None:
    calls = iter([error, error])

    async def call() -> str:
        for problem in calls:
            raise problem
        return "done"

    assert is_outage(error)
    assert await patiently(call) == "done"


@pytest.mark.parametrize("error", NOT_AWAY, ids=lambda error: type(error).__name__)
async def test_what_is_wrong_with_the_call_itself_is_raised_at_once(error: Exception) -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)) as raised:
        await patiently(call)

    assert not is_outage(error)
    assert (raised.value, calls) == (error, 1)


async def test_another_error_ends_the_waiting() -> None:
    problems = iter([errors.AdminShutdown(), LeaseLost("r", 1)])

    async def call() -> None:
        raise next(problems)

    with pytest.raises(LeaseLost):
        await patiently(call)


async def test_who_waits_can_be_cancelled() -> None:
    waiting = asyncio.Event()

    async def call() -> None:
        waiting.set()
        raise errors.CannotConnectNow

    task = asyncio.create_task(patiently(call))
    await asyncio.wait_for(waiting.wait(), 5)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
