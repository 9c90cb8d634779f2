"""`retry`: calls a function of a node's own again, where that can help.

It is the second of the three levels of retries (docs/retries.md): inside one node, in one attempt, for
seconds. What it cannot mend in its budget goes on to the run's own retries as it came.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

import structlog
from tenacity import AsyncRetrying, RetryCallState, Retrying, stop_before_delay, wait_random_exponential
from tenacity.wait import wait_base

from threadmill.core.errors import InvalidOption
from threadmill.graphs.classifier import Classifier, GraphClassifier, checked, classify

F = TypeVar("F", bound=Callable[..., Any])

_log = structlog.get_logger("threadmill.graphs")


@overload
def retry(function: F, /) -> F: ...


@overload
def retry(
    *,
    budget: float = 30,
    delay: float = 0.5,
    delay_max: float = 10,
    classifier: GraphClassifier = classify,
) -> Callable[[F], F]: ...


def retry(
    function: F | None = None,
    /,
    *,
    budget: float = 30,
    delay: float = 0.5,
    delay_max: float = 10,
    classifier: GraphClassifier = classify,
) -> F | Callable[[F], F]:
    """Makes a function try again what failed for a transient reason or because of a rate limit.

    For `async def` and for plain functions, as `@retry` or `@retry(budget=…)`. Between two calls it waits
    exponentially longer with full jitter, and no less than the other side asked for. What fails in another
    way, or would have to wait beyond the budget, is raised as it came.

    budget: seconds from the first call on, in which the last one must begin; a call under way is not cut
        short. delay: the first wait is 0 to this; delay_max: and the later ones 0 to no more than this.
    classifier: says what an exception means; see threadmill.graphs.classifier.

    Raises InvalidOption where it decorates. A plain function that is called on an event loop's own thread
    raises RuntimeError, as it would hold up all that the loop runs while it waits.
    """
    _check("budget", budget)
    _check("delay", delay)
    _check("delay_max", delay_max)
    if delay > delay_max:
        raise InvalidOption("delay", delay, f"is longer than delay_max={delay_max!r}")
    if not callable(classifier):
        raise InvalidOption("classifier", classifier, "must be a function that takes an exception")

    def decorate(function: F) -> F:
        _check_function(function)
        ask = checked(classifier, function.__qualname__)
        rules: dict[str, Any] = {
            "retry": functools.partial(_is_worth_it, ask),
            "wait": _Wait(ask, delay, delay_max),
            "stop": stop_before_delay(budget),
            "before_sleep": functools.partial(_tell, function.__qualname__),
            "reraise": True,
        }
        return _decorated(function, rules)

    return decorate if function is None else decorate(function)


class _Wait(wait_base):
    """Exponential with full jitter; on top of what the other side asked for, so that not all come at once."""

    def __init__(self, classifier: Classifier, delay: float, delay_max: float) -> None:
        self._classifier = classifier
        self._jitter = wait_random_exponential(multiplier=delay, max=delay_max)

    def __call__(self, retry_state: RetryCallState) -> float:
        return self._jitter(retry_state) + (self._classifier(_error(retry_state)).retry_after or 0)


def _decorated(function: F, rules: dict[str, Any]) -> F:
    # Not tenacity's own decorator: that keeps one set of statistics for a function, which calls of it in
    # several threads would clear for each other.
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await AsyncRetrying(**rules)(function, *args, **kwargs)

        return cast(F, call_async)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _require_no_loop(function)
        return Retrying(**rules)(function, *args, **kwargs)

    return cast(F, call)


def _is_worth_it(classifier: Classifier, state: RetryCallState) -> bool:
    assert state.outcome is not None
    return state.outcome.failed and classifier(_error(state)).kind in ("transient", "rate_limited")


def _tell(function: str, state: RetryCallState) -> None:
    _log.info(
        "call.retried",
        function=function,
        error=type(_error(state)).__name__,
        calls=state.attempt_number,
        seconds=round(state.upcoming_sleep, 3),
    )


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None, "asked only about a call that failed"
    return error


def _check(option: str, seconds: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidOption(option, seconds, "must be a number of seconds")
    if not math.isfinite(seconds) or seconds <= 0:
        raise InvalidOption(option, seconds, "must be finite and more than 0 seconds")


def _check_function(function: object) -> None:
    if not inspect.isroutine(function) or isinstance(function, classmethod | staticmethod):
        raise InvalidOption("function", function, "must be a function; put @retry nearest to its def")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidOption("function", function, "is a generator: what it has yielded cannot be taken back")


def _require_no_loop(function: Callable[..., Any]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{function.__qualname__} is a plain function with @retry, called on the thread of an event loop: "
        "while it waits, nothing else there could run; make it `async def`, or call it in a thread"
    )
