"""Where the histories take place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.chaos.histories.state import MAX_REPLAYS
from tests.chaos.histories.world import Stage

from threadmill.core.settings import Settings


@pytest.fixture
def stage(settings: Settings) -> Iterator[Stage]:
    # A dead letter's time is now, where it has one: the histories make time pass by the tick.
    quick = {"replay_delay": 1e-6, "replay_delay_max": 1e-6, "max_replays": MAX_REPLAYS}
    stage = Stage(settings.model_copy(update=quick))
    yield stage
    stage.close()
