"""Where a look for what is ready may begin: below the rank at which a look a moment ago has found the first.

An index entry of a run that was started goes when no transaction can see it any more. Beside one that is held
open none goes, and whoever looks from the beginning reads those of all that were started since.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Hashable

# Before every rank.
BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)
# So many are remembered; then all are forgotten.
_KEYS = 10_000


class Floors:
    """Remembers, for so many seconds, where looks have begun to find something, by what was looked for.

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

    def learn(self, key: Hashable, began: datetime.datetime, found: datetime.datetime) -> None:
        """A look that began at this rank has found nothing before that one."""
        if began == BEGINNING:
            if len(self._floors) >= _KEYS:
                self._floors.clear()
            self._floors[key] = found, time.monotonic() + self._seconds
        elif (known := self._floors.get(key)) is not None:
            # It holds for no longer, so that looks begin at the beginning again and again.
            self._floors[key] = max(known[0], found), known[1]
