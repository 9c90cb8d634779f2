"""Where a look for what is ready may begin, and how soon it may be made again.

It may begin at the rank at which a look a moment ago has found the first.

An index entry of a run that was started goes when no transaction can see it any more. Beside one that is held
open none goes, and whoever looks from the beginning reads those of all that were started since. So the dearer
looks have become the fewer are made from the beginning, and the fewer where the last has found nothing.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Hashable

# Before every rank.
BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)
# Looks from the beginning take no more of the time than one part in so many: the dearer they are, the longer
# is remembered what they have found, up to so many seconds.
_PARTS = 500
_AT_MOST = 10.0
# Who has found nothing waits so many times what that took, in seconds up to so many, as a bell may be lost.
_RESTS = 20
_LONGEST_REST = 2.0
# So many are remembered; then all are forgotten.
_KEYS = 10_000


def rest_after(took: float) -> float:
    """For how many seconds not to look for runs again after a look in vain that took so many."""
    return min(_RESTS * took, _LONGEST_REST)


class Floors:
    """Remembers, for so many seconds at least, where looks have begun to find something, by what was sought.

    What is ready later and has a lower rank (a priority, a retry, a thread's next run that was enqueued long
    ago) is missed until then. Threads may share it: a lost memory costs a look from the beginning.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._floors: dict[Hashable, tuple[datetime.datetime, float]] = {}  # and until when they hold

    def of(self, key: Hashable) -> datetime.datetime:
        """The rank from which to look."""
        floor, until = self._floors.get(key, (BEGINNING, 0.0))
        return floor if time.monotonic() < until else BEGINNING

    def learn(
        self, key: Hashable, began: datetime.datetime, found: datetime.datetime, took: float = 0.0
    ) -> None:
        """A look that began at this rank has found nothing before that one. took: its seconds, if known."""
        if began == BEGINNING:
            if len(self._floors) >= _KEYS:
                self._floors.clear()
            lasts = max(self._seconds, min(_PARTS * took, _AT_MOST))
            self._floors[key] = found, time.monotonic() + lasts
        elif (known := self._floors.get(key)) is not None:
            # It holds for no longer, so that looks begin at the beginning again and again.
            self._floors[key] = max(known[0], found), known[1]
