"""The rounds: every contestant in each, one after the other, so that noise of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.arena import Arena
from bench.bare import Bare
from bench.contestant import Contestant, Figures, Fleet, begun, check_states, per_run, percentiles
from bench.load import Load, threads_named
from bench.meter import MEGABYTE, Meter
from bench.mill import Mill
from bench.naive import Naive

BARE_LOOP = "bare loop"
BARE = "bare, 8 at once"
NAIVE = Naive.name
MILL = Mill.name

CONTESTANTS: Sequence[Contestant] = (
    Bare(BARE_LOOP, processes=1, at_once=1, alone=True),
    Bare(BARE, processes=None, at_once=8, alone=False),
    Naive(),
    Mill(),
)

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
        rounds.append(figures)
    return rounds


def _play(contestant: Contestant, arena: Arena, load: Load) -> Played:
    """One contestant's figures of one round, after its states were found right."""
    threads = threads_named("thread", load.threads)
    with contestant.running(arena, load) as fleet:
        with Meter(worker=fleet.workers, postgres=[arena.postgres], redis=[arena.redis]) as meter:
            fleet.serve(threads, load.turns)
        check_states(fleet, threads, load.turns)
        samples = _alone(fleet, load)
        figures = {
            **per_run("", meter.seconds, meter.cpu, load.runs),
            **_percentiles(samples),
            "peak_rss_mb": meter.peak_rss / MEGABYTE,
            **fleet.extras(arena, load),
        }
        if meter.pss is not None:
            figures["pss_mb"] = meter.pss / MEGABYTE
    return Played(figures, samples)


def _alone(fleet: Fleet, load: Load) -> dict[str, list[float]]:
    """The seconds of runs by themselves; `pickup` until the first node was entered."""
    fleet.alone(threads_named("first", FIRST))
    threads = threads_named("alone", load.samples)
    alone = fleet.alone(threads)
    if alone.sent:
        alone.taken["pickup"] = [
            began - sent for began, sent in zip(begun(fleet, threads), alone.sent, strict=True)
        ]
    return {name: [round(taken, 6) for taken in seconds] for name, seconds in alone.taken.items()}


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
