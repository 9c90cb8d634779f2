"""Threadmill: one worker process per core, with the ledger, row-level security, fences and logs on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from bench.arena import LEDGER, Arena
from bench.child import child, stop, wait_for_line
from bench.contestant import (
    PATIENCE,
    Alone,
    Figures,
    WrongState,
    check_states,
    finish_counter,
    per_run,
    rate,
)
from bench.load import BATCH, GRAPH, Load, input_of, threads_named
from bench.meter import Meter
from threadmill.core.keys import thread_key
from threadmill.core.models import SCHEMA
from threadmill.core.notice import channel
from threadmill.core.settings import Settings
from threadmill.producers import Producer

TENANT = "bench"
READY = "worker.ready"
# What a bare insert and its commit take: a row of about the size of a run's, and nothing around it.
_BARE_TABLE = """
    create table if not exists public.bare (
        id uuid primary key default gen_random_uuid(), tenant text, thread_id text, graph text, input jsonb,
        created_at timestamptz not null default now()
    )
"""
_BARE_INSERT = "insert into public.bare (tenant, thread_id, graph, input) values (%s, %s, %s, %s)"
# The moment before the commit's record goes to the disk: `finished_at` is when its transaction began.
_COMMITTED = """
    select id::text, extract(epoch from pg_xact_commit_timestamp(xmin))::float8
        from runs where id = any(%s::uuid[])
"""
WORKER = (sys.executable, "-m", "bench.mill_worker")


# Starts so many worker processes and returns them when they are ready.
Start = Callable[[int], list[subprocess.Popen[str]]]


class Mill:
    """See contestant.Contestant. workers: how many processes; None for one per core."""

    name = "Threadmill"

    def __init__(self, workers: int | None = None, argv: Sequence[str] = WORKER) -> None:
        self._workers, self._argv = workers, argv

    @contextmanager
    def running(self, arena: Arena, load: Load) -> Iterator[MillFleet]:
        with fleet_of(arena, self._workers or arena.cores, argv=self._argv) as (fleet, _):
            fleet.serve(threads_named("warm", load.threads), 1)
            yield fleet


class MillFleet:
    """See contestant.Fleet."""

    def __init__(self, arena: Arena, producer: Producer, url: str, start: Start) -> None:
        self.saver_url = make_conninfo(url, options=f"-c search_path={SCHEMA},public")
        self.producer = producer
        self._arena, self._start = arena, start
        self._workers: list[subprocess.Popen[str]] = []

    @property
    def workers(self) -> Sequence[psutil.Process]:
        return [psutil.Process(worker.pid) for worker in self._workers]

    def add(self, count: int) -> None:
        """Starts so many workers. Returns when they are ready."""
        self._workers += self._start(count)

    def lose_one(self) -> int:
        """Kills the worker that was started first, on the spot, and returns its pid."""
        lost = self._workers.pop(0)
        lost.kill()
        lost.wait()
        return lost.pid

    def key(self, thread_id: str) -> str:
        return thread_key(TENANT, thread_id)

    def serve(self, threads: Sequence[str], turns: int) -> None:
        with finish_counter(self._arena.connect_redis(), channel("*")) as wait:
            for turn in range(turns):
                self.producer.enqueue_many(_request(thread_id, turn) for thread_id in threads)
                wait(len(threads))
        self._check_runs()

    def serve_at_once(self, threads: Sequence[str], turns: int) -> None:
        """All turns of all threads, enqueued in one call: Threadmill keeps their order by itself."""
        with finish_counter(self._arena.connect_redis(), channel("*")) as wait:
            self.producer.enqueue_many(
                _request(thread_id, turn) for turn in range(turns) for thread_id in threads
            )
            wait(len(threads) * turns)
        self._check_runs()

    def alone(self, threads: Sequence[str]) -> Alone:
        """Also `commit`, that of a bare row, before each; and `wait`, from the commit that ended the run
        until `Producer.wait` had returned, by the one clock of this machine; and afterwards `event`, of as
        many runs that are followed, until the first thing that one's graph tells: what its first node did."""
        alone = Alone(taken={"latency": [], "enqueue": [], "commit": []})
        returned: dict[str, float] = {}
        with psycopg.connect(self.saver_url, autocommit=True) as connection:
            connection.execute(_BARE_TABLE)
            for thread_id in threads:
                row = [TENANT, thread_id, GRAPH, Jsonb(input_of(thread_id, 0))]
                started = time.perf_counter()
                connection.execute(_BARE_INSERT, row)
                alone.taken["commit"].append(time.perf_counter() - started)
                alone.sent.append(time.time())
                started = time.perf_counter()
                run = self.producer.enqueue(**_request(thread_id, 0))
                alone.taken["enqueue"].append(time.perf_counter() - started)
                self.producer.wait(run.id, tenant=TENANT, timeout=PATIENCE)
                returned[str(run.id)] = time.time()
                alone.taken["latency"].append(time.perf_counter() - started)
            committed = connection.execute(_COMMITTED, [list(returned)]).fetchall()
        alone.taken["wait"] = [returned[run_id] - at for run_id, at in committed]
        alone.taken["event"] = [self._first_event(f"{thread_id}-followed") for thread_id in threads]
        return alone

    def _first_event(self, thread_id: str) -> float:
        """The seconds from the call of `enqueue` to a run's first event. Returns when the run has ended."""
        started = time.perf_counter()
        run = self.producer.enqueue(**_request(thread_id, 0), stream_mode="updates")
        events = self.producer.stream(run.id, tenant=TENANT)
        next(events)
        taken = time.perf_counter() - started
        for _ in events:
            pass
        return taken

    def extras(self, arena: Arena, load: Load) -> Figures:
        threads = threads_named("at-once", load.threads)
        with Meter(worker=self.workers, postgres=[arena.postgres], redis=[arena.redis]) as meter:
            self.serve_at_once(threads, load.turns)
        check_states(self, threads, load.turns)
        for worker in self._workers:
            stop(worker)
        return {**per_run("at_once_", meter.seconds, meter.cpu, load.runs), **self._enqueue_rates(load)}

    def _enqueue_rates(self, load: Load) -> Figures:
        """With no worker that takes a core away meanwhile, as it is for `delay`."""

        def singles() -> None:
            for thread_id in threads_named("single", load.singles):
                self.producer.enqueue(**_request(thread_id, 0))

        def batches(name: str, turns: int) -> None:
            for batch in range(load.batches):
                threads = threads_named(f"{name}-{batch}", BATCH // turns)
                self.producer.enqueue_many(_request(t, turn) for turn in range(turns) for t in threads)

        runs = load.batches * BATCH
        return {
            "enqueue_per_second": rate(load.singles, singles),
            "enqueue_many_per_second": rate(runs, lambda: batches("deep", 5)),
            "enqueue_many_wide_per_second": rate(runs, lambda: batches("wide", 1)),
        }

    def _check_runs(self) -> None:
        with psycopg.connect(self.saver_url) as connection:
            found = connection.execute("select id, status from runs where status <> 'success'").fetchall()
        if found:
            raise WrongState(f"not every run is a success: {found[:5]}")


@contextmanager
def fleet_of(
    arena: Arena, workers: int, *, argv: Sequence[str] = WORKER, **values: Any
) -> Iterator[tuple[MillFleet, Settings]]:
    """So many worker processes with these settings, on an empty ledger; and the settings."""
    with arena.fresh_database(LEDGER) as url, fleet_on(arena, url, workers, argv=argv, **values) as found:
        yield found


@contextmanager
def fleet_on(
    arena: Arena, url: str, workers: int, *, argv: Sequence[str] = WORKER, **values: Any
) -> Iterator[tuple[MillFleet, Settings]]:
    """`fleet_of` on the ledger that has this URL. Several fleets at a time have each a queue of its own."""
    settings = arena.settings(url).model_copy(update=values)
    log = arena.folder / f"{settings.queue}.log"
    log.write_text("")
    with ExitStack() as stack, Producer(settings) as producer:
        env = environment(settings)

        def start(count: int) -> list[subprocess.Popen[str]]:
            ready = log.read_text().count(READY) + count
            started = [stack.enter_context(child(argv, log, env)) for _ in range(count)]
            for worker in started:
                wait_for_line(worker, log, READY, ready)
            return started

        fleet = MillFleet(arena, producer, url, start)
        fleet.add(workers)
        yield fleet, settings


def _request(thread_id: str, turn: int) -> dict[str, Any]:
    return {
        "graph": GRAPH,
        "input": input_of(thread_id, turn),
        "tenant": TENANT,
        "thread_id": thread_id,
    }


def environment(settings: Settings) -> Mapping[str, str]:
    """What a child process is to be told of the settings."""
    values = settings.model_dump(mode="json", exclude_unset=True)
    return {f"THREADMILL_{name.upper()}": str(value) for name, value in values.items()}
