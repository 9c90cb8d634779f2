"""Number 3: histories of several workers, made up at random, on the real SQL; the promises after each step."""

from __future__ import annotations

import random
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test
from tests.chaos.histories.machine import Histories
from tests.chaos.histories.world import Stage

from threadmill.core.settings import Settings


@pytest.fixture
def stage(settings: Settings) -> Iterator[Stage]:
    stage = Stage(settings)
    yield stage
    stage.close()


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_no_history_breaks_a_promise(stage: Stage, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--chaos-seed", default=None) or random.SystemRandom().randrange(1, 10**6)
    print(f"\n--chaos-seed={seed}")
    machine = hypothesis.seed(seed)(type("Histories", (Histories,), {"stage": stage}))
    try:
        run_state_machine_as_test(
            machine,
            settings=hypothesis.settings(
                max_examples=80,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        print(stage.tally)
