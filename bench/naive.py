"""A naive Celery task: prefork, one process per core, the stock PostgresSaver, Redis for results."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from bench.arena import STOCK, Arena
from bench.child import child, stop
from bench.contestant import PATIENCE, Alone, Figures, finish_counter, rate
from bench.load import Load, input_of, threads_named
from bench.naive_worker import turn_task


class Naive:
    """See contestant.Contestant. processes: of the pool; None for one per core."""

    name = "naive Celery"

    def __init__(self, processes: int | None = None) -> None:
        self._processes = processes

    @contextmanager
    def running(self, arena: Arena, load: Load) -> Iterator[NaiveFleet]:
        log = arena.folder / "naive.log"
        with arena.fresh_database(STOCK, "naive") as url:
            urls = (arena.broker_url, arena.results_url, url)
            turn = turn_task(*urls)
            argv = [sys.executable, "-m", "bench.naive_worker", *urls, str(self._processes or arena.cores)]
            with child(argv, log) as worker:
                fleet = NaiveFleet(arena, turn, worker, url)
                fleet.serve(threads_named("warm", load.threads), 1)
                yield fleet
            turn.app.close()


class NaiveFleet:
    """See contestant.Fleet."""

    def __init__(self, arena: Arena, turn: Any, worker: subprocess.Popen[str], url: str) -> None:
        self.workers = [psutil.Process(worker.pid)]
        self.saver_url = url
        self._arena, self._turn, self._worker = arena, turn, worker

    def key(self, thread_id: str) -> str:
        return thread_id

    def serve(self, threads: Sequence[str], turns: int) -> None:
        with finish_counter(self._arena.connect_redis(), "celery-task-meta-*") as wait:
            for turn in range(turns):
                for thread_id in threads:
                    self._turn.delay(thread_id, input_of(thread_id, turn))
                wait(len(threads))

    def alone(self, threads: Sequence[str]) -> Alone:
        alone = Alone(taken={"latency": [], "enqueue": []})
        for thread_id in threads:
            alone.sent.append(time.time())
            started = time.perf_counter()
            result = self._turn.delay(thread_id, input_of(thread_id, 0))
            alone.taken["enqueue"].append(time.perf_counter() - started)
            result.get(timeout=PATIENCE)
            alone.taken["latency"].append(time.perf_counter() - started)
        return alone

    def extras(self, arena: Arena, load: Load) -> Figures:  # noqa: ARG002 - of the protocol
        """The rate of `delay`, with no worker that takes a core away meanwhile."""
        stop(self._worker)

        def enqueue() -> None:
            for thread_id in threads_named("delayed", load.singles):
                self._turn.delay(thread_id, input_of(thread_id, 0))

        return {"enqueue_per_second": rate(load.singles, enqueue)}
