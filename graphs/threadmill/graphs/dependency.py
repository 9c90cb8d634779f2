"""`dependency`: the name under which a node's code calls something that can be away.

A worker sets OPEN and USED for each attempt, asks `dependency_of` about the exception that ended it, and
keeps the breakers in the ledger. Here nothing is counted: outside a worker the names have no effect.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar, cast

from threadmill.core.errors import DependencyUnavailable, InvalidOption
from threadmill.graphs.causes import causes

F = TypeVar("F", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MARK = "__threadmill_dependency__"


def _never_open(name: str) -> float | None:  # noqa: ARG001
    return None


# The seconds for which the breaker of the dependency of this name is still open; None where it is not.
OPEN: ContextVar[Callable[[str], float | None]] = ContextVar("threadmill_open", default=_never_open)
# The dependencies that the attempt called, whose latest call to end did not fail. The set is shared by all
# the tasks and threads of the attempt, each of which has a copy of the context.
USED: ContextVar[set[str] | None] = ContextVar("threadmill_used", default=None)


class DependencyTimeout(TimeoutError):
    """A TimeoutError of a dependency that was called in a thread; it is raised from the one that came.

    When a plain TimeoutError leaves a thread for an event loop, asyncio puts a new one with the same
    arguments in its place, which has neither mark nor cause. It lets a subclass through.
    """


class dependency:  # noqa: N801 - it is used as contextlib's own lower-case managers are
    """Says that what is done inside calls the dependency of this name: `with dependency("openai"): …`.

    As `with`, as `async with`, and as a decorator of plain and async functions; one object may be used many
    times and at the same time. While the breaker of that name is open, entering raises
    DependencyUnavailable, which costs the run no attempt. What is raised inside is marked with the name.

    name: 1 to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen; otherwise InvalidOption.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidOption("dependency", name, "must match [A-Za-z0-9._-]{1,64}")
        self.name = name

    def __enter__(self) -> None:
        seconds = OPEN.get()(self.name)
        if seconds is not None:
            unavailable = DependencyUnavailable(self.name, seconds)
            _mark(unavailable, self.name)  # before the dependency around this one, if there is one, does
            raise unavailable
        used = USED.get()
        if used is not None:
            used.add(self.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        used = USED.get()
        if used is not None:
            # A node may catch this and get by without: then the run's success must not close the breaker.
            used.discard(self.name)
        if type(error) is TimeoutError and not _on_loop():
            timeout = DependencyTimeout(*error.args)
            _mark(timeout, self.name)
            raise timeout from error
        if isinstance(error, Exception):
            _mark(error, self.name)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: F) -> F:
        return _decorated(self, function)


def dependency_of(error: BaseException) -> str | None:
    """The dependency that raised this exception, or what it was raised `from`; None if no name is known.

    Of a group of exceptions it is that of the first member that has one.
    """
    return _dependency_of(error, set())


def _dependency_of(error: BaseException, seen: set[int]) -> str | None:
    for link in causes(error):
        if id(link) in seen:
            break
        name = getattr(link, _MARK, None)
        if isinstance(name, str):
            return name
        if isinstance(link, BaseExceptionGroup):
            inside = seen | {id(link)}
            names = (_dependency_of(member, inside) for member in link.exceptions)
            return next((name for name in names if name is not None), None)
    return None


def _mark(error: BaseException, name: str) -> None:
    with suppress(AttributeError):  # a class with slots, or a frozen dataclass, goes without its mark
        if not hasattr(error, _MARK):
            setattr(error, _MARK, name)


def _on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _decorated(name: dependency, function: F) -> F:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidOption("function", function, "is a generator; use `with dependency(…)` inside it")
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with name:
                return await function(*args, **kwargs)

        return cast(F, call_async)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with name:
            return function(*args, **kwargs)

    return cast(F, call)
