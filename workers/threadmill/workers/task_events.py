"""Shows in Flower the runs that the asyncio pool executes, as Celery shows those of its own pools."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from threadmill.core.celery_app import RUN_TASK
from threadmill.core.doorbell import shown
from threadmill.core.errors import LeaseLost
from threadmill.core.statement import Row
from threadmill.workers.executor import RunPostponed

# What nobody has sent on is dropped from here on: Redis is away.
MAX_WAITING = 1_000


class TaskEvents:
    """Celery's task events for runs; told by the loop, and sent by Celery's own thread.

    While nobody watches, which is when Flower has not switched task events on, nothing is kept or sent.
    """

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None  # has Celery's thread look
        self._consumer: Any = None
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MAX_WAITING)

    def sent_by(self, consumer: Any) -> None:
        """From here on this consumer sends them."""
        self._consumer = consumer

    def began(self, run: Row) -> None:
        """The run is being executed. run: with id, tenant, thread_id and graph."""
        self._tell(
            run,
            ("task-received", {"name": RUN_TASK, "args": shown(run["tenant"], run["thread_id"], run["graph"]),
                               "kwargs": "", "retries": 0}),
            ("task-started", {}),
        )  # fmt: skip

    def ended(self, run: Row, error: Exception | None, seconds: float) -> None:
        """Its attempt is over. What has been postponed, or is another's, is not shown as ended."""
        if error is None:
            self._tell(run, ("task-succeeded", {"result": "'success'", "runtime": seconds}))
        elif not isinstance(error, (LeaseLost, RunPostponed)):
            self._tell(run, ("task-failed", {"exception": repr(error), "traceback": ""}))

    def _tell(self, run: Row, *events: tuple[str, dict[str, Any]]) -> None:
        if not self._is_watched():
            return
        for kind, fields in events:
            self._waiting.append((kind, {"uuid": str(run["id"]), "timestamp": time.time(), **fields}))
        self._consumer.hub.call_soon(self._send)
        self.wake()

    def _is_watched(self) -> bool:
        dispatcher = getattr(self._consumer, "event_dispatcher", None)
        return dispatcher is not None and dispatcher.enabled and "task" in (dispatcher.groups or ("task",))

    def _send(self) -> None:
        while self._waiting and self._is_watched():
            kind, fields = self._waiting.popleft()
            self._consumer.event_dispatcher.send(kind, **fields)
