"""How long a dead letter waits before its next replay, and its group after a canary that failed."""

from __future__ import annotations

from functools import cache

import tenacity
from tenacity.wait import wait_base

from threadmill.core.settings import Settings


def replay_delay(settings: Settings, replays: int) -> float:
    """Seconds until the next replay, of which there were so many: exponential with full jitter.

    The bound is `replay_delay` after none, doubles with each, and stops at `replay_delay_max`.
    """
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = replays + 1
    return _strategy(settings.replay_delay, settings.replay_delay_max)(state)


@cache
def _strategy(first: float, most: float) -> wait_base:
    return tenacity.wait_random_exponential(multiplier=first, max=most)
