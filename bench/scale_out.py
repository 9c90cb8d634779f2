"""Throughput over worker processes, and over what one process runs at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.arena import Arena
from bench.contestant import Fleet, check_states
from bench.load import Load, threads_named
from bench.meter import Meter
from bench.mill import Mill, fleet_of
from bench.naive import Naive
from bench.row import Row, compared

SECTION = "scale-out"


@dataclass(frozen=True)
class Point:
    """at_once: runs at once in one process; None: its default. per_core: runs for a second of one core, those
    of Postgres and Redis included. All are medians of the rounds."""

    name: str
    processes: int
    at_once: int | None
    runs_per_second: float
    per_core: float


def measure(arena: Arena, load: Load, tell: Callable[[str], None]) -> list[Point]:
    """Raises WrongState, Stalled and ChildFailed."""
    points: dict[tuple[str, int, int | None], list[tuple[float, float]]] = {}
    for number in range(1, load.rounds + 1):
        for processes in load.processes:
            for contestant in (Naive(processes), Mill(processes)):
                tell(f"scale-out, round {number}: {contestant.name}, {processes} processes")
                with contestant.running(arena, load) as fleet:
                    found = _served(arena, fleet, load)
                points.setdefault((contestant.name, processes, None), []).append(found)
        for at_once in load.at_once:
            tell(f"scale-out, round {number}: {at_once} runs at once in one process")
            with fleet_of(arena, 1, concurrency=at_once) as (fleet, _):
                fleet.serve(threads_named("warm", load.threads), 1)
                found = _served(arena, fleet, load)
            points.setdefault((Mill.name, 1, at_once), []).append(found)
    return [
        Point(*key, *(median(figures) for figures in zip(*found, strict=True)))
        for key, found in points.items()
    ]


def _served(arena: Arena, fleet: Fleet, load: Load) -> tuple[float, float]:
    threads = threads_named("thread", load.threads)
    with Meter(worker=fleet.workers, postgres=[arena.postgres], redis=[arena.redis]) as meter:
        fleet.serve(threads, load.turns)
    check_states(fleet, threads, load.turns)
    return load.runs / meter.seconds, load.runs / sum(meter.cpu.values())


def over_processes(points: Sequence[Point], name: str) -> dict[int, Point]:
    """A contestant's points by the number of its processes."""
    return {point.processes: point for point in points if point.name == name and point.at_once is None}


def rows(points: Sequence[Point]) -> list[Row]:
    mill, naive = (over_processes(points, name) for name in (Mill.name, Naive.name))
    fewest, most = min(mill), max(mill)
    made = [
        compared(
            SECTION, f"{count} worker process{'' if count == 1 else 'es'}", point.runs_per_second, "runs/s",
            f"{Naive.name}, as many", naive[count].runs_per_second,
        )
        for count, point in mill.items()
    ]  # fmt: skip
    kept, kept_naive = (them[most].per_core / them[fewest].per_core * 100 for them in (mill, naive))
    made.append(
        compared(
            SECTION,
            f"runs a core-second: {most} processes against {fewest}",
            kept,
            "%",
            Naive.name,
            kept_naive,
        )
    )
    made += [
        compared(
            SECTION, f"one process, concurrency {point.at_once}", point.runs_per_second, "runs/s",
            "the default concurrency", mill[fewest].runs_per_second,
        )
        for point in points
        if point.at_once is not None
    ]  # fmt: skip
    return made
