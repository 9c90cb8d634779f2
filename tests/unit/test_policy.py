"""A graph's policy says what is kept of its threads, and refuses what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from threadmill.core.policy import GraphPolicy


def test_a_graph_keeps_all_checkpoints_unless_it_says_otherwise() -> None:
    assert GraphPolicy().keep_checkpoints is None
    assert GraphPolicy().checkpoint_ttl is None


@pytest.mark.parametrize("number", [1, 2, 1000])
@pytest.mark.parametrize("ttl", [None, 0, 3600])
def test_checkpoints_are_kept_by_number_by_age_or_by_both(number: int, ttl: float | None) -> None:
    policy = GraphPolicy.model_validate({"keep_checkpoints": number, "checkpoint_ttl": ttl})
    assert (policy.keep_checkpoints, policy.checkpoint_ttl) == (number, ttl)


@pytest.mark.parametrize("number", [0, -1, 1.5, "all", [1]])
def test_a_thread_keeps_one_checkpoint_at_the_least(number: Any) -> None:
    with pytest.raises(ValidationError) as error:
        GraphPolicy.model_validate({"keep_checkpoints": number})
    assert [found["loc"] for found in error.value.errors()] == [("keep_checkpoints",)]
