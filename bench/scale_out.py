"""Throughput over worker processes, over what one process runs at once, and over shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench.arena import Arena, arena
from bench.contestant import Fleet, check_states
from bench.load import Load, split, threads_named
from bench.meter import Meter
from bench.mill import Mill, fleet_of
from bench.naive import Naive
from bench.row import Row, at_least, compared

SECTION = "scale-out"
SHARDS = 2
# Of what one process does in a core-second, in per cent.
KEPT = 90
# What is compared for a few per cent is measured so many times in each round, one after the other.
TIMES = 4


@dataclass(frozen=True)
class Point:
    """at_once: runs at once in one process; None: its default. per_core: runs for a second of one core, those
    of Postgres and Redis included. kept: per_core as a part of what the fewest processes had just before,
    where that was measured. cores: how many there are. All figures are medians."""

    name: str
    processes: int
    at_once: int | None
    runs_per_second: float
    per_core: float
    kept: float | None = None
    shards: int = 1
    cores: int = 1


def measure(ground: Arena, load: Load, tell: Callable[[str], None]) -> list[Point]:
    """Raises WrongState, Stalled and ChildFailed."""
    points: dict[tuple[str, int, int | None, int], list[tuple[float, float]]] = {}
    for number in range(1, load.rounds + 1):
        for _ in range(TIMES):
            for processes in load.processes:
                for contestant in (Naive(processes), Mill(processes)):
                    tell(f"scale-out, round {number}: {contestant.name}, {processes} processes")
                    with contestant.running(ground, load) as fleet:
                        found = _served(ground, fleet, load)
                    points.setdefault((contestant.name, processes, None, 1), []).append(found)
        tell(f"scale-out, round {number}: {SHARDS} shards")
        points.setdefault((Mill.name, SHARDS, None, SHARDS), []).append(_served_by_shards(load))
        for at_once in load.at_once:
            tell(f"scale-out, round {number}: {at_once} runs at once in one process")
            with fleet_of(ground, 1, concurrency=at_once) as (fleet, _):
                fleet.serve(threads_named("warm", load.threads), 1)
                found = _served(ground, fleet, load)
            points.setdefault((Mill.name, 1, at_once, 1), []).append(found)
    made = []
    for (name, processes, most, shards), rounds in points.items():
        per_second, per_core = (median(figures) for figures in zip(*rounds, strict=True))
        fewest = points[name, min(load.processes), None, 1]
        kept = None
        if len(rounds) == len(fewest):
            kept = median(here / there for (_, here), (_, there) in zip(rounds, fewest, strict=True))
        made.append(Point(name, processes, most, per_second, per_core, kept, shards, ground.cores))
    return made


def _served(ground: Arena, fleet: Fleet, load: Load) -> tuple[float, float]:
    return _measured([(ground, fleet)], [threads_named("thread", load.threads)], load)


def _served_by_shards(load: Load) -> tuple[float, float]:
    """One worker to a shard, each with a Postgres and a Redis of its own, and its share of the threads."""
    with ExitStack() as stack:
        grounds = [stack.enter_context(arena()) for _ in range(SHARDS)]
        fleets = [stack.enter_context(fleet_of(ground, 1))[0] for ground in grounds]
        for fleet in fleets:
            fleet.serve(threads_named("warm", load.threads), 1)
        parts = split(threads_named("thread", load.threads), SHARDS)
        return _measured(list(zip(grounds, fleets, strict=True)), parts, load)


def _measured(
    fleets: Sequence[tuple[Arena, Fleet]], parts: Sequence[Sequence[str]], load: Load
) -> tuple[float, float]:
    """Runs a second, and a core-second, of fleets that serve at the same time, each some of the threads."""
    with (
        ThreadPoolExecutor(len(fleets)) as pool,
        Meter(
            worker=[worker for _, fleet in fleets for worker in fleet.workers],
            postgres=[ground.postgres for ground, _ in fleets],
            redis=[ground.redis for ground, _ in fleets],
        ) as meter,
    ):
        for served in [
            pool.submit(fleet.serve, threads, load.turns)
            for (_, fleet), threads in zip(fleets, parts, strict=True)
        ]:
            served.result()
    for (_, fleet), threads in zip(fleets, parts, strict=True):
        check_states(fleet, threads, load.turns)
    return load.runs / meter.seconds, load.runs / sum(meter.cpu.values())


def over_processes(points: Sequence[Point], name: str) -> dict[int, Point]:
    """A contestant's points on one ledger by the number of its processes."""
    return {
        point.processes: point
        for point in points
        if point.name == name and point.at_once is None and point.shards == 1
    }


def rows(points: Sequence[Point]) -> list[Row]:
    mill, naive = (over_processes(points, name) for name in (Mill.name, Naive.name))
    fewest = min(mill)
    made = [
        compared(
            SECTION, f"{count} worker process{'' if count == 1 else 'es'}", point.runs_per_second, "runs/s",
            f"{Naive.name}, as many", naive[count].runs_per_second,
        )
        for count, point in mill.items()
    ]  # fmt: skip
    for count in list(mill)[1:]:
        kept, kept_naive = ((them[count].kept or 0) * 100 for them in (mill, naive))
        made.append(
            compared(
                SECTION, f"runs a core-second: {count} processes against {fewest}", kept, "%", Naive.name,
                kept_naive, at_least(KEPT) if count <= mill[count].cores else None,
            )
        )  # fmt: skip
    for point in points:
        if point.shards > 1:
            one = mill[point.processes]
            against = f"one shard, {point.processes} workers"
            made.append(
                compared(
                    SECTION, f"{point.shards} shards, a worker each", point.runs_per_second, "runs/s",
                    against, one.runs_per_second,
                )
            )  # fmt: skip
            kept = point.per_core / one.per_core * 100
            made.append(
                compared(
                    SECTION, f"runs a core-second: {point.shards} shards", kept, "%", against, 100,
                    at_least(KEPT) if point.processes <= point.cores else None,
                )
            )  # fmt: skip
    made += [
        compared(
            SECTION, f"one process, concurrency {point.at_once}", point.runs_per_second, "runs/s",
            "the default concurrency", mill[fewest].runs_per_second,
        )
        for point in points
        if point.at_once is not None
    ]  # fmt: skip
    return made
