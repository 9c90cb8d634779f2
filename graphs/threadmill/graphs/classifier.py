"""Says of an exception that ended a run's attempt whether another attempt can help, and when.

`classify` is Threadmill's own; `classifier` in a graph's policy names a function that is asked before it.
docs/retries.md has the table with the reasons.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import TypeAlias, cast

import structlog
from langgraph.errors import GraphDrained, NodeTimeoutError

from threadmill.core.errors import (
    DependencyUnavailable,
    LeaseLost,
    QuotaExceeded,
    ThreadmillError,
    Unavailable,
    WaitTimeout,
)
from threadmill.graphs.answers import of_client
from threadmill.graphs.causes import causes
from threadmill.graphs.retry_after import seconds_said
from threadmill.graphs.verdict import KINDS, Kind, Verdict, bounded

__all__ = ["Classifier", "GraphClassifier", "Kind", "Verdict", "checked", "classify"]

Classifier: TypeAlias = Callable[[BaseException], Verdict]
# What an owner may write for a graph: None leaves the exception to Threadmill's own classifier.
GraphClassifier: TypeAlias = Callable[[BaseException], Verdict | Kind | None]

_log = structlog.get_logger("threadmill.graphs")

_PROGRAMMING = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
_TRANSIENT_ERRNOS = {
    errno.EAGAIN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENOTCONN,
}
# In a group one counts for all. First what no retry mends; then what cost an attempt, before what did not.
_PRECEDENCE: tuple[Kind, ...] = ("permanent", "transient", "rate_limited", "infrastructure")


def classify(error: BaseException) -> Verdict:
    """What the exception means. It never raises.

    An exception that is not known counts for what it was raised `from`, if that is known; else it is
    permanent, as a second try may do for a second time what the first one did before it failed. In a group
    of exceptions permanent wins.
    """
    return _classify(error, set())


def checked(classifier: GraphClassifier, owner: str) -> Classifier:
    """A classifier that always gives a verdict, made of one that somebody wrote.

    It is asked about everything but infrastructure: a drain or a lost lease is no graph's to judge, and a
    classifier that calls all it does not know permanent would bury runs at each deploy. Where it returns
    None, raises or returns nonsense, Threadmill's own verdict stands; the latter two are logged.
    owner: for the log, whose it is.
    """

    def asked(error: BaseException) -> Verdict:
        own = classify(error)
        if own.kind == "infrastructure":
            return own
        try:
            answer: object = classifier(error)
        except Exception as problem:
            _log.warning("classifier.failed", owner=owner, error=type(problem).__name__)
            return own
        if isinstance(answer, Verdict):
            return answer
        if isinstance(answer, str) and answer in KINDS:
            return _of_kind(cast(Kind, answer), error)
        if answer is not None:
            _log.warning("classifier.nonsense", owner=owner, returned=type(answer).__name__)
        return own

    return asked


def _of_kind(kind: Kind, error: BaseException) -> Verdict:
    said = seconds_said(error) if kind in ("transient", "rate_limited") else None
    return Verdict(kind, said, type(error).__name__)


def _classify(error: BaseException, seen: set[int]) -> Verdict:
    """seen: the exceptions of the groups that this one stands in, as a group can hold itself by a cause."""
    for link in causes(error):
        if id(link) in seen:
            break
        verdict = _known(link, error, seen)
        if verdict is not None:
            return verdict if link is error else _caused_by(verdict)
    return Verdict("permanent", why=f"{type(error).__name__} is not known")


def _caused_by(verdict: Verdict) -> Verdict:
    return Verdict(verdict.kind, verdict.retry_after, f"caused by {verdict.why}")


def _known(link: BaseException, error: BaseException, seen: set[int]) -> Verdict | None:
    """What this one exception of a chain means; None if it says nothing. error: the chain's head."""
    if isinstance(link, BaseExceptionGroup):
        inside = seen | {id(link)}
        return _of_group(_classify(member, inside) for member in link.exceptions)
    if isinstance(link, asyncio.CancelledError):
        # Not as a cause: a library's own time limit is often raised from one, and a run that fails by it
        # each time would cost nothing and go on for ever.
        return Verdict("infrastructure", why="cancelled") if link is error else None
    return _of_threadmill(link) or _of_langgraph(link) or of_client(link) or _of_python(link)


def _of_group(verdicts: Iterable[Verdict]) -> Verdict:
    members = sorted(verdicts, key=lambda verdict: _PRECEDENCE.index(verdict.kind))
    first = members[0]
    waits = [member.retry_after for member in members if member.retry_after is not None]
    if first.kind == "permanent" or not waits:
        return first
    return Verdict(first.kind, max(waits), first.why)


def _of_threadmill(error: BaseException) -> Verdict | None:
    name = type(error).__name__
    match error:
        case DependencyUnavailable():
            return Verdict("infrastructure", bounded(error.retry_after), name)
        case Unavailable() | LeaseLost():
            return Verdict("infrastructure", why=name)
        case QuotaExceeded():
            return Verdict("rate_limited", bounded(error.retry_after), name)
        case WaitTimeout():
            return Verdict("transient", why=name)
        case ThreadmillError():
            return Verdict("permanent", why=name)
    return None


def _of_langgraph(error: BaseException) -> Verdict | None:
    name = type(error).__name__
    if isinstance(error, GraphDrained):
        return Verdict("infrastructure", why=name)
    if isinstance(error, NodeTimeoutError):
        return Verdict("transient", why=name)
    # Of all that LangGraph raises the rest says that a graph is wrong, or what was put into it.
    if any(cls.__module__.partition(".")[0] == "langgraph" for cls in type(error).__mro__):
        return Verdict("permanent", why=name)
    return None


def _of_python(error: BaseException) -> Verdict | None:
    name = type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return Verdict("permanent", why=name)
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return Verdict("transient", why=name)
    if type(error) is OSError and str(error).startswith("Multiple exceptions: "):
        # asyncio, where a host has several addresses and none of them lets itself be connected to.
        return Verdict("transient", why="no connection")
    if isinstance(error, OSError) and error.errno is not None:
        kind: Kind = "transient" if error.errno in _TRANSIENT_ERRNOS else "permanent"
        return Verdict(kind, why=errno.errorcode.get(error.errno, name))
    return Verdict("permanent", why=name) if isinstance(error, _PROGRAMMING) else None
