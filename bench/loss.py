"""One of two worker processes is killed while there is more to do than the fleet can: what becomes of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import psycopg

from bench.contestant import Stalled
from bench.mill import MillFleet
from bench.row import Row, at_least, at_most

SLOTS = 32  # of the whole fleet
BUSY = 0.95  # of the slots
WINDOW = 1.0  # seconds over which they are to be busy
LOOK_EVERY = 0.05
ENOUGH = 2 * SLOTS  # runs that wait, so that no slot has to be free
ENDS_AFTER = 300.0
LEAKED_AFTER = 15.0  # seconds with nothing pending; more than until the rescue of what a dead worker held
_STANDING = """
    select count(*) filter (where worker_id is distinct from %(lost)s),
        count(*) filter (where worker_id = %(lost)s),
        (select count(*) from (select from runs where status = 'pending' limit %(enough)s) as waits)
        from runs where status = 'running'
"""


@dataclass(frozen=True)
class Loss:
    """Another worker was started at once. In seconds since the kill:

    busy_again: until the slots of the living began to be busy for WINDOW, infinite where they never were.
    rescued: until the dead held no run any more. busy: the share of the slots that had a run after both, as
    long as enough waited. running: rows that still were so when nothing was pending. failed: runs that did
    not end with success.
    """

    busy_again: float
    rescued: float
    busy: float
    running: int
    failed: int


class Look(NamedTuple):
    """At so many seconds: runs of the living and of the dead, and how many wait, up to ENOUGH."""

    at: float
    living: int
    dead: int
    waiting: int


def measure(fleet: MillFleet) -> Loss:
    """Returns when all is done. Raises Stalled and ChildFailed."""
    began = time.perf_counter()
    pid = fleet.lose_one()
    with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
        ((lost,),) = connection.execute("select id from workers where pid = %s", [pid]).fetchall()
        with _looking(fleet.saver_url, lost, began) as looks:
            fleet.add(1)
            _wait_for_end(looks)
        found = connection.execute("select status, count(*) from runs group by 1").fetchall()
    statuses: dict[str, int] = dict(found)
    return summed_up(looks, statuses.get("running", 0), sum(statuses.values()) - statuses.get("success", 0))


def _wait_for_end(looks: Sequence[Look]) -> None:
    """Raises Stalled where runs wait for too long. Rows that stay `running` are waited for a while only: they
    are what is looked for."""
    began = time.perf_counter()
    ends = math.inf
    while not looks or looks[-1].waiting or looks[-1].living + looks[-1].dead:
        now = time.perf_counter()
        if now - began > ENDS_AFTER:
            raise Stalled(f"after a worker was lost: {looks[-1:]}")
        if looks and not looks[-1].waiting:
            ends = min(ends, now + LEAKED_AFTER)
        if now > ends:
            return
        time.sleep(LOOK_EVERY)


def summed_up(looks: Sequence[Look], running: int, failed: int) -> Loss:
    busy_again = next(
        (
            look.at
            for look in looks
            if look.waiting >= ENOUGH and _busy(looks, look.at, look.at + WINDOW) >= BUSY
        ),
        math.inf,
    )
    rescued = max((look.at for look in looks if look.dead), default=0.0)
    return Loss(busy_again, rescued, _busy(looks, max(busy_again, rescued), math.inf), running, failed)


def _busy(looks: Sequence[Look], since: float, until: float) -> float:
    """The share of the slots that had a run meanwhile; 0 where nobody looked."""
    counted = [look.living / SLOTS for look in looks if since < look.at <= until and look.waiting >= ENOUGH]
    return mean(counted) if counted else 0.0


@contextmanager
def _looking(url: str, lost: object, began: float) -> Iterator[list[Look]]:
    """What is seen until it is left. On a thread, as the start of a worker blocks."""
    looks: list[Look] = []
    over = threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not over.wait(LOOK_EVERY):
                found = connection.execute(_STANDING, {"lost": lost, "enough": ENOUGH}).fetchone()
                assert found is not None
                looks.append(Look(time.perf_counter() - began, *found))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()


def rows(section: str, found: Loss) -> list[Row]:
    label = "a worker is killed and another started: "
    return [
        Row(section, label + "all slots busy after", found.busy_again, "s"),
        Row(section, "  its runs are given back after", found.rescued, "s"),
        Row(section, "  slots with a run from then on", found.busy * 100, "%", aim=at_least(BUSY * 100)),
        Row(section, "  runs that did not end with success", found.failed, aim=at_most(0)),
        Row(section, "  rows still running at the end", found.running, aim=at_most(0)),
    ]
