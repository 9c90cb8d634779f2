"""Runs a Celery worker in this process."""

from __future__ import annotations

import os
import socket
import warnings
from typing import Any, Literal

import structlog
from celery.exceptions import SecurityWarning
from celery.signals import worker_ready

from threadmill.core.database import check_revision, connect
from threadmill.core.logs import configure_logs
from threadmill.core.settings import Settings
from threadmill.graphs import Registry
from threadmill.workers.pool import AsyncioPool
from threadmill.workers.tasks import create_worker_app

_log = structlog.get_logger("threadmill.worker")

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
        _log.info("worker.ready", queue=settings.queue, pool=pool, concurrency=settings.concurrency)

    worker_ready.connect(ready, weak=False)
    worker.start()
    return int(worker.exitcode or 0)


def _check_surroundings(settings: Settings) -> None:
    """Raises by name what Celery would otherwise log as an unrecoverable error of its pool."""
    Registry.read(settings.graphs_file)
    with connect(settings) as connection:
        check_revision(connection, settings)
