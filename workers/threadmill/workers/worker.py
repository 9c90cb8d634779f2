"""Runs a Celery worker in this process."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from typing import Any, Literal

import structlog
from celery.exceptions import SecurityWarning
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state

from threadmill.core.database import check_revision, connect
from threadmill.core.logs import configure_logs
from threadmill.core.settings import Settings
from threadmill.graphs import Registry
from threadmill.workers.consumer import Consumer
from threadmill.workers.pool import AsyncioPool
from threadmill.workers.runtime import settle
from threadmill.workers.task_events import TaskEvents
from threadmill.workers.tasks import create_worker_app
from threadmill.workers.undeliverable import UndeliverableMessages

_log = structlog.get_logger("threadmill.worker")

# How long the threads of nodes may take to end with the process, in seconds.
LAST_WORDS = 1.0

PoolName = Literal["asyncio", "prefork"]


def run_worker(settings: Settings, pool: PoolName = "asyncio") -> int:
    """Serves until the process is told to stop, and returns its exit status.

    pool: asyncio holds `concurrency` runs on one loop; prefork gives each of `concurrency` runs a process,
    for graphs that block or burn CPU. Raises GraphConfigInvalid, DatabaseUnavailable and
    DatabaseNotMigrated; a broker that is away is waited for.
    """
    configure_logs(settings)
    _check_surroundings(settings)
    # Celery warns against root because of pickle, which is not accepted here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    AsyncioPool.settings = settings
    AsyncioPool.task_events = Consumer.task_events = TaskEvents()
    replaced = threading.Event()

    def replace() -> None:
        replaced.set()
        state.should_stop = 0  # Celery's own way of asking for a warm shutdown

    AsyncioPool.on_replace = staticmethod(replace)
    app = create_worker_app(settings)
    worker = app.Worker(
        hostname=f"threadmill-{os.getpid()}@{socket.gethostname()}",
        pool_cls=AsyncioPool if pool == "asyncio" else "prefork",
        concurrency=settings.concurrency,
        loglevel=settings.log_level,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )

    def ready(**_: Any) -> None:
        settle()
        _log.info("worker.ready", queue=settings.queue, pool=pool, concurrency=settings.concurrency)

    worker_ready.connect(ready, weak=False)
    _take_signals(worker)
    Consumer.undeliverable = UndeliverableMessages(settings)
    worker.start()
    Consumer.undeliverable.close()
    if replaced.is_set():
        _log.warning("worker.replaces_itself")
        _flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very command again
    return int(worker.exitcode or 0)


def leave(status: int) -> None:
    """Ends the process, also where the thread of a node is still at work, which Python would wait for."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("threadmill-node")]
    for thread in threads:
        thread.join(LAST_WORDS / len(threads))
    if any(thread.is_alive() for thread in threads):
        _flush()
        os._exit(status)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _take_signals(worker: Any) -> None:
    """SIGTERM and SIGINT drain; a second SIGINT exits at once, and the leases do the rest.

    Celery's own handlers end a worker with status 1 on SIGINT, and have several stages beyond the second.
    """
    install = worker.install_platform_tweaks

    def interrupt(*_: Any) -> None:
        if state.should_stop is not None:
            os._exit(128 + signal.SIGINT)
        state.should_stop = 0
        worker_shutting_down.send(sender=worker.hostname, sig="INT", how="Warm", exitcode=0)

    def install_ours(instance: Any) -> None:
        install(instance)
        signal.signal(signal.SIGINT, interrupt)

    worker.install_platform_tweaks = install_ours


def _check_surroundings(settings: Settings) -> None:
    """Raises by name what Celery would otherwise log as an unrecoverable error of its pool."""
    Registry.read(settings.graphs_file)
    for each in (settings, settings.for_sessions()):
        with connect(each) as connection:
            check_revision(connection, each)
