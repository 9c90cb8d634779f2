"""The Celery app of the workers and its one task."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down

from threadmill.core.celery_app import RUN_TASK, create_celery_app
from threadmill.core.doorbell import Bell
from threadmill.core.errors import LeaseLost
from threadmill.core.logs import configure_logs
from threadmill.core.settings import Settings
from threadmill.workers.claims import BellDropped
from threadmill.workers.executor import RunPostponed
from threadmill.workers.runtime import Draining, Runtime, settle


class Process:
    """The runtime of this process, once it has one. is_told: its children are to drain."""

    runtime: Runtime | None = None
    is_told = False


def create_worker_app(settings: Settings) -> Celery:
    """The Celery app with the task `threadmill.run`."""
    app = create_celery_app(settings)

    @app.task(name=RUN_TASK, bind=True, ignore_result=True)
    def run(self: Task, *args: Any) -> str:  # noqa: ARG001 - Celery binds it
        # Only the prefork pool comes here: the asyncio pool is handed bells.
        assert Process.runtime is not None
        try:
            return Process.runtime.submit(Process.runtime.answer(Bell.of(*args))).result()
        except (BellDropped, LeaseLost, RunPostponed, Draining):
            # A second bell for a run must not overwrite in Flower what became of the first.
            raise Ignore from None

    _give_children_a_runtime(settings)
    return app


def _give_children_a_runtime(settings: Settings) -> None:
    """With the prefork pool each child process executes runs, so each has a runtime.

    Celery lets children finish what they do, however long it takes. These are told to drain by the end of a
    pipe, which they see too where their parent is lost without a word.
    """
    told, tells = os.pipe()
    ending = threading.Lock()

    def tell(**_: Any) -> None:
        if not Process.is_told:
            Process.is_told = True
            os.close(tells)

    def start(**_: Any) -> None:
        tell()  # the child's copy of the pipe's end, which would keep it open
        configure_logs(settings)
        # Celery puts another child in the place of one that ends.
        Process.runtime = Runtime(settings, limit=1, on_replace=lambda: os.kill(os.getpid(), signal.SIGTERM))
        Process.runtime.start()
        settle()
        threading.Thread(target=drain_when_told, name="threadmill-drain", daemon=True).start()

    def drain_when_told() -> None:
        os.read(told, 1)
        with ending:
            if Process.runtime is not None:
                Process.runtime.drain()

    def stop(**_: Any) -> None:
        with ending:
            runtime, Process.runtime = Process.runtime, None
            if runtime is not None:
                runtime.drain()
                runtime.stop()

    _connect(worker_shutting_down, tell)
    _connect(worker_process_init, start)
    _connect(worker_process_shutdown, stop)


def _connect(signal: Any, receiver: Callable[..., None]) -> None:
    signal.connect(receiver, weak=False)
