"""The attempts that are under way in this process, and how each is told to stop."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from langgraph.runtime import RunControl

from threadmill.core.statement import Row
from threadmill.workers.heads import UNREAD, Head
from threadmill.workers.lease import Lease

if TYPE_CHECKING:
    from threadmill.workers.claims import Claimed

T = TypeVar("T")

# Why an attempt stops before its graph has ended. taken: the ledger says that the run is no longer its own.
# cut off: the worker's lease ran out. The others end it here.
Stop = Literal["taken", "cut off", "timeout", "deadline", "drain timeout"]


class Attempt:
    """One attempt under way. Everything but `threads` belongs to the loop."""

    def __init__(self, run: Row, head: Head = UNREAD, since: float = 0) -> None:
        """head: where its thread stands. since: when its slot began to go from one run of the tenant to the
        next, on the monotonic clock."""
        self.run = run
        self.head = head
        self.since = since
        self.following: Claimed | None = None  # the run with which its slot goes on
        self.lease = Lease(run["id"], run["attempt"], run["thread_id"])
        self.control = RunControl()
        self.dependencies: set[str] = set()  # what its nodes called by name
        self.stopped: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        self.threads = 0  # of nodes that are plain functions, which nobody can end

    def stop(self, why: Stop) -> None:
        """Has the attempt given up; whoever stops it first says why."""
        if why in ("taken", "cut off"):
            self.lease.lost = True  # it need not ask Postgres to hear it
        if not self.stopped.done():
            self.stopped.set_result(why)


CURRENT: ContextVar[Attempt | None] = ContextVar("threadmill_attempt", default=None)


class Attempts:
    """Those of one process. May be read from any thread; changed on the loop."""

    def __init__(self) -> None:
        self._held: dict[uuid.UUID, Attempt] = {}
        self._claiming: dict[uuid.UUID, int] = {}
        self._claiming_some: set[object] = set()
        self._lock = threading.Lock()
        self._idle: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def claiming(self, run_id: uuid.UUID) -> Iterator[None]:
        """While it lasts the run counts as held here: the ledger may know before we do."""
        with self._lock:
            self._claiming[run_id] = self._claiming.get(run_id, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._claiming[run_id] -= 1
                if not self._claiming[run_id]:
                    del self._claiming[run_id]
            self._tell_if_idle()

    @contextmanager
    def claiming_some(self) -> Iterator[None]:
        """While it lasts, the ledger may hold runs for this worker that nobody here knows yet."""
        mark = object()
        with self._lock:
            self._claiming_some.add(mark)
        try:
            yield
        finally:
            with self._lock:
                self._claiming_some.discard(mark)
            self._tell_if_idle()

    def unresolved(self) -> frozenset[object]:
        """Marks of all `claiming_some` that last."""
        with self._lock:
            return frozenset(self._claiming_some)

    @contextmanager
    def holding(self, attempt: Attempt) -> Iterator[None]:
        """While it lasts the attempt is under way."""
        run_id = attempt.run["id"]
        with self._lock:
            self._held[run_id] = attempt
        token = CURRENT.set(attempt)
        try:
            yield
        finally:
            CURRENT.reset(token)
            with self._lock:
                if self._held.get(run_id) is attempt:
                    del self._held[run_id]
            self._tell_if_idle()

    def held(self) -> dict[uuid.UUID, int]:
        """The attempts under way: run id to attempt number."""
        with self._lock:
            return {run_id: attempt.run["attempt"] for run_id, attempt in self._held.items()}

    def runs(self) -> list[Row]:
        """The runs of the attempts under way."""
        with self._lock:
            return [attempt.run for attempt in self._held.values()]

    def knows(self, run_id: uuid.UUID, number: int) -> bool:
        """Whether this attempt is under way or being claimed."""
        with self._lock:
            held = self._held.get(run_id)
            return run_id in self._claiming or (held is not None and held.run["attempt"] == number)

    def stop(self, run_id: uuid.UUID, number: int | None, why: Stop) -> None:
        """Stops an attempt, if it is under way. number: None stops whichever it is."""
        attempt = self._held.get(run_id)
        if attempt is not None and number in (None, attempt.run["attempt"]):
            attempt.stop(why)

    def stop_all(self, why: Stop) -> None:
        for attempt in list(self._held.values()):
            attempt.stop(why)

    def request_drain(self) -> None:
        """Asks each graph to stop at its next superstep, with its checkpoint saved."""
        for attempt in list(self._held.values()):
            attempt.control.request_drain("drain")

    async def wait_until_idle(self, timeout: float) -> bool:
        """Whether, within so many seconds, none is under way any more, or being claimed."""
        if self._is_idle():
            return True
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        try:
            async with asyncio.timeout(timeout):
                await idle
        except TimeoutError:
            return self._is_idle()
        finally:
            self._idle.remove(idle)
        return True

    def _is_idle(self) -> bool:
        return not self._held and not self._claiming and not self._claiming_some

    def _tell_if_idle(self) -> None:
        if self._is_idle():
            for waiting in self._idle:
                if not waiting.done():
                    waiting.set_result(None)


class NodeThreads(ThreadPoolExecutor):
    """Where LangGraph runs nodes that are plain functions; it knows for whom each thread is at work.

    As many threads as runs: with asyncio's own few, blocking nodes would wait for each other.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(max_workers=limit, thread_name_prefix="threadmill-node")
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future = super().submit(fn, *args, **kwargs)
        attempt = CURRENT.get()
        if attempt is not None:
            with self._lock:
                attempt.threads += 1
            future.add_done_callback(lambda _: self._ended(attempt))
        return future

    def _ended(self, attempt: Attempt) -> None:
        with self._lock:
            attempt.threads -= 1
