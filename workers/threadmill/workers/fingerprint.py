"""What a thousand failures of one outage have in common."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from threadmill.graphs import Project
from threadmill.workers.chain import Linked
from threadmill.workers.frames import frames_of

# Python 3.12 has no frames for these any more, and leaves them out of what is defined inside them.
_COMPREHENSION = r"<(?:list|set|dict)comp>"
_INLINED = re.compile(rf"(?:\.<locals>)?\.?(?:{_COMPREHENSION}\.)*{_COMPREHENSION}$|{_COMPREHENSION}\.")

# An exception that the graph's code saw: its type, and where it went through that code.
_Part = tuple[str, tuple[str, ...]]


def fingerprint_of(links: Sequence[Linked], graph: str, node: str | None, project: Project) -> str:
    """The name of the group that a failure belongs to: 16 hexadecimal digits.

    It is made of the graph, the node, and of each exception that went through the graph's own code: its type
    with its module, and the own functions with their files that it went through. No message, line number or
    path of a machine is in it, so failures that differ by an id, a time or a release that moved some lines
    are one group.

    Exceptions that only libraries saw are left out, since one outage gives many: where a client raises
    `APIConnectionError`, beneath it is now a refused connection, now a timeout, now a failed look-up. What
    the graph's code wrapped itself is in it, since "tool failed" may be raised from an outage and from a bug,
    and a bug among them would hold back all. If no own code was run, the exception that was raised counts.

    Which members of a group fail together is chance, so one stands for all: the first in alphabetical order.
    Functions count once, as the depth of a recursion is chance too.
    """
    words = [graph, node or ""]
    for kind, functions in _parts(links, project) or (_part(links[0].error, project),):
        words += [kind, *functions]
    return _digest(words)


def fingerprint_of_type(error: BaseException, graph: str) -> str:
    """The name of the group by the exception's type alone."""
    return _digest([graph, "", _kind(error)])


def fingerprint_of_name(name: str, graph: str) -> str:
    """The name of a group that the graph's owner has named, in the form that all have."""
    return _digest([graph, "named", name])


def _parts(links: Sequence[Linked], project: Project) -> tuple[_Part, ...]:
    """What own code saw of the failure, the outermost first."""
    following: dict[int, list[int]] = {}
    for index, linked in enumerate(links):
        if linked.of is not None:
            following.setdefault(linked.of, []).append(index)
    parts: list[tuple[_Part, ...]] = [()] * len(links)
    # From the end, as what an exception came from stands behind it; and in a loop, as a chain may be longer
    # than Python's stack.
    for index in reversed(range(len(links))):
        own = _part(links[index].error, project)
        known = bool(own[1])
        found = [own] if known else []
        members = []
        for other in following.get(index, ()):
            if links[other].link != "member of":
                found += parts[other]
            elif parts[other]:
                members.append(parts[other])
            elif known:
                members.append((_part(links[other].error, project),))
        found += min(members, default=())
        parts[index] = tuple(dict.fromkeys(found))
    return parts[0]


def _part(error: BaseException, project: Project) -> _Part:
    functions = (
        f"{frame.file}:{_INLINED.sub('', frame.function) or '<module>'}"
        for frame in frames_of(error, project)
        if frame.own
    )
    return _kind(error), tuple(dict.fromkeys(functions))


def _kind(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "backslashreplace")).hexdigest()[:16]
