"""What becomes of a run whose attempt did not succeed: another attempt, and when, or a dead letter."""

from __future__ import annotations

from typing import Any, NamedTuple

import tenacity
from tenacity.wait import wait_base

from threadmill.core.policy import GraphPolicy
from threadmill.core.statement import Row
from threadmill.graphs import Verdict

# Infrastructure trouble costs no attempt, so nothing else ends its retries: they grow this rare, in seconds.
INFRASTRUCTURE_DELAY = 1.0
INFRASTRUCTURE_DELAY_MAX = 30.0
# "Too many requests, try again at once" is not obeyed: what costs no attempt has to cost time.
RATE_LIMIT_DELAY = 1.0


class Retry(NamedTuple):
    """Another attempt, after so many seconds. spent: whether this one counts. waits: seconds as asked for."""

    delay: float
    spent: bool
    waits: float
    cause: str


class Burial(NamedTuple):
    """A dead letter. reason: permanent, exhausted or timeout."""

    reason: str
    cause: str


def decide(verdict: Verdict, run: Row, policy: GraphPolicy) -> Retry | Burial:
    """What the policy says to a failure of this kind.

    run: attempt, failures, max_attempts, throttled and replays. A replay does not wait for who says "too many
    requests": its group backs off.
    """
    cause = f"{verdict.kind}: {verdict.why}" if verdict.why else verdict.kind
    match verdict.kind:
        case "permanent":
            return Burial("permanent", cause)
        case "infrastructure":
            delay = _jittered(INFRASTRUCTURE_DELAY, INFRASTRUCTURE_DELAY_MAX, run["attempt"])
            return Retry(verdict.retry_after or delay, spent=False, waits=0, cause=cause)
        case "rate_limited":
            asked = _backoff(policy, run["attempt"]) if verdict.retry_after is None else verdict.retry_after
            wait = max(asked, RATE_LIMIT_DELAY)
            if not run["replays"] and run["throttled"] + wait <= policy.rate_limit_budget:
                return Retry(wait, spent=False, waits=wait, cause=cause)
            if not run["replays"]:
                cause = f"{cause}, and {policy.rate_limit_budget:g} s were waited already"
    failures = run["failures"] + 1
    if failures >= run["max_attempts"]:
        return Burial("exhausted", cause)
    delay = max(_backoff(policy, failures), verdict.retry_after or 0)
    return Retry(delay, spent=True, waits=0, cause=cause)


def _backoff(policy: GraphPolicy, failures: int) -> float:
    return _jittered(policy.retry_delay, policy.retry_delay_max, failures)


def _jittered(first: float, most: float, failures: int) -> float:
    """Exponential with full jitter: between nothing and `first` doubled with each failure, to `most`.

    The source of the formula: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    strategy: wait_base = tenacity.wait_random_exponential(multiplier=first, max=most)
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = failures
    return strategy(state)


def requeue_parameters(retry: Retry, **record: Any) -> dict[str, Any]:
    """The parameters of `transitions.requeue`, but for the run's own; a record's fields may be left out."""
    return {
        **_RECORD,
        "delay": retry.delay,
        "spent": int(retry.spent),
        "lost": 0,
        "waits": retry.waits,
        "cause": retry.cause,
        "error": None,
        **record,
    }


_RECORD: dict[str, Any] = dict.fromkeys(
    ("node", "checkpoint_id", "exception_type", "message", "traceback"), None
)
