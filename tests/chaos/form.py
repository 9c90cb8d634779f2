"""How long, how hard and from which seed the fleet is attacked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

LONG, SHORT = 300.0, 14.0


@dataclass(frozen=True)
class Form:
    """long: minutes with the default settings, not seconds with impatient ones. report: the file for it."""

    long: bool
    seconds: float
    seed: int
    report: Path | None


def form_of(config: pytest.Config) -> Form:
    """What the command line asks for; the seed is drawn where it names none."""
    long = bool(config.getoption("--long"))
    report = config.getoption("--chaos-report")
    return Form(
        long=long,
        seconds=config.getoption("--chaos-seconds") or (LONG if long else SHORT),
        seed=config.getoption("--chaos-seed") or random.SystemRandom().randrange(1, 1_000_000),
        report=Path(report) if report else None,
    )
