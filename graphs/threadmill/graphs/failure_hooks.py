"""What a graph's owner says about the record of a failure, made safe to ask.

`redact` and `fingerprint` in a graph's policy name the functions; docs/dead-letters.md says what for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import structlog

# What an owner may write: a function of a text that gives the text without its secrets, and one of an
# exception and a node (None outside any) that names the group of the failure, or None where it does not.
GraphRedact: TypeAlias = Callable[[str], str]
GraphFingerprint: TypeAlias = Callable[[BaseException, str | None], str | None]
# What is made of the first: None says that the text cannot be told apart from its secrets.
Redactor: TypeAlias = Callable[[str], str | None]
Fingerprinter: TypeAlias = GraphFingerprint

_log = structlog.get_logger("threadmill.graphs")


def checked_redact(redact: GraphRedact, owner: str) -> Redactor:
    """A redactor that never raises. What goes wrong is logged once, as it may for each line of a failure.

    owner: for the log, whose it is.
    """
    tell = _Once("redact", owner)

    def redacted(text: str) -> str | None:
        try:
            answer: object = redact(text)
        except (Exception, SystemExit) as problem:
            tell.failed(problem)
            return None
        if isinstance(answer, str):
            return answer
        tell.nonsense(answer)
        return None

    return redacted


def checked_fingerprint(fingerprint: GraphFingerprint, owner: str) -> Fingerprinter:
    """A namer of groups that never raises. Where the owner's fails, it names none; that is logged once."""
    tell = _Once("fingerprint", owner)

    def named(error: BaseException, node: str | None) -> str | None:
        try:
            answer: object = fingerprint(error, node)
        except (Exception, SystemExit) as problem:
            tell.failed(problem)
            return None
        if answer is None or isinstance(answer, str):
            return answer or None
        tell.nonsense(answer)
        return None

    return named


class _Once:
    """Logs the first problem of a hook; never its text, which may be the failure's own."""

    def __init__(self, hook: str, owner: str) -> None:
        self._hook, self._owner, self._told = hook, owner, False

    def failed(self, problem: BaseException) -> None:
        self._tell(f"{self._hook}.failed", error=type(problem).__name__)

    def nonsense(self, answer: object) -> None:
        self._tell(f"{self._hook}.nonsense", returned=type(answer).__name__)

    def _tell(self, event: str, **fields: str) -> None:
        if not self._told:
            self._told = True
            _log.warning(event, owner=self._owner, **fields)
