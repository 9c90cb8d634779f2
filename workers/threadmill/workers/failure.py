"""What is recorded of an attempt that failed."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import structlog

from threadmill.core.errors import GraphError
from threadmill.graphs import Fingerprinter, Project, Redactor, Registry
from threadmill.workers.chain import Linked, chain
from threadmill.workers.fingerprint import fingerprint_of, fingerprint_of_name, fingerprint_of_type
from threadmill.workers.frames import Frame, frames_of
from threadmill.workers.redaction import redact as without_secrets

MAX_MESSAGE = 4_000
MAX_TRACEBACK = 32_000
MAX_EXCEPTIONS = 20
MAX_FRAMES = 50
MAX_JSON_BYTES = 64 * 1024

_MAX_NAME = 200
_MAX_CODE = 300
# What is formatted of each exception of a chain that is longer than is kept.
_FEW_FRAMES = 10
# How many frames of an exception, and characters of a message, are left where the whole is too large.
_SMALLER = ((20, 2_000), (8, 500), (2, 200))
# How much of a text is searched for secrets, from both its ends: more would hold up other runs.
_MAX_SEARCHED = 256 * 1024
_CUT = "\n… cut …\n"

_ANY_PROJECT = Project()

_log = structlog.get_logger("threadmill.failure")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why and where an attempt failed. node: None where no node was running; task: LangGraph's id of it.

    exceptions: the one raised and what it came from, nearest first, as JSON: `type`, `module`, `message`,
        `link` ("raised", "caused by", "while handling", "member of"), `of` (the index of the exception that
        it is linked to), `frames` and `omitted` (how many frames were left out). A frame has `file`, `line`,
        `function`, `code` and `own`.
    """

    exception_type: str
    message: str
    traceback: str
    node: str | None
    fingerprint: str
    exceptions: list[dict[str, Any]]
    task: str | None = None

    def error(self) -> dict[str, Any]:
        """The run's error as the ledger keeps it."""
        return {"type": self.exception_type, "message": self.message, "node": self.node}

    def record(self, checkpoint_id: str | None) -> dict[str, Any]:
        """The fields of the attempt's record, which ended at this checkpoint."""
        return {
            "node": self.node,
            "checkpoint_id": checkpoint_id,
            "exception_type": self.exception_type,
            "message": self.message,
            "traceback": self.traceback,
        }


class Hooks(TypedDict):
    """What `describe` is to know of a graph."""

    own: Project | None
    redact: Redactor | None
    fingerprint: Fingerprinter | None


def hooks_of(registry: Registry, graph: str) -> Hooks:
    """What the graph's owner decided about the record of its failures. It never raises.

    Where the graph's `redact` cannot be loaded, nothing of a failure's text may be kept.
    """
    if graph not in registry.names:
        return Hooks(own=None, redact=None, fingerprint=None)
    hooks = Hooks(own=registry.project(graph), redact=_withhold, fingerprint=None)
    try:
        hooks["redact"] = registry.redactor(graph)
        hooks["fingerprint"] = registry.fingerprinter(graph)
    except GraphError as error:
        _log.warning("failure.hook_missing", graph=graph, error=type(error).__name__)
    return hooks


def describe(
    error: BaseException,
    graph: str,
    node: str | None,
    *,
    task: str | None = None,
    own: Project | None = None,
    redact: Redactor | None = None,
    fingerprint: Fingerprinter | None = None,
) -> Failure:
    """The failure of a graph at a node. What is secret is taken out, what is too long is cut, and what
    Postgres cannot keep (NUL, lone surrogates) is replaced. No variable is read.

    own: the graph's project. redact: is given all text after the known secrets are out of it; where it
    gives None or raises, nothing of the failure is kept but types. fingerprint: names the failure's group,
    if it gives a name.
    """
    project = own or _ANY_PROJECT
    links = _links(error)
    clean = _Cleaner(redact)
    try:
        message = clean(_message(error))[:MAX_MESSAGE]
        text = _shortened(clean(_traceback(error, len(links))), MAX_TRACEBACK)
        exceptions = _bounded([_exception(linked, project, clean) for linked in links[:MAX_EXCEPTIONS]])
    except _Withheld:
        message, text = "", ""
        exceptions = [_bare(linked) for linked in links[:MAX_EXCEPTIONS]]
    name = _named(fingerprint, error, node)
    return Failure(
        exception_type=_name(type(error).__name__),
        message=message,
        traceback=text,
        node=node,
        fingerprint=(
            fingerprint_of(links, graph, node, project) if name is None else fingerprint_of_name(name, graph)
        ),
        exceptions=exceptions,
        task=task,
    )


def describe_bare(error: BaseException, graph: str) -> Failure:
    """The failure by its type alone, for one whose text cannot be kept."""
    return Failure(
        exception_type=_name(type(error).__name__),
        message="",
        traceback="",
        node=None,
        fingerprint=fingerprint_of_type(error, graph),
        exceptions=[_bare(Linked(error, "raised", None))],
    )


class _Withheld(Exception):
    """The graph's own redaction failed, so no text of the failure may be kept."""


def _withhold(_: str) -> None:
    return None


class _Cleaner:
    """Gives texts as they may be kept. It remembers them, as the same lines stand in many frames."""

    def __init__(self, redact: Redactor | None) -> None:
        self._redact = redact
        self._known: dict[str, str] = {"": ""}

    def __call__(self, text: str) -> str:
        """Raises _Withheld."""
        if text not in self._known:
            self._known[text] = self._clean(text)
        return self._known[text]

    def _clean(self, text: str) -> str:
        # Before it is cut to its size: half a secret has no form by which it is known. That this cut, too,
        # goes through one is no matter, as what is kept is of the far ends.
        found: str | None = without_secrets(_shortened(_storable(text), _MAX_SEARCHED))
        if self._redact is not None:
            try:
                found = self._redact(found or "")
            except Exception as problem:
                raise _Withheld from problem
        if not isinstance(found, str):
            raise _Withheld
        return _storable(found)


def _links(error: BaseException) -> list[Linked]:
    try:
        return chain(error)
    except Exception:  # a class may replace __cause__ and its like by something that fails
        return [Linked(error, "raised", None)]


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except (Exception, SystemExit) as problem:
        return f"<no message: its __str__ raised {type(problem).__name__}>"


def _traceback(error: BaseException, links: int) -> str:
    # Each frame costs some 20 microseconds, and the text is cut anyway.
    limit = None if links <= MAX_EXCEPTIONS else -_FEW_FRAMES
    try:
        return "".join(traceback.format_exception(error, limit=limit))
    except (Exception, SystemExit):  # of the exception's own making, as above
        return "".join(traceback.format_tb(error.__traceback__))


def _exception(linked: Linked, project: Project, clean: Callable[[str], str]) -> dict[str, Any]:
    frames = frames_of(linked.error, project)
    kept = _most_telling(frames, MAX_FRAMES)
    return {
        **_bare(linked),
        "message": clean(_message(linked.error))[:MAX_MESSAGE],
        "frames": [
            {
                "file": _name(frame.file),
                "line": frame.line,
                "function": _name(frame.function),
                "code": clean(frame.code)[:_MAX_CODE],
                "own": frame.own,
            }
            for frame in kept
        ],
        "omitted": len(frames) - len(kept),
    }


def _bare(linked: Linked) -> dict[str, Any]:
    kind = type(linked.error)
    return {
        "type": _name(kind.__name__),
        "module": _name(str(kind.__module__)),
        "message": "",
        "link": linked.link,
        "of": linked.of,
        "frames": [],
        "omitted": 0,
    }


def _most_telling(frames: list[Frame], count: int) -> list[Frame]:
    """Where the exception was raised, then the graph's own frames, then others; the inner before the outer.
    They stand in the order in which they were."""
    last = len(frames) - 1
    ranked = sorted(range(len(frames)), key=lambda index: (index != last, not frames[index].own, -index))
    return [frames[index] for index in sorted(ranked[:count])]


def _bounded(exceptions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exceptions in no more bytes than are kept: with fewer frames and words, then without the last."""
    for frames, characters in _SMALLER:
        if _size(exceptions) <= MAX_JSON_BYTES:
            return exceptions
        exceptions = [_smaller(exception, frames, characters) for exception in exceptions]
    while _size(exceptions) > MAX_JSON_BYTES:
        exceptions.pop()
    return exceptions


def _smaller(exception: dict[str, Any], frames: int, characters: int) -> dict[str, Any]:
    had = exception["frames"]
    kept = had[-frames:]
    return {
        **exception,
        "message": exception["message"][:characters],
        "frames": kept,
        "omitted": exception["omitted"] + len(had) - len(kept),
    }


def _size(exceptions: Sequence[dict[str, Any]]) -> int:
    return len(json.dumps(exceptions))  # ASCII with escapes, so no encoding of it is longer


def _named(fingerprint: Fingerprinter | None, error: BaseException, node: str | None) -> str | None:
    if fingerprint is None:
        return None
    try:
        name: object = fingerprint(error, node)
    except Exception as problem:
        _log.warning("failure.unnamed", error=type(problem).__name__)
        return None
    return name if isinstance(name, str) and name else None


def _shortened(text: str, limit: int) -> str:
    """The text's two ends where it is longer than that."""
    if len(text) <= limit:
        return text
    half = (limit - len(_CUT)) // 2
    return f"{text[:half]}{_CUT}{text[-half:]}"


def _name(text: str) -> str:
    return _storable(text)[:_MAX_NAME]


def _storable(text: str) -> str:
    """The text without what Postgres cannot keep: NUL and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
