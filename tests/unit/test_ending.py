"""What a failure costs its run, and when it is tried again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.core.policy import GraphPolicy
from threadmill.graphs import Verdict
from threadmill.workers.ending import (
    INFRASTRUCTURE_DELAY_MAX,
    RATE_LIMIT_DELAY,
    Burial,
    Retry,
    decide,
    requeue_parameters,
)


def run(**fields: Any) -> dict[str, Any]:
    return {"attempt": 1, "failures": 0, "max_attempts": 3, "throttled": 0.0, "replays": 0, **fields}


@given(
    failures=st.integers(0, 98),
    first=st.floats(0, 100),
    more=st.floats(0, 1000),
    asked=st.none() | st.floats(0, 86_400),
)
def test_the_delay_lies_between_nothing_and_the_bound_and_never_below_what_was_asked_for(
    failures: int, first: float, more: float, asked: float | None
) -> None:
    policy = GraphPolicy(retry_delay=first, retry_delay_max=first + more)

    decision = decide(Verdict("transient", asked), run(failures=failures, max_attempts=100), policy)

    assert isinstance(decision, Retry)
    bound = min(first * 2**failures, first + more)
    assert (asked or 0) <= decision.delay <= max(bound, asked or 0)
    assert (decision.spent, decision.waits) == (True, 0)


def test_the_delay_doubles_with_each_failure_and_is_drawn_from_all_of_it() -> None:
    policy = GraphPolicy(retry_delay=1, retry_delay_max=8)

    def longest(failures: int) -> float:
        draws = [
            decide(Verdict("transient"), run(failures=failures, max_attempts=9), policy) for _ in range(400)
        ]
        delays = [draw.delay for draw in draws if isinstance(draw, Retry)]
        assert min(delays) < max(delays) / 10, "full jitter begins at nothing"
        return max(delays)

    for failures, bound in enumerate([1, 2, 4, 8, 8]):
        assert bound * 0.9 < longest(failures) <= bound


@pytest.mark.parametrize(("failures", "max_attempts"), [(0, 1), (2, 3), (7, 3)])
def test_the_last_attempt_that_may_fail_is_the_end(failures: int, max_attempts: int) -> None:
    decision = decide(
        Verdict("transient", why="HTTP 503"), run(failures=failures, max_attempts=max_attempts), GraphPolicy()
    )

    assert decision == Burial("exhausted", "transient: HTTP 503")


def test_what_is_permanent_ends_at_once() -> None:
    assert decide(Verdict("permanent"), run(max_attempts=100), GraphPolicy()) == Burial(
        "permanent", "permanent"
    )


@given(attempt=st.integers(1, 1_000_000), failures=st.integers(0, 5), asked=st.none() | st.floats(0.1, 60))
def test_infrastructure_costs_nothing_however_often(attempt: int, failures: int, asked: float | None) -> None:
    decision = decide(
        Verdict("infrastructure", asked, "drained"), run(attempt=attempt, failures=failures), GraphPolicy()
    )

    assert isinstance(decision, Retry)
    assert (decision.spent, decision.waits, decision.cause) == (False, 0, "infrastructure: drained")
    assert decision.delay == asked if asked else 0 <= decision.delay <= INFRASTRUCTURE_DELAY_MAX


@given(
    waits=st.lists(st.none() | st.floats(0, 300), max_size=60),
    budget=st.floats(0, 1000),
)
def test_rate_limits_cost_no_attempt_until_the_budget_is_used_up_and_then_they_do(
    waits: list[float | None], budget: float
) -> None:
    policy = GraphPolicy(rate_limit_budget=budget, retry_delay=1, retry_delay_max=10)
    throttled, failures = 0.0, 0
    for attempt, asked in enumerate(waits, 1):
        decision = decide(
            Verdict("rate_limited", asked),
            run(attempt=attempt, throttled=throttled, failures=failures),
            policy,
        )
        if isinstance(decision, Burial):
            assert (decision.reason, failures) == ("exhausted", 2)
            return
        assert decision.delay >= (asked or 0)
        if decision.spent:
            assert throttled + max(asked or 0, 10) > budget
            assert decision.waits == 0
            assert "were waited already" in decision.cause
        else:
            assert decision.delay == decision.waits >= RATE_LIMIT_DELAY
        throttled += decision.waits
        failures += decision.spent
        assert throttled <= budget


def test_what_is_requeued_without_a_failure_leaves_no_record_of_one() -> None:
    parameters = requeue_parameters(Retry(1.5, spent=False, waits=1.5, cause="drain"))

    assert parameters == {
        "delay": 1.5,
        "spent": 0,
        "lost": 0,
        "waits": 1.5,
        "cause": "drain",
        **dict.fromkeys(("error", "node", "checkpoint_id", "exception_type", "message", "traceback")),
    }
    assert requeue_parameters(Retry(0, True, 0, "x"), lost=1, node="n")["lost"] == 1
