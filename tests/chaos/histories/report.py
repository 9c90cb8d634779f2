"""What the histories came to, in figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.chaos.histories.world import Tally


def figures(tally: Tally, seconds: float) -> str:
    """The report, for people."""
    return "\n".join(_lines(tally, seconds))


def _lines(tally: Tally, seconds: float) -> Iterator[str]:
    steps = tally.steps.total()
    yield f"{'histories':<44} {tally.histories:>9,}"
    yield f"{'steps':<44} {steps:>9,}"
    yield f"{'moves on the ledger, each compared':<44} {tally.moves.total():>9,}"
    yield f"{'seconds':<44} {seconds:>9,.0f}"
    yield "steps by what was done:"
    yield from _counted(tally.steps.items())
    yield "moves by what came of them:"
    yield from _counted((f"{kind}: {word}", count) for (kind, word), count in tally.moves.items())
    yield "two at once, and whether the second waited:"
    for first, second in sorted({(first, second) for first, second, _ in tally.together}):
        waited, not_ = (tally.together[first, second, how] for how in ("waited", "did not wait"))
        yield f"    {f'{first} || {second}':<46} {waited:>7,} waited {not_:>7,} did not"
    yield "dead letters by reason:"
    yield from _counted(tally.letters.items())
    yield "runs, when everything had healed:"
    yield from _counted(tally.healed.items())


def _counted(counts: Iterable[tuple[str, int]]) -> Iterator[str]:
    for name, count in sorted(counts, key=lambda pair: (-pair[1], pair[0])):
        yield f"    {name:<40} {count:>9,}"
