"""Reads what was done about dead letters as it is committed: each row once, and none missed.

The ids of `dead_letter_actions` ascend in the order in which they are drawn, and a transaction that drew an
early one may commit after others that drew later ones. Who reads on from the last id misses it; who looks
back for a while misses what takes longer than that. So the ids that were passed over are kept, as ranges,
each with the snapshot's `xmax` at that time. A transaction draws an id after its own id was assigned (its
first statement locks a thread, or changes a letter), so whoever may still fill a hole is older than that
`xmax`; once the snapshot's `xmin` has come so far, all of these have ended, and what they have not filled
stays empty. (PostgreSQL, "System Information Functions", pg_current_snapshot.)
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import text

from threadmill.core.models import SCHEMA
from threadmill.core.statement import Batch, Plan, Row, Step

PAGE = 10_000
END = 2**63 - 1

_SNAPSHOT = """
    select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as xmin,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax
"""
# Lateral, so that each range is one stretch of the primary key.
_READ = text(
    f"""
    select snapshot.xmin, snapshot.xmax, found.id, found.at, found.letter_id, found.action
    from ({_SNAPSHOT}) as snapshot left join (
        select action.id, action.at, action.letter_id, action.action
        from unnest(cast(:lows as bigint[]), cast(:highs as bigint[])) as range (low, high)
        cross join lateral (
            select id, at, letter_id, action from {SCHEMA}.dead_letter_actions
            where id >= range.low and id <= range.high and id > :after order by id limit :page
        ) as action
        order by action.id limit :page
    ) as found on true
    order by found.id
    """  # noqa: S608 - the schema's name is a constant
)
_LOOK_BACK = text(
    f"""
    select count(*) as count, min(id) as first, max(at) as newest from (
        select id, at from {SCHEMA}.dead_letter_actions where id < :before order by id desc limit :page
    ) as page
    """  # noqa: S608 - the schema's name is a constant
)


class Range(NamedTuple):
    """Ids that were not seen yet. settled_at: the xmin at which none of them can come any more."""

    low: int
    high: int
    settled_at: int | None = None  # None: the end of the table, where more always come


class Action(NamedTuple):
    """When something was done about a dead letter, or about several."""

    at: datetime.datetime
    letter_id: uuid.UUID | None


class ActionTail:
    """Where one reader stands."""

    def __init__(self) -> None:
        self._unseen: list[Range] = []

    def start(self, since: datetime.datetime) -> Plan[None]:
        """Finds a place before everything that was done since then."""
        before, found = END, True
        while found:
            (rows,) = yield Batch([Step(_LOOK_BACK, {"before": before, "page": PAGE})], final=False)
            found = rows[0]["first"] is not None
            before = rows[0]["first"] or 0
            # A whole page is older: what was drawn before it has ended long ago.
            if rows[0]["count"] == PAGE and rows[0]["newest"] < since:
                break
        self._unseen = [Range(before, END)]

    def read(self, action: str) -> Plan[list[Action]]:
        """Where this was done, as far as it has been committed since the last time."""
        found: list[Action] = []
        unseen: list[Range] = []
        after = -1
        while after < END:
            rows = yield from self._page(after)
            ids = [row["id"] for row in rows if row["id"] is not None]
            reached = ids[-1] if len(ids) == PAGE else END
            snapshot = (rows[0]["xmin"], rows[0]["xmax"])
            unseen += left_unseen(self._unseen, ids, after, reached, *snapshot)
            found += [Action(row["at"], row["letter_id"]) for row in rows if row["action"] == action]
            after = reached
        self._unseen = unseen
        return found

    def _page(self, after: int) -> Plan[Sequence[Row]]:
        parameters = {
            "lows": [unseen.low for unseen in self._unseen],
            "highs": [unseen.high for unseen in self._unseen],
            "after": after,
            "page": PAGE,
        }
        (rows,) = yield Batch([Step(_READ, parameters)], final=False)
        return rows


def left_unseen(
    unseen: Sequence[Range], ids: Sequence[int], after: int, reached: int, xmin: int, xmax: int
) -> Iterator[Range]:
    """What of these ranges, between after (not itself) and reached, has still to come.

    ids: those that a snapshot showed there, ascending.
    """
    for wanted in unseen:
        low, high = max(wanted.low, after + 1), min(wanted.high, reached)
        for hole in _holes(low, high, [found for found in ids if low <= found <= high]):
            if wanted.settled_at is None:
                yield hole if hole.high == END else hole._replace(settled_at=xmax)
            elif wanted.settled_at > xmin:
                yield hole._replace(settled_at=wanted.settled_at)


def _holes(low: int, high: int, ids: Sequence[int]) -> Iterator[Range]:
    for found in ids:
        if found > low:
            yield Range(low, found - 1)
        low = found + 1
    if low <= high:
        yield Range(low, high)
