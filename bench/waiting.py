"""A thousand runs that wait at once in one worker process, and ten thousand in two."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from bench.arena import Arena
from bench.contestant import Stalled
from bench.load import Load
from bench.meter import MEGABYTE, Meter, resident_set
from bench.mill import TENANT, MillFleet, fleet_of
from bench.row import Row, at_most

SECTION = "runs that wait"
STALE = 6  # seconds, the default of heartbeat_timeout
LOOK_EVERY = 0.2
# The workers', and the one of the producer.
_CONNECTIONS = (
    "select count(*) from pg_stat_activity"
    " where datname = current_database() and application_name = 'threadmill'"
)
_OLDEST_BEAT = "select extract(epoch from max(clock_timestamp() - heartbeat_at))::float from workers"
_AT_ONCE = "select count(*) from runs where status = 'running'"
_STATUSES = "select status, count(*) from runs group by 1"


@dataclass(frozen=True)
class Waiting:
    """What came of so many runs of so many seconds each, all at once.

    took: from the call of `enqueue_many` to the end of the last run. failed: not ended with success.
    at_once: the most that were running. idle_mb, peak_mb: resident, of a process, before there was any run
    and at the most. connections: the most of all processes. late: the oldest heartbeat that was seen, in
    seconds.
    """

    runs: int
    processes: int
    seconds: float
    at_once: int
    took: float
    cpu_ms: float
    idle_mb: float
    peak_mb: float
    connections: int
    late: float
    failed: int


def measure(arena: Arena, load: Load, tell: Callable[[str], None]) -> list[Waiting]:
    """Raises Stalled."""
    found = []
    for runs, processes, seconds in load.waiting:
        tell(f"{runs:,} runs that wait")
        found.append(_measure(arena, runs, processes, seconds))
    return found


def _measure(arena: Arena, runs: int, processes: int, seconds: float) -> Waiting:
    with fleet_of(arena, processes, concurrency=runs // processes) as (fleet, _):
        ends = seconds + 300
        idle = resident_set(fleet.workers)
        with _watching(fleet) as seen, Meter(worker=fleet.workers) as meter:
            requests = [
                {
                    "graph": "waiting",
                    "input": {"seconds": seconds},
                    "tenant": TENANT,
                    "thread_id": f"waits-{number}",
                }
                for number in range(runs)
            ]
            began = time.perf_counter()
            for start in range(0, runs, 1_000):
                fleet.producer.enqueue_many(requests[start : start + 1_000])
            with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
                while {"pending", "running"} & set(statuses := _statuses(connection)):
                    if time.perf_counter() - began > ends:
                        raise Stalled(f"after {ends:g} s: {statuses}")
                    time.sleep(0.05)
            took = time.perf_counter() - began
        return Waiting(
            runs=runs,
            processes=processes,
            seconds=seconds,
            at_once=seen.at_once,
            took=took,
            cpu_ms=sum(meter.cpu.values()) / runs * 1e3,
            idle_mb=idle / MEGABYTE / processes,
            peak_mb=meter.peak_rss / MEGABYTE / processes,
            connections=seen.connections,
            late=seen.late,
            failed=runs - statuses.get("success", 0),
        )


@dataclass
class _Seen:
    at_once: int = 0
    connections: int = 0
    late: float = 0


@contextmanager
def _watching(fleet: MillFleet) -> Iterator[_Seen]:
    """Looks at the connections and the heartbeats until it is left."""
    seen, over = _Seen(), threading.Event()

    def look() -> None:
        with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
            while not over.wait(LOOK_EVERY):
                seen.connections = max(seen.connections, _one(connection, _CONNECTIONS) - 1)
                seen.at_once = max(seen.at_once, _one(connection, _AT_ONCE))
                seen.late = max(seen.late, _one(connection, _OLDEST_BEAT) or 0)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _statuses(connection: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(connection.execute(_STATUSES).fetchall())


def _one(connection: psycopg.Connection[Any], query: LiteralString) -> Any:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]


def rows(found: Sequence[Waiting]) -> list[Row]:
    """The aims are those of the project for 1,000 runs of 10 s in one process."""
    made = []
    for one in found:
        aimed = (one.runs, one.processes, one.seconds) == (1_000, 1, 10)
        each_kb = (one.peak_mb - one.idle_mb) * one.processes / one.runs * 1e3
        figures = (
            ("all done after", one.took, "s", at_most(13) if aimed else None),
            ("failed", one.failed, "", at_most(0)),
            ("running at once, at the most", one.at_once, "", None),
            ("CPU a run, workers", one.cpu_ms, "ms", None),
            ("peak of resident memory, a process", one.peak_mb, "MB", at_most(300) if aimed else None),
            ("  a run, above the idle process", each_kb, "kB", None),
            ("Postgres connections, in all", one.connections, "", at_most(12) if aimed else None),
            ("oldest heartbeat", one.late, "s", at_most(STALE)),
        )
        label = f"{one.runs:,} of {one.seconds:g} s in {one.processes}: "
        for name, value, unit, aim in figures:
            made.append(Row(SECTION, label + name, value, unit, aim=aim))
            label = "  "
    return made
