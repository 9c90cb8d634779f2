"""A worker in the test's own process, and a Redis that a test may break."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from kombu.entity import Queue
from kombu.simple import SimpleQueue

from threadmill.core.celery_app import create_celery_app
from threadmill.core.doorbell import Bell, Doorbell
from threadmill.core.settings import Settings
from threadmill.graphs.source import module_name
from threadmill.producers import Run
from threadmill.workers.claims import BellDropped
from threadmill.workers.runtime import Runtime


class LocalWorker:
    """The runtime of a worker process, here, with the test in Celery's place.

    Its graphs are modules of this process, so a test and a node can share events.
    """

    def __init__(self, settings: Settings, *, goes_on: bool) -> None:
        self._settings = settings
        self._app = create_celery_app(settings)
        self._listener: threading.Thread | None = None
        self._answers: list[Future[str]] = []
        self._stopped = False
        self.runtime = Runtime(settings, goes_on=goes_on)
        self.runtime.start()

    @property
    def graphs(self) -> ModuleType:
        """The module that `serve` wrote."""
        folder = self._settings.graphs_file.parent
        return sys.modules[module_name(folder / "graphs.py", folder)]

    def answer(self, run: Run) -> Future[str]:
        """What comes of a bell for this run: the run's status, or what Executor.execute raises."""
        return self._execute([run.id, run.tenant, run.thread_id, run.graph])

    def drops(self, run: Run) -> bool:
        """Whether a bell for this run is dropped."""
        return isinstance(self.answer(run).exception(timeout=20), BellDropped)

    def listen(self) -> None:
        """Answers every bell of the queue, until the worker is stopped."""
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _execute(self, args: list[str]) -> Future[str]:
        answer = self.runtime.submit(self.runtime.answer(Bell.of(*args)))
        self._answers.append(answer)
        return answer

    def _listen(self) -> None:
        with self._queue() as bells:
            while (message := bells.get().payload) is not None:
                self._execute(message[0])

    @contextmanager
    def _queue(self) -> Iterator[SimpleQueue]:
        name = self._settings.queue
        with (
            self._app.connection_for_read() as connection,
            SimpleQueue(connection, Queue(name, routing_key=name), no_ack=True) as bells,
        ):
            yield bells

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        if self._listener is not None:
            with self._queue() as bells:
                bells.put(None)
            self._listener.join()
        wait(self._answers, timeout=20)
        self.runtime.stop()


class NoTaker:
    """Takes nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def take_on(self) -> None:
        await asyncio.Event().wait()

    def look(self) -> None:
        pass

    def stop(self) -> None:
        pass


@pytest.fixture
def doorbell(settings: Settings) -> Iterator[Doorbell]:
    doorbell = Doorbell(settings)
    yield doorbell
    doorbell.close()


@pytest.fixture
def lose_bells(doorbell: Doorbell, settings: Settings) -> Callable[[], None]:
    """Empties the queue."""

    def purge() -> None:
        with doorbell._app.connection_for_write() as connection:
            connection.default_channel.queue_purge(settings.queue)

    return purge


@pytest.fixture
def start_local(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalWorker]]:
    """Starts workers in this process, quick to sweep; they are stopped at the end of the test.

    takes: whether it takes runs straight from the ledger and goes on with the next, as a worker does, at any
    moment; without, it has none but those that the test answers for.
    """
    monkeypatch.setattr(sys, "path", sys.path.copy())
    workers: list[LocalWorker] = []

    def start(*, takes: bool = False, **overrides: Any) -> LocalWorker:
        values = {"sweep_interval": 0.1, "ring_again_after": 0.5, **overrides}
        with monkeypatch.context() as patch:
            if not takes:
                patch.setattr("threadmill.workers.runtime.Taker", NoTaker)
            worker = LocalWorker(settings.model_copy(update=values), goes_on=takes)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop()
