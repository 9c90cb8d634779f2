"""The Celery app of the workers and its one task."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from celery.signals import worker_process_init, worker_process_shutdown

from threadmill.core.celery_app import RUN_TASK, create_celery_app
from threadmill.core.doorbell import Bell
from threadmill.core.errors import LeaseLost
from threadmill.core.logs import configure_logs
from threadmill.core.settings import Settings
from threadmill.workers.executor import BellDropped, RunPostponed
from threadmill.workers.runtime import Draining, Runtime


class Process:
    """The runtime of this process, once it has one."""

    runtime: Runtime | None = None


async def answer(runtime: Runtime, args: list[Any], accept: Callable[[], None] = lambda: None) -> str:
    """Executes the run that a bell's arguments name; raises Celery's Ignore where nothing is to be shown.

    accept: is called when there is room for it. Raises Draining before that.
    """
    try:
        return await runtime.answer(Bell.of(*args), accept)
    except (BellDropped, LeaseLost, RunPostponed):
        # A second bell for a run must not overwrite in Flower what became of the first.
        raise Ignore from None


def create_worker_app(settings: Settings) -> Celery:
    """The Celery app with the task `threadmill.run`."""
    app = create_celery_app(settings)

    @app.task(name=RUN_TASK, bind=True, ignore_result=True)
    def run(self: Task, *args: Any) -> str:  # noqa: ARG001 - Celery binds it
        # Only the prefork pool comes here: the asyncio pool calls `answer` on its loop.
        assert Process.runtime is not None
        try:
            return Process.runtime.submit(answer(Process.runtime, list(args))).result()
        except Draining:
            raise Ignore from None

    _give_children_a_runtime(settings)
    return app


def _give_children_a_runtime(settings: Settings) -> None:
    """With the prefork pool each child process executes runs, so each has a runtime."""

    def start(**_: Any) -> None:
        configure_logs(settings)
        # Celery puts another child in the place of one that ends.
        Process.runtime = Runtime(settings, limit=1, on_replace=lambda: os.kill(os.getpid(), signal.SIGTERM))
        Process.runtime.start()

    def stop(**_: Any) -> None:
        if Process.runtime is not None:
            Process.runtime.drain()
            Process.runtime.stop()

    _connect(worker_process_init, start)
    _connect(worker_process_shutdown, stop)


def _connect(signal: Any, receiver: Callable[..., None]) -> None:
    signal.connect(receiver, weak=False)
