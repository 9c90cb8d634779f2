"""The rounds: every contestant in each, so that noise of the machine hits all alike.

What they do in a second is measured one after the other; what one run takes, in turns of a few runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import psycopg

from bench.arena import Arena
from bench.bare import Bare
from bench.contestant import Contestant, Figures, Fleet, begun, check_states, per_run, percentiles
from bench.footprint import rows_kept, wal_position
from bench.load import Load, threads_named
from bench.meter import MEGABYTE, Meter
from bench.mill import Mill
from bench.naive import Naive

BARE_LOOP = "bare loop"
BARE = "bare, 8 at once"
NAIVE = Naive.name
MILL = Mill.name

CONTESTANTS: Sequence[Contestant] = (
    Bare(BARE_LOOP, processes=1, at_once=1),
    Bare(BARE, processes=None, at_once=8),
    Naive(),
    Mill(),
)
# Who also tells what a run takes when nothing else goes on. Of one worker; Celery's is a pool of processes.
ALONE: Sequence[Contestant] = (Bare(BARE_LOOP, processes=1, at_once=1), Naive(), Mill(workers=1))

TURN = 20  # runs by themselves of one contestant; then it is the next one's turn
FIRST = 5  # runs by themselves that are not counted: what is made at the first use is made by them


@dataclass(frozen=True)
class Played:
    """What one contestant showed in one round. samples: the seconds of which the percentiles are."""

    figures: Figures
    samples: dict[str, list[float]]


# One entry for each round, in it one for each contestant.
Rounds = list[dict[str, Played]]


def measure(arena: Arena, load: Load, tell: Callable[[str], None]) -> Rounds:
    """The figures of all rounds. tell: is told what goes on. Raises WrongState, Stalled and ChildFailed."""
    rounds: Rounds = []
    for number in range(1, load.rounds + 1):
        figures: dict[str, Played] = {}
        for contestant in CONTESTANTS:
            tell(f"round {number} of {load.rounds}: {contestant.name}")
            figures[contestant.name] = _play(contestant, arena, load)
        tell(f"round {number} of {load.rounds}: one run at a time")
        for name, samples in _alone(arena, load).items():
            figures[name].figures.update(_percentiles(samples))
            figures[name].samples.update(samples)
        rounds.append(figures)
    return rounds


def _play(contestant: Contestant, arena: Arena, load: Load) -> Played:
    """One contestant's figures of one round, after its states were found right."""
    threads = threads_named("thread", load.threads)
    with contestant.running(arena, load) as fleet:
        with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
            kept, written = rows_kept(connection), wal_position(connection)
            with Meter(worker=fleet.workers, postgres=[arena.postgres], redis=[arena.redis]) as meter:
                fleet.serve(threads, load.turns)
            written, kept = wal_position(connection) - written, rows_kept(connection) - kept
        check_states(fleet, threads, load.turns)
        figures = {
            **per_run("", meter.seconds, meter.cpu, load.runs),
            "wal_kb": written / load.runs / 1e3,
            "rows_kept": kept / load.runs,
            "peak_rss_mb": meter.peak_rss / MEGABYTE,
            **fleet.extras(arena, load),
        }
        if meter.pss is not None:
            figures["pss_mb"] = meter.pss / MEGABYTE
    return Played(figures, {})


def _alone(arena: Arena, load: Load) -> dict[str, dict[str, list[float]]]:
    """Of each contestant the seconds of runs by themselves; `pickup` until the first node was entered."""
    with ExitStack() as stack:
        fleets = {one.name: stack.enter_context(one.running(arena, load)) for one in ALONE}
        found: dict[str, dict[str, list[float]]] = {name: {} for name in fleets}
        for fleet in fleets.values():
            fleet.alone(threads_named("first", FIRST))
        for number, start in enumerate(range(0, load.samples, TURN)):
            threads = threads_named(f"alone-{number}", min(TURN, load.samples - start))
            for name in list(fleets)[:: -1 if number % 2 else 1]:
                for what, seconds in _by_themselves(fleets[name], threads).items():
                    found[name].setdefault(what, []).extend(round(each, 6) for each in seconds)
    return found


def _by_themselves(fleet: Fleet, threads: Sequence[str]) -> dict[str, list[float]]:
    alone = fleet.alone(threads)
    if not alone.sent:
        return alone.taken
    pickup = [began - sent for began, sent in zip(begun(fleet, threads), alone.sent, strict=True)]
    return {**alone.taken, "pickup": pickup}


def _percentiles(samples: Mapping[str, Sequence[float]]) -> Figures:
    """Those of all samples, and by how much `enqueue` is above the bare commit."""
    figures: Figures = {}
    for name, seconds in samples.items():
        figures |= percentiles(name, seconds)
    if "commit" in samples:
        for cut in ("p50_ms", "p99_ms"):
            figures[f"beside_commit_{cut}"] = figures[f"enqueue_{cut}"] - figures[f"commit_{cut}"]
    return figures


def medians(rounds: Rounds) -> dict[str, Figures]:
    """The middle of each figure over the rounds."""
    return {
        name: {figure: median(played[name].figures[figure] for played in rounds) for figure in first.figures}
        for name, first in rounds[0].items()
    }


def ratio(rounds: Rounds, figure: str, name: str, base_figure: str, base: str) -> float | None:
    """The middle of the rounds' ratios of two contestants; None where one has no such figure, or 0.

    Of ratios, not the ratio of two medians: what slows a round down slows both of its terms.
    """
    pairs = [(played[name].figures.get(figure), played[base].figures.get(base_figure)) for played in rounds]
    ratios = [value / other for value, other in pairs if value is not None and other]
    return median(ratios) if ratios else None
