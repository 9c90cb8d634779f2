"""Where the histories take place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.chaos.histories.world import Stage

from threadmill.core.settings import Settings


@pytest.fixture
def stage(settings: Settings) -> Iterator[Stage]:
    stage = Stage(settings)
    yield stage
    stage.close()
