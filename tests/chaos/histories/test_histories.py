"""Number 3: histories of several workers, made up at random, on the real SQL; promises after each step."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from tests.chaos.histories.machine import make_up
from tests.chaos.histories.report import figures
from tests.chaos.histories.world import Stage

# In all, and in one history.
SHORT, LONG = 4_000, 100_000
STEPS = 50


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_no_history_breaks_a_promise(stage: Stage, request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--long", default=False)
    enough = LONG if long else SHORT
    # The short form is the same each time; the long one goes where none has been.
    fresh = random.SystemRandom().randrange(1, 10**6) if long else 1
    seed = request.config.getoption("--chaos-seed", default=None) or fresh
    print(f"\n--chaos-seed={seed}")
    began = time.monotonic()
    for number in itertools.count(seed):
        make_up(stage, number, steps=STEPS)
        if stage.tally.steps.total() >= enough:
            break
    print(figures(stage.tally, time.monotonic() - began))
