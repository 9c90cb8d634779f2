"""The drain's dealings with the ledger, as plans: taking groups, reading outcomes, giving letters back."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

from threadmill.core.doorbell import Bell
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    announce_new_version,
    enter_groups,
    groups_due,
    lease_groups,
    letters_due,
    lock_threads,
    outcomes,
    park_group,
    release_groups,
    renew_groups,
    served_versions,
    settle_group,
    take_turns,
    under_way,
)
from threadmill.dlq.replaying import replay_locked, waking
from threadmill.dlq.velocity import Bucket, admit
from threadmill.dlq.window import Window

BY = "drain"
# So many pairs of a group and a tenant are looked at in one go, and so many tenants of one group.
PAIRS = 1_000
TENANTS = 200
# So many letters are parked, or made due by a new version, in one transaction.
BATCH = 1_000
# How long a lane or the other drainers are waited for, in milliseconds.
PATIENCE = "2000"


class Drainer(NamedTuple):
    """Who drains. lease: seconds for which a group is its own. stale: when a back-off is forgotten."""

    id: uuid.UUID
    lease: float
    stale: float


class Place(NamedTuple):
    """A pair of a group and a tenant, after which the next look begins."""

    fingerprint: str = ""
    tenant: str = ""


def find_due(after: Place) -> Plan[tuple[list[str], Place]]:
    """Groups with letters that are due, and where to go on looking."""
    (rows,) = yield Batch([Step(groups_due(), {**after._asdict(), "limit": PAIRS})])
    (found,) = rows
    ended = found["pairs"] < PAIRS
    return list(found["due"]), Place() if ended else Place(found["fingerprint"], found["tenant"])


def take(drainer: Drainer, fingerprints: Collection[str]) -> Plan[tuple[Rows, Rows]]:
    """Those of the groups that are the drainer's now, and what is being replayed of them all."""
    names = {"fingerprints": list(fingerprints)}
    _, taken, replaying = yield Batch(
        [
            Step(enter_groups(), names),
            Step(
                lease_groups(),
                {**names, "drainer": drainer.id, "lease": drainer.lease, "stale": drainer.stale},
            ),
            Step(under_way(), names),
        ]
    )
    return taken, replaying


def release(drainer: Drainer, fingerprints: Collection[str]) -> Plan[None]:
    yield Batch([Step(release_groups(), {"fingerprints": list(fingerprints), "drainer": drainer.id})])


def read_outcomes(letters: Collection[uuid.UUID]) -> Plan[Rows]:
    """How these letters stand now."""
    (rows,) = yield Batch([Step(outcomes(), {"letter_ids": list(letters)})])
    return rows


class Lesson(NamedTuple):
    """What was learnt about a group. rest: seconds for which it is not touched; None: it goes on."""

    window: Window
    rest: float | None


def settle(drainer: Drainer, lessons: Mapping[str, Lesson]) -> Plan[None]:
    yield Batch(
        [
            Step(
                settle_group(),
                {
                    "fingerprint": fingerprint,
                    "drainer": drainer.id,
                    "window": lesson.window.size,
                    "backoffs": lesson.window.backoffs,
                    "strays": lesson.window.strays,
                    "rest": lesson.rest,
                },
            )
            for fingerprint, lesson in sorted(lessons.items())
        ]
    )


def park_some(fingerprint: str, reason: str) -> Plan[int]:
    """How many of the group's letters were parked; none when all are."""
    parameters = {"fingerprint": fingerprint, "limit": BATCH, "by": BY, "reason": reason}
    (rows,) = yield Batch([Step(park_group(), parameters)])
    return int(rows[0]["parked"])


class Look(NamedTuple):
    """Of which group letters are wanted. after: the tenant whose turn was last."""

    fingerprint: str
    after: str


class Found(NamedTuple):
    """What came of a look. given: the letters that were given back, and which replay it is of each.

    more: there are others that are due, but may not go yet. after: the tenant whose turn was last.
    own: whether the group is the drainer's to go on with.
    """

    given: dict[uuid.UUID, int]
    more: bool
    after: str
    own: bool


class GivenBack(NamedTuple):
    """found: by group. bells: to be rung. wait: seconds until a limit lets more through."""

    found: dict[str, Found]
    bells: list[Bell]
    wait: float


def give_back(drainer: Drainer, looks: Sequence[Look], most: int, bucket: Bucket) -> Plan[GivenBack]:
    """Gives back the runs of what is due, as far as the windows and the limits let them go.

    most: how many letters may be replayed at once in all.
    """
    steps = [
        Step(
            letters_due(),
            {**look._asdict(), "drainer": drainer.id, "most": most, "tenants": TENANTS},
        )
        for look in looks
    ]
    _, *answers = yield Batch([Step(take_turns(), {"patience": PATIENCE}), *steps], final=False)
    due = [[row for row in rows if row["id"] is not None] for rows in answers]
    free = max((rows[0]["free"] for rows in answers if rows), default=0)
    wanted = [row for row in chain.from_iterable(zip_longest(*due)) if row is not None][: max(free, 0)]
    may_go = wanted[: bucket.allowed(len(wanted))]
    waits = [rows[0]["next_in"] for rows in answers if rows and rows[0]["next_in"] is not None]
    if len(may_go) < len(wanted):
        waits.append(bucket.next_in())
    given: dict[uuid.UUID, Bell] = {}
    if may_go:
        admission = yield from admit(may_go)
        given = yield from _replay(admission.letters, admission.steps)
        bucket.spend(len(admission.letters))
        waits += admission.waits
    found = {
        look.fingerprint: _found(look, rows, letters, given)
        for look, rows, letters in zip(looks, answers, due, strict=True)
    }
    return GivenBack(found, waking(given.values()), min(waits, default=0.0))


def _replay(letters: Sequence[Row], spending: list[Step]) -> Plan[dict[uuid.UUID, Bell]]:
    """The bells of those that were given back; another drainer or an operator was first with the others."""
    if not letters:
        return {}
    lanes = {
        "tenants": [letter["tenant"] for letter in letters],
        "thread_ids": [letter["thread_id"] for letter in letters],
    }
    return (yield from replay_locked(letters, "auto", BY, ahead=[*spending, Step(lock_threads(), lanes)]))


def _found(look: Look, rows: Rows, due: Rows, given: Mapping[uuid.UUID, Bell]) -> Found:
    if not rows:
        return Found({}, more=False, after=look.after, own=False)
    went = [letter for letter in due if letter["id"] in given]
    seen = look.after if due else rows[0]["last_tenant"] or ""
    after = went[-1]["tenant"] if went else seen
    more = len(went) < len(due) or rows[0]["next_in"] is not None
    return Found({letter["id"]: letter["replays"] + 1 for letter in went}, more, after, own=True)


def read_versions() -> Plan[dict[str, tuple[str, str]]]:
    """The version and the topology of each graph that is served."""
    (rows,) = yield Batch([Step(served_versions(), {})])
    return {row["name"]: (row["version"], row["topology_hash"]) for row in rows}


def announce() -> Plan[int]:
    """Makes letters of graphs that have changed due once, as canaries; returns how many, 0 when all are."""
    (rows,) = yield Batch([Step(announce_new_version(), {"limit": BATCH})], final=False)
    if rows:
        yield Batch([Step(renew_groups(), {"letter_ids": [row["id"] for row in rows]})])
    return len(rows)
