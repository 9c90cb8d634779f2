"""A Celery pool that runs tasks as coroutines on one asyncio loop beside the consumer.

Celery's own pools spend a thread or a process on each run that waits for a model. `celery-aio-pool` was
read and not taken: its `on_apply` waits for the coroutine, so it runs one task at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from celery.concurrency.base import BasePool, apply_target

from threadmill.core.doorbell import Bell
from threadmill.core.settings import Settings
from threadmill.workers import transport
from threadmill.workers.active_runs import ActiveRuns
from threadmill.workers.runtime import Runtime
from threadmill.workers.task_events import TaskEvents

# So late, in seconds, Celery learns which runs are being executed.
SHOWN_EVERY = 1.0


class AsyncioPool(BasePool):
    """Runs up to `limit` runs at once on the loop of the process's runtime.

    The consumer hands it bells, which are accepted, and thereby acknowledged, when a place is free. Any other
    task than `threadmill.run` (Celery's own, or a user's) is applied by Celery, in a thread beside the loop.
    """

    limit: int
    body_can_be_buffer = True
    signal_safe = False
    # Handed over by `worker.run_worker`, as Celery makes the pool and passes no arguments of ours.
    settings: Settings | None = None
    task_events: TaskEvents | None = None
    on_replace: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.settings is not None
        self._runtime = Runtime(
            self.settings,
            limit=self.limit,
            goes_on=True,
            on_replace=self.on_replace,
            on_room=self._wake_consumer,
            task_events=self.task_events,
        )
        if self.task_events is not None:
            self.task_events.wake = self._wake_consumer
        self._active = ActiveRuns()
        self._showing: Any = None
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        os.set_blocking(self._woken, False)
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="threadmill-task")

    def on_start(self) -> None:
        self._runtime.start()
        transport.QoS.has_room = staticmethod(lambda: self._runtime.has_room)

    def register_with_event_loop(self, loop: Any) -> None:
        """Has Celery's event loop hear when there is room: asleep, it would look only every second.

        And has it tell which runs are being executed. Celery calls it for each connection to the broker.
        """
        loop.add_reader(self._woken, self._hear)
        if self._showing is not None:
            self._showing.cancel()
        self._showing = loop.call_repeatedly(SHOWN_EVERY, lambda: self._active.show(self._runtime.running))

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _wake_consumer(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wakes, b".")

    def answer(self, bell: Bell, accept: Callable[[], None]) -> None:
        """Has the run of a bell executed. accept: is called when there is a place for it."""
        self._runtime.answer_soon(bell, accept)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> None:
        self._threads.submit(apply_target, target, args, kwargs, callback, accept_callback)

    def on_stop(self) -> None:
        """Warm shutdown: the runs under way are handed over at their next checkpoint."""
        self._runtime.drain()
        self._threads.shutdown(cancel_futures=True)
        self._runtime.stop()

    def on_terminate(self) -> None:
        """Cold shutdown: the runs under way are abandoned where they stand."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._runtime.stop()

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "running": len(self._runtime.running), "processes": [os.getpid()]}
