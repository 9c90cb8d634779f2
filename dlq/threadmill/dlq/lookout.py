"""Finds in the ledger what is worth an alarm, a cheap look at a time.

New groups and held lanes are told by comparing what stands there with what stood there before, so nothing
can slip through by committing late. What was parked is read from the actions (`ActionTail`). A group grows
where more letters than so many came within a while, by the time in their ids. No look reads more of the
dead letters than these, however many there are: each group is one look at an index.

Memory holds the fingerprints of the groups and the ids of the lanes that were told of.
"""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from threadmill.core.models import SCHEMA
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.dlq.action_tail import ActionTail
from threadmill.dlq.alarm import GROUP_GROWS, HELD, NEW_GROUP, PARKED, Alarm
from threadmill.dlq.filter import first_id

GROUPS_PAGE = 1_000
# How far the letters of a group are counted, unless more are asked for.
MOST_COUNTED = 1_000
# Those that were held last, of the lanes that are held for too long.
MOST_LANES = 10_000
# How many ids, or tenants, an alarm names.
MOST_NAMED = 20

_NOW = text("select now() as now")
_GROUPS = text(
    f"""
    select fingerprint, created_at, (
        select count(*) from (
            select from {SCHEMA}.dead_letters as letter
            where letter.fingerprint = replay_group.fingerprint and letter.id >= :from limit :most
        ) as recent
    ) as recent
    from {SCHEMA}.replay_groups as replay_group
    where fingerprint > :after order by fingerprint limit :page
    """  # noqa: S608 - the schema's name is a constant
)
_LANES = text(
    f"""
    select letter_id, since from {SCHEMA}.held_lanes
    where since <= now() - make_interval(secs => :seconds) order by since desc limit :limit
    """  # noqa: S608 - the schema's name is a constant
)
_FACTS = "id, fingerprint, tenant, graph, node, exception_type, reason"
_NEWEST = text(
    f"""
    select newest.* from unnest(cast(:fingerprints as text[])) as wanted (fingerprint)
    cross join lateral (
        select {_FACTS} from {SCHEMA}.dead_letters as letter
        where letter.fingerprint = wanted.fingerprint order by letter.id desc limit 1
    ) as newest
    """  # noqa: S608 - constants
)
# One row of each group, however many of its letters there are.
_LETTERS = text(
    f"""
    select fingerprint, min(graph) as graph, min(node) as node, min(exception_type) as exception_type,
        min(reason) as reason, min(tenant) as tenant, (array_agg(id order by id))[1] as id,
        count(*) as count, (array_agg(id order by id))[1:{MOST_NAMED}] as ids,
        (array_remove(array_agg(distinct tenant), null))[1:{MOST_NAMED}] as tenants
    from {SCHEMA}.dead_letters where id = any(cast(:ids as uuid[])) group by fingerprint order by fingerprint
    """  # noqa: S608 - constants
)


@dataclass
class _Findings:
    """What was found and is not told yet: a look that is broken off loses none of it."""

    new: list[str] = field(default_factory=list)
    growing: dict[str, int] = field(default_factory=dict)
    parked: list[uuid.UUID] = field(default_factory=list)
    held: list[uuid.UUID] = field(default_factory=list)


class Lookout:
    """One watch's memory."""

    def __init__(
        self,
        *,
        growing: int,
        within: float,
        held_longer_than: float | None,
        since: datetime.datetime | None = None,
    ) -> None:
        """growing: a group grows where more letters than that come within so many seconds.

        held_longer_than: seconds; None tells of no lanes. since: what happened before is not told; None
        takes the first look.
        """
        self._growing_by, self._within = growing, within
        self._held_longer_than = held_longer_than
        self._since = since
        self._is_first = True
        self._known: set[str] = set()
        self._growing: set[str] = set()
        self._told_lanes: set[uuid.UUID] = set()
        self._actions = ActionTail()
        self._found = _Findings()

    def look(self) -> Plan[list[Alarm]]:
        """What has happened since the last look."""
        (rows,) = yield Batch([Step(_NOW, {})], final=False)
        now: datetime.datetime = rows[0]["now"]
        since = self._since = self._since or now
        if self._is_first:
            yield from self._actions.start(since)
        yield from self._look_at_groups(now, since)
        yield from self._look_at_actions(since)
        if self._held_longer_than is not None:
            yield from self._look_at_lanes(self._held_longer_than, since)
        self._is_first = False
        alarms = yield from self._alarms(now)
        self._found = _Findings()
        return alarms

    def _look_at_groups(self, now: datetime.datetime, since: datetime.datetime) -> Plan[None]:
        start = max(since, now - datetime.timedelta(seconds=self._within))
        parameters = {"from": first_id(start), "most": max(MOST_COUNTED, self._growing_by + 1)}
        after, seen = "", set[str]()
        while True:
            step = Step(_GROUPS, {**parameters, "after": after, "page": GROUPS_PAGE})
            (rows,) = yield Batch([step], final=False)
            for row in rows:
                self._note_group(row, since)
            seen |= {row["fingerprint"] for row in rows}
            if len(rows) < GROUPS_PAGE:
                break
            after = rows[-1]["fingerprint"]
        # What was removed and comes again is new again.
        self._known &= seen
        self._growing &= seen

    def _note_group(self, row: Row, since: datetime.datetime) -> None:
        fingerprint = row["fingerprint"]
        if fingerprint not in self._known:
            self._known.add(fingerprint)
            if not self._is_first or row["created_at"] >= since:
                self._found.new.append(fingerprint)
        if row["recent"] <= self._growing_by:
            self._growing.discard(fingerprint)  # it is told again when it grows again
        elif fingerprint not in self._growing:
            self._growing.add(fingerprint)
            self._found.growing[fingerprint] = row["recent"]

    def _look_at_actions(self, since: datetime.datetime) -> Plan[None]:
        for action in (yield from self._actions.read("park")):
            is_told = self._is_first and action.at < since
            if action.letter_id is not None and not is_told:
                self._found.parked.append(action.letter_id)

    def _look_at_lanes(self, seconds: float, since: datetime.datetime) -> Plan[None]:
        (rows,) = yield Batch([Step(_LANES, {"seconds": seconds, "limit": MOST_LANES})], final=False)
        for row in rows:
            if row["letter_id"] in self._told_lanes:
                continue
            self._told_lanes.add(row["letter_id"])
            if not self._is_first or row["since"] + datetime.timedelta(seconds=seconds) >= since:
                self._found.held.append(row["letter_id"])
        if len(rows) < MOST_LANES:
            self._told_lanes &= {row["letter_id"] for row in rows}

    def _alarms(self, now: datetime.datetime) -> Plan[list[Alarm]]:
        found = self._found
        fingerprints = list({*found.new, *found.growing})
        newest, parked, held = yield Batch(
            [
                Step(_NEWEST, {"fingerprints": fingerprints}),
                Step(_LETTERS, {"ids": found.parked}),
                Step(_LETTERS, {"ids": found.held}),
            ],
            final=False,
        )
        groups = {row["fingerprint"]: row for row in newest}
        most = max(MOST_COUNTED, self._growing_by + 1)
        return [
            *(Alarm(NEW_GROUP, now, _of_group(name, groups.get(name))) for name in found.new),
            *(
                Alarm(
                    GROUP_GROWS,
                    now,
                    {
                        **_of_group(name, groups.get(name)),
                        "count": count,
                        "more": count >= most,
                        "seconds": self._within,
                    },
                )
                for name, count in found.growing.items()
            ),
            *(Alarm(PARKED, now, _of_letters(row)) for row in parked),
            *(Alarm(HELD, now, {**_of_letters(row), "seconds": self._held_longer_than}) for row in held),
        ]


def _of_group(fingerprint: str, letter: Row | None) -> dict[str, Any]:
    """What an alarm says of a group, by one of its letters; None: they have all become others'."""
    return {
        "group": fingerprint,
        "graph": letter and letter["graph"],
        "node": letter and letter["node"],
        "exception": letter and letter["exception_type"],
        "reason": letter and letter["reason"],
        "tenant": letter and letter["tenant"],
        "letter": letter and str(letter["id"]),
    }


def _of_letters(row: Row) -> dict[str, Any]:
    """What an alarm says of a group's letters: one alarm of each group, so a flood is no flood of alarms."""
    return {
        **_of_group(row["fingerprint"], row),
        "count": row["count"],
        "letters": [str(letter_id) for letter_id in row["ids"]],
        "tenants": row["tenants"],
    }
