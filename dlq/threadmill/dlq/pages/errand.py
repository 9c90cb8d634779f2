"""What a page asks of the ledger, off tornado's loop, and what it says where that cannot be had."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from tornado.web import HTTPError

from threadmill.core.errors import Conflict, InvalidRequest, NotFound, ThreadmillError, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

# The first that fits; any other error of ours is a failure of the server's.
_STATUSES: tuple[tuple[type[ThreadmillError], int], ...] = (
    (NotFound, 404),
    (InvalidRequest, 400),
    (Conflict, 409),
    (Unavailable, 503),
)


class Refusal(HTTPError):
    """An answer other than what was asked for, with words for whoever asked."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(status)
        self.words = words


def status_of(error: ThreadmillError) -> int:
    """The HTTP status that says the same."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


class Errands:
    """What takes its time: a trial, a replay of many. Each has a thread of its own, which holds up no exit.

    A pool's threads would: the interpreter waits for them, for hours perhaps. What is cut off has its place
    in the ledger and can be continued.
    """

    def __init__(self, most: int) -> None:
        """most: at once."""
        self._free = threading.BoundedSemaphore(most)

    def begin(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """What the call will have come to. Raises Refusal where as many are under way as may be."""
        if not self._free.acquire(blocking=False):
            raise Refusal(
                503, "As many trials and replays of many are under way here as may be; wait for one."
            )
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = call(*args, **kwargs)
            except BaseException as error:
                self._free.release()
                future.set_exception(error)
            else:
                self._free.release()
                future.set_result(result)

        threading.Thread(target=run, name="errand", daemon=True).start()
        return future


async def run_in(pool: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call returns, which blocks one of the pool's threads. Raises Refusal for errors of ours."""
    return await outcome(pool.submit(partial(call, *args, **kwargs)))


async def outcome(future: Future[T]) -> T:
    """What the call returned. Raises Refusal for errors of ours."""
    try:
        return await asyncio.wrap_future(future)
    except ThreadmillError as error:
        raise Refusal(status_of(error), str(error)) from error
