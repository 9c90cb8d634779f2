"""Where a look for what is ready may begin: at the rank at which a look a moment ago has found the first.

An index entry of a run that was started goes when no transaction can see it any more. Beside one that is held
open none goes, and whoever looks from the beginning reads those of all that were started since. So the dearer
looks have become the fewer are made from the beginning.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Hashable, Mapping
from typing import Any

# Before every rank.
BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)
# Looks from the beginning take no more of the time than one part in so many: the dearer they are, the longer
# is remembered what they have found, up to so many seconds.
_PARTS = 500
_AT_MOST = 10.0
# So many are remembered; then all are forgotten.
_KEYS = 10_000


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


# After a look at all tenants' runs so many times what it took, in seconds up to so many, other looks begin
# where it has found something, or rest where they cannot.
_TIMES = 20
_LONGEST = 2.0
# The parameters of the first look.
FROM_THE_FIRST: Mapping[str, Any] = {
    "after_graph": "",
    "after_tenant": "",
    "floor": BEGINNING,
    "since": BEGINNING,
}


class Looks:
    """The looks of one kind, one after the other, at the runs of all tenants: `pick_many`, or `ring`.

    One sees so many pairs of a graph and a tenant; where there are more, the next goes on with those that
    follow. Where it has seen all, those that come soon after it begin at the lowest rank that it has found,
    and count as running what was claimed since the first that was running then: for so long that looks from
    the beginning take a twentieth of the time at most. What comes to be ready meanwhile with a lower rank is
    missed until then, but for two seconds at most.
    """

    def __init__(self) -> None:
        self._after = FROM_THE_FIRST
        self._known = FROM_THE_FIRST
        self._until = 0.0  # what is known holds
        self.rest = 0.0  # seconds until the next look, where the last has found nothing

    def begin(self) -> Mapping[str, Any]:
        """The parameters of the next look: after_graph and after_tenant, floor, and since."""
        return self._known if time.monotonic() < self._until else self._after

    def learn(self, began: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """began: the parameters of a look. row: of what it has given back, with saw_all, last_graph,
        last_tenant, floor, since, and took (seconds)."""
        dear = min(_TIMES * row["took"], _LONGEST)
        if not row["saw_all"]:
            self._after = {
                **FROM_THE_FIRST,
                "after_graph": row["last_graph"],
                "after_tenant": row["last_tenant"],
            }
            self._until = 0.0
            self.rest = dear
        elif began == FROM_THE_FIRST:
            self._known = {**FROM_THE_FIRST, "floor": row["floor"], "since": row["since"]}
            self._until = time.monotonic() + dear
            self.rest = 0.0
        else:
            self._after = FROM_THE_FIRST
            self.rest = dear
