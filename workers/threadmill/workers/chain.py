"""The exceptions that belong to one failure: the one that was raised, and what it came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Link = Literal["raised", "caused by", "while handling", "member of"]

# Of one failure; a group may hold more members than anyone will read about.
MAX_LINKS = 1_000


@dataclass(frozen=True, slots=True)
class Linked:
    """An exception, and how it is linked to another. of: that one's index; None for the one raised."""

    error: BaseException
    link: Link
    of: int | None


def chain(error: BaseException) -> list[Linked]:
    """The exception that was raised, then what it leads to, nearest first; each once, rings notwithstanding.

    What Python itself would show: an exception's cause if it has one, else what was being handled unless
    that is suppressed; and the members of a group.
    """
    found: list[Linked] = []
    seen: set[int] = set()
    waiting = deque([Linked(error, "raised", None)])
    while waiting and len(found) < MAX_LINKS:
        linked = waiting.popleft()
        if id(linked.error) not in seen:
            seen.add(id(linked.error))
            waiting.extend(_next(linked.error, len(found)))
            found.append(linked)
    return found


def _next(error: BaseException, index: int) -> Iterator[Linked]:
    if error.__cause__ is not None:
        yield Linked(error.__cause__, "caused by", index)
    elif error.__context__ is not None and not error.__suppress_context__:
        yield Linked(error.__context__, "while handling", index)
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions[:MAX_LINKS]:
            yield Linked(member, "member of", index)
