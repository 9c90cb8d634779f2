"""What a graph gives back, as the ledger's JSON."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

import pytest

from threadmill.core.policy import GraphPolicy
from threadmill.workers.output import as_json, select_output


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (deque([1, 2]), [1, 2]),
        ({Colour.RED: 1}, {"red": 1}),
        (Colour.RED, "red"),
        (float("nan"), "nan"),
        (b"\x00\x01", "AAE="),
        ((1, {"a": None}), [1, {"a": None}]),
    ],
)
def test_what_is_no_json_becomes_json(value: Any, expected: Any) -> None:
    assert as_json(value, 1000) == expected


def test_an_output_over_the_limit_is_replaced_by_a_marker_that_says_so() -> None:
    assert as_json("x" * 100, 50) == {
        "$omitted": {"reason": "larger than max_output_bytes", "bytes": 102, "limit": 50}
    }


@pytest.mark.parametrize(
    ("policy", "expected"), [("all", {"a": 1, "b": 2}), ("none", None), (("b", "c"), {"b": 2})]
)
def test_the_graphs_policy_says_what_is_kept(policy: Any, expected: Any) -> None:
    assert select_output({"a": 1, "b": 2, "__interrupt__": ()}, GraphPolicy(output=policy)) == expected
