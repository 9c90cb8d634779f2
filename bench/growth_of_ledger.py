"""The hot transactions on a ledger that has grown, and beside a transaction that is held open.

Two ledgers are measured in turns, on one Postgres, each with a worker process of its own: one stays small,
the other grows. What disturbs the machine meets both, and their ratio is what counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import psycopg
from redis import Redis

from bench.arena import LEDGER, Arena
from bench.contestant import PATIENCE, finish_counter
from bench.costs import costs
from bench.filling import LIVE, LIVE_TENANTS, SHAPE, TURNS, Copies, fill
from bench.load import GRAPH, Load, input_of
from bench.meter import cpu_seconds
from bench.mill import MillFleet, fleet_on
from bench.row import Row, compared, ratio_at_most
from threadmill.core.notice import channel
from threadmill.core.settings import Settings

SECTION = "a ledger that grows"
BASE = "a small ledger"
# Of a round: so many runs one at a time, and so many at once.
SINGLES, AT_ONCE = 40, 150
# What is told of a run by itself, and under load, in ms.
ALONE = ("enqueue", "claim", "checkpoint", "finish", "enqueue to finish")
CPU = "Postgres CPU a run"
LOADED = ("take", "checkpoint", "finish", CPU)
# What is to be as fast on the ledger that has grown, and from which size and time on that is aimed at.
FLAT = ("claim", "checkpoint", "finish")
AIM = ratio_at_most(1.2)
AIMED_RUNS, AIMED_SECONDS = 1_000_000, 600


class Stage(StrEnum):
    """Of the ledger that grows; at the first one there is nothing that could be a difference."""

    SMALL = "as small as the other"
    GROWN = "grown"
    HELD_AT_FIRST = "transaction held open, at first"
    HELD = "transaction held open, at the end"
    VACUUMED = "let go and vacuumed"


@dataclass(frozen=True)
class Compared:
    """The median and the 99th percentile in ms on the ledger that grows, and on the one that stays small.

    under_load: with many runs at once. p99s of few samples mean little.
    """

    stage: Stage
    name: str
    under_load: bool
    p50: float
    p99: float
    small_p50: float
    small_p99: float


@dataclass(frozen=True)
class ComparedCost:
    """What a statement costs inside Postgres, on both; see bench.costs."""

    stage: Stage
    name: str
    ms: float
    pages: float
    small_ms: float
    small_pages: float


@dataclass(frozen=True)
class GrowthOfLedger:
    """runs, checkpoints: rows of finished runs, and of the three tables of checkpoints, when it had grown.
    held, ended: for how many seconds a transaction was held open, and how many runs ended meanwhile."""

    runs: int
    checkpoints: int
    held: float
    ended: int
    compared: Sequence[Compared]
    costs: Sequence[ComparedCost]


@dataclass
class _Ledger:
    """One of the two."""

    fleet: MillFleet
    settings: Settings
    connection: psycopg.Connection[Any]
    times: Path
    redis: Redis
    postgres: psutil.Process
    number: int = 0  # of the runs that were enqueued, so that their threads have names of their own
    alone: dict[str, list[float]] = field(default_factory=dict)
    loaded: dict[str, list[float]] = field(default_factory=dict)

    def forget(self) -> None:
        self.alone, self.loaded = {}, {}

    def serve_alone(self, runs: int) -> None:
        """One run after the other, each the next turn of a thread that has some."""
        with self._timing(self.alone) as add:
            for _ in range(runs):
                copy = self.number % LIVE
                tenant, begun = f"t{copy % LIVE_TENANTS}", time.perf_counter()
                run = self._enqueue([(tenant, f"thread-{copy:07}")])[0]
                enqueued = time.perf_counter()
                self.fleet.producer.wait(run.id, tenant=tenant, timeout=PATIENCE)
                add("enqueue", enqueued - begun)
                add("enqueue to finish", time.perf_counter() - begun)

    def serve_at_once(self, runs: int) -> None:
        """So many at once, each on a thread of its own."""
        with self._timing(self.loaded) as add:
            cpu = cpu_seconds([self.postgres])
            with finish_counter(self.redis, channel("*")) as wait:
                self._enqueue(
                    [(f"t{number % LIVE_TENANTS}", f"new-{self.number}-{number}") for number in range(runs)]
                )
                wait(runs)
            add(CPU, (cpu_seconds([self.postgres]) - cpu) / runs)

    def _enqueue(self, threads: Sequence[tuple[str, str]]) -> Sequence[Any]:
        self.number += 1
        return self.fleet.producer.enqueue_many(
            {"graph": GRAPH, "tenant": tenant, "thread_id": thread, "input": input_of(thread, self.number)}
            for tenant, thread in threads
        )

    @contextmanager
    def _timing(self, times: dict[str, list[float]]) -> Iterator[Callable[[str, float], None]]:
        """A function that adds a time by its name; the worker's own are added at the end."""

        def add(name: str, seconds: float) -> None:
            times.setdefault(name, []).append(seconds)

        place = self.times.stat().st_size
        yield add
        with self.times.open() as lines:
            lines.seek(place)
            for line in lines:
                name, seconds = line.split()
                add(name, float(seconds))


class _Pair:
    """Both, and what was found."""

    def __init__(self, small: _Ledger, grown: _Ledger, rounds: int, tell: Callable[[str], None]) -> None:
        self.small, self.grown, self._rounds, self._tell = small, grown, rounds, tell
        self.found: list[Compared] = []
        self.costs: list[ComparedCost] = []

    def compare(self, stage: Stage) -> None:
        self._tell(f"{SECTION}: {stage}")
        ledgers = (self.small, self.grown)
        for ledger in ledgers:  # its connections plan anew, and what it reads is read once
            ledger.serve_alone(SINGLES // 2)
            ledger.serve_at_once(AT_ONCE // 2)
            ledger.forget()
        for number in range(self._rounds):
            for ledger in ledgers[:: -1 if number % 2 else 1]:
                ledger.serve_alone(SINGLES)
                ledger.serve_at_once(AT_ONCE)
        self.found += self._compared(stage, ALONE, under_load=False)
        self.found += self._compared(stage, LOADED, under_load=True)
        grown, small = (costs(ledger.settings, "t0") for ledger in (self.grown, self.small))
        self.costs += [
            ComparedCost(stage, one.name, one.ms, one.pages, other.ms, other.pages)
            for one, other in zip(grown, small, strict=True)
        ]

    def _compared(self, stage: Stage, names: Sequence[str], *, under_load: bool) -> Iterator[Compared]:
        small, grown = (ledger.loaded if under_load else ledger.alone for ledger in (self.small, self.grown))
        for name in names:
            if name in small and name in grown:
                figures = (*_middle_and_tail(grown[name]), *_middle_and_tail(small[name]))
                yield Compared(stage, name, under_load, *figures)


def _middle_and_tail(seconds: Sequence[float]) -> tuple[float, float]:
    tail = quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else seconds[0]
    return median(seconds) * 1e3, tail * 1e3


def measure(arena: Arena, load: Load, tell: Callable[[str], None]) -> GrowthOfLedger:
    """It grows to so many finished runs, with five rows of checkpoints for each, and then runs are served
    for as long as a transaction is held open."""
    with ExitStack() as stack:
        urls = [stack.enter_context(arena.fresh_database(LEDGER, name)) for name in ("small", "grown")]
        small, grown = (
            stack.enter_context(_ledger(arena, url, name))
            for url, name in zip(urls, ("small", "grown"), strict=True)
        )
        # An even number, so that each is the first as often as the other.
        pair = _Pair(small, grown, 2 * load.rounds, tell)
        pair.compare(Stage.SMALL)
        tell(f"{SECTION}: filling in {load.finished:,} runs")
        copies = Copies(LIVE, LIVE + load.finished // TURNS, LIVE + load.finished // TURNS)
        fill(grown.connection, copies, 5 * load.finished)
        rows = [
            _count(grown.connection, table)
            for table in ("runs", "checkpoints", "checkpoint_blobs", "checkpoint_writes")
        ]
        pair.compare(Stage.GROWN)
        with _held_open(urls[1]):
            pair.compare(Stage.HELD_AT_FIRST)
            ended = _serve(grown, load.held)
            pair.compare(Stage.HELD)
        grown.connection.execute("vacuum")
        pair.compare(Stage.VACUUMED)
        return GrowthOfLedger(rows[0], sum(rows[1:]), load.held, ended, pair.found, pair.costs)


def _serve(ledger: _Ledger, seconds: float) -> int:
    """How many runs ended in this time."""
    before, ends = ledger.number, time.monotonic() + seconds
    while time.monotonic() < ends:
        ledger.serve_at_once(AT_ONCE)
    return (ledger.number - before) * AT_ONCE


@contextmanager
def _ledger(arena: Arena, url: str, name: str) -> Iterator[_Ledger]:
    """A worker on it, and the threads on which is measured."""
    times = arena.folder / f"{name}.times"
    times.touch()
    argv = (sys.executable, "-m", "bench.timed_worker", str(times))
    with (
        fleet_on(arena, url, 1, argv=argv, queue=name) as (fleet, settings),
        psycopg.connect(url, autocommit=True) as connection,
    ):
        for turn in range(TURNS):
            run = fleet.producer.enqueue(GRAPH, input_of(SHAPE, turn), tenant=SHAPE, thread_id=SHAPE)
            fleet.producer.wait(run.id, tenant=SHAPE, timeout=PATIENCE)
        fill(connection, Copies(0, LIVE, LIVE))
        yield _Ledger(fleet, settings, connection, times, arena.connect_redis(), arena.postgres)


@contextmanager
def _held_open(url: str) -> Iterator[None]:
    """A transaction with a snapshot, from which nothing comes any more."""
    with psycopg.connect(url) as connection:
        connection.execute("set transaction isolation level repeatable read")
        connection.execute("select 1")
        yield


def _count(connection: psycopg.Connection[Any], table: str) -> int:
    row: Any = connection.execute(f"select count(*) from threadmill.{table}".encode()).fetchone()
    return int(row[0])


def rows(found: GrowthOfLedger) -> list[Row]:
    """The medians of runs one at a time at each stage; under load, and inside Postgres, when the transaction
    has been held open for longest."""
    aimed = found.runs >= AIMED_RUNS and found.held >= AIMED_SECONDS
    made = [
        Row(SECTION, "finished runs in it", found.runs),
        Row(SECTION, "rows of their checkpoints", found.checkpoints),
        Row(
            SECTION,
            f"runs that ended in {found.held:g} s, a transaction being held open",
            found.ended,
        ),
    ]
    for stage in Stage:
        label = f"{stage}: "
        for one in found.compared:
            if one.stage != stage or (one.under_load and stage is not Stage.HELD):
                continue
            name = f"{AT_ONCE} at once: {one.name}" if one.under_load else one.name
            flat = aimed and stage is not Stage.SMALL and one.name in FLAT and not one.under_load
            aim = AIM if flat else None
            made.append(compared(SECTION, label + name, one.p50, "ms", BASE, one.small_p50, aim))
            label = "  "
        for cost in found.costs:
            if cost.stage == stage and stage is Stage.HELD:
                name = f"  inside Postgres: {cost.name}"
                made.append(compared(SECTION, name, cost.ms, "ms", BASE, cost.small_ms))
    return made
