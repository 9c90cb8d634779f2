"""The rounds: every contestant in each, one after the other, so that noise of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from bench.arena import Arena
from bench.bare import Bare
from bench.contestant import Contestant, Figures, check_states, per_run, percentiles
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

# Figures by contestant, one entry for each round.
Rounds = list[dict[str, Figures]]


def play(arena: Arena, load: Load, tell: Callable[[str], None]) -> Rounds:
    """The figures of all rounds. tell: is told what goes on. Raises WrongState, Stalled and ChildFailed."""
    rounds: Rounds = []
    for number in range(1, load.rounds + 1):
        figures: dict[str, Figures] = {}
        for contestant in CONTESTANTS:
            tell(f"round {number} of {load.rounds}: {contestant.name}")
            figures[contestant.name] = measure(contestant, arena, load)
        rounds.append(figures)
    return rounds


def measure(contestant: Contestant, arena: Arena, load: Load) -> Figures:
    """One contestant's figures of one round, after its states were found right."""
    threads = threads_named("thread", load.threads)
    with contestant.running(arena, load) as fleet:
        with Meter(worker=fleet.workers, postgres=[arena.postgres], redis=[arena.redis]) as meter:
            fleet.serve(threads, load.turns)
        check_states(fleet, threads, load.turns)
        latencies = fleet.latencies(threads_named("alone", load.samples))
        figures = {
            **per_run("", meter.seconds, meter.cpu, load.runs),
            **percentiles("latency", latencies),
            "peak_rss_mb": meter.peak_rss / MEGABYTE,
            **fleet.extras(arena, load),
        }
        if meter.pss is not None:
            figures["pss_mb"] = meter.pss / MEGABYTE
    return figures


def medians(rounds: Rounds) -> dict[str, Figures]:
    """The middle of each figure over the rounds."""
    return {
        name: {figure: median(played[name][figure] for played in rounds) for figure in figures}
        for name, figures in rounds[0].items()
    }


def ratio(rounds: Rounds, figure: str, name: str, base_figure: str, base: str) -> float | None:
    """The middle of the rounds' ratios of two contestants; None where one has no such figure, or 0.

    Of ratios, not the ratio of two medians: what slows a round down slows both of its terms.
    """
    pairs = [(played[name].get(figure), played[base].get(base_figure)) for played in rounds]
    ratios = [value / other for value, other in pairs if value is not None and other]
    return median(ratios) if ratios else None
