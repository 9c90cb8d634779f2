"""What is measured, in the order of the table; `--only` takes these names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from bench import (
    comparison,
    dead_letters,
    fairness,
    growth,
    growth_of_ledger,
    harness,
    replays,
    scale_out,
    waiting,
)
from bench.arena import Arena
from bench.load import Load
from bench.row import Row

Tell = Callable[[str], None]


class Name(StrEnum):
    CONTESTANTS = "contestants"
    SCALE_OUT = "scale-out"
    WAITING = "waiting"
    FAIRNESS = "fairness"
    GROWTH = "growth"
    LEDGER = "ledger"
    DEAD_LETTERS = "dead-letters"
    REPLAYS = "replays"


class Section(NamedTuple):
    """measure: all there is to know, of dataclasses. It is told what goes on. rows: what the table shows."""

    measure: Callable[[Arena, Load, Tell], Any]
    rows: Callable[[Any], Sequence[Row]]


SECTIONS = {
    Name.CONTESTANTS: Section(harness.measure, comparison.rows),
    Name.SCALE_OUT: Section(scale_out.measure, scale_out.rows),
    Name.WAITING: Section(waiting.measure, waiting.rows),
    Name.FAIRNESS: Section(fairness.measure, fairness.rows),
    Name.GROWTH: Section(growth.measure, growth.rows),
    Name.LEDGER: Section(growth_of_ledger.measure, growth_of_ledger.rows),
    Name.DEAD_LETTERS: Section(dead_letters.measure, dead_letters.rows),
    Name.REPLAYS: Section(replays.measure, replays.rows),
}
