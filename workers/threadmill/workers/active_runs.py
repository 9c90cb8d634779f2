"""Shows Celery which runs the asyncio pool executes: for `inspect active`, and for "Active" in Flower."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from celery.worker import state

from threadmill.core.celery_app import RUN_TASK
from threadmill.core.doorbell import shown
from threadmill.core.statement import Row


class ActiveRun:
    """What Celery asks of a request that is being executed."""

    # So Celery has nothing to cancel when it stops: the pool hands the run over.
    task = SimpleNamespace(acks_late=True)
    acknowledged = True
    eventer: Any = None

    def __init__(self, run: Row) -> None:
        self.id = str(run["id"])
        self._shown = shown(run["tenant"], run["thread_id"], run["graph"])
        self._since = time.time()

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002 - Celery's signature
        """As `celery.worker.request.Request.info`. time_start: when it was first shown."""
        return {
            "id": self.id,
            "name": RUN_TASK,
            "args": self._shown,
            "kwargs": "",
            "type": RUN_TASK,
            "time_start": self._since,
            "acknowledged": True,
            "worker_pid": os.getpid(),
        }


class ActiveRuns:
    """Belongs to Celery's thread, as what it changes does."""

    def __init__(self) -> None:
        self._shown: dict[uuid.UUID, ActiveRun] = {}

    def show(self, runs: Iterable[Row]) -> None:
        """From here on these are active, and no others."""
        active = {run["id"]: run for run in runs}
        for run_id in self._shown.keys() - active.keys():
            state.active_requests.discard(self._shown.pop(run_id))
        for run_id in active.keys() - self._shown.keys():
            self._shown[run_id] = ActiveRun(active[run_id])
            state.active_requests.add(self._shown[run_id])
