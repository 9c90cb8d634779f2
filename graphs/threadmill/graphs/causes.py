"""What an exception was raised from."""

from __future__ import annotations

from collections.abc import Iterator


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, the one that it was raised `from`, the one that that was raised from, …; each once.

    `__context__` is not followed: what was being handled when an exception was raised need not be its reason.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:  # user code can tie a chain into a ring
        seen.add(id(link))
        yield link
        link = link.__cause__
