"""Number 3: histories of several workers, made up at random, on the real SQL; promises after each step."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from tests.chaos.histories.machine import make_up
from tests.chaos.histories.report import figures
from tests.chaos.histories.world import Stage

from threadmill.core.settings import Settings

LONG_STEPS = 100_000
# Of one round: histories, and steps of each. The long form goes round after round.
HISTORIES, STEPS = 80, 50


@pytest.fixture
def stage(settings: Settings) -> Iterator[Stage]:
    stage = Stage(settings)
    yield stage
    stage.close()


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_no_history_breaks_a_promise(stage: Stage, request: pytest.FixtureRequest) -> None:
    least = LONG_STEPS if request.config.getoption("--long", default=False) else 1
    seed = request.config.getoption("--chaos-seed", default=None) or random.SystemRandom().randrange(1, 10**6)
    print(f"\n--chaos-seed={seed}")
    began = time.monotonic()
    while stage.tally.steps.total() < least:
        make_up(stage, seed, histories=HISTORIES, steps=STEPS)
        seed += 1
    print(figures(stage.tally, time.monotonic() - began))
