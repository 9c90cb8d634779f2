"""Waiting for Postgres: what a worker does while the ledger is away, so that no run fails because of it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
import structlog
import tenacity
from psycopg_pool import PoolTimeout

from threadmill.core.errors import DatabaseUnavailable

T = TypeVar("T")

# Postgres' own words, by SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), for being
# away, starting, stopping, full or a standby: classes 08 (connection) and 53 (resources), some of 57
# (administrator), 25006 (read-only, as after a failover); and 40 (rolled back for another's sake).
_CLASSES = ("08", "40", "53")
_STATES = ("57P01", "57P02", "57P03", "57P05", "25006")

_log = structlog.get_logger("threadmill.worker")


def is_outage(error: BaseException) -> bool:
    """Whether the ledger, not the statement, is to blame: the same may succeed in a moment."""
    if isinstance(error, DatabaseUnavailable | PoolTimeout):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_CLASSES) or error.sqlstate in _STATES
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def _tell(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _log.warning("ledger.away", error=type(error).__name__, tries=state.attempt_number)


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """What the call returns, made again for as long as Postgres is away.

    The call must bear being made twice: Postgres may have committed it before it went away. It ends when
    the task that waits is cancelled, as it is when the worker's lease runs out.
    """
    try:
        return await call()
    except Exception as error:
        if not is_outage(error):
            raise
    async for attempt in tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_outage),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=1),
        before_sleep=_tell,
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("unreachable: it is tried for ever")


@contextmanager
def impatiently(seconds: float, break_off: Callable[[], None]) -> Iterator[None]:
    """After so many seconds, and again and again, breaks off what the block waits for: how a process ends
    although Postgres takes what it is sent and does not answer."""
    done = threading.Event()

    def hurry() -> None:
        while not done.wait(seconds):
            break_off()

    thread = threading.Thread(target=hurry, name="threadmill-impatience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
