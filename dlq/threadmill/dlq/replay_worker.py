"""The replay worker: gives back the runs of dead letters that are due, group by group, as TCP starts.

Whether a replay succeeded is written by the worker that executes the run, in the transaction that ends it:
the letter is then resolved, or waits again. The replay worker reads that from the letters which it gave back,
and widens, halves or closes the window of their group. Whatever another has to know is in the ledger: the
window and the back-off of a group, who works on it and until when, and, as rows, what is being replayed. So a
replay worker that dies leaves nothing behind, and another takes its groups over when their lease has passed.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import psycopg
import structlog
from uuid_utils.compat import uuid7

from threadmill.core.backoff import replay_delay
from threadmill.core.database import Database
from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import Unavailable
from threadmill.core.settings import Settings
from threadmill.core.statement import Row, Rows
from threadmill.dlq.draining import (
    Drainer,
    Found,
    Lesson,
    Look,
    Place,
    announce,
    find_due,
    give_back,
    park_some,
    read_outcomes,
    read_versions,
    release,
    settle,
    take,
)
from threadmill.dlq.velocity import Bucket
from threadmill.dlq.window import Window

# How soon the outcome of a replay is noticed, in seconds.
REACTION = 0.02
# For how long a group is a drainer's, in seconds; it is renewed at least every third of it.
LEASE = 10.0
# A drainer works on no more groups than this at a time; more would not fit into `replay_window` anyway.
GROUPS = 64
# A look that found less than there was room for is followed by a rest of so many times its duration.
REST = 10.0
# How often the graphs are asked for new versions, in seconds; whatever they answer, every minute all letters
# are gone through, as one may have been recorded late with the version of before.
VERSIONS_EVERY, ALL_EVERY = 5.0, 60.0

_log = structlog.get_logger("threadmill.replay")


@dataclass(slots=True)
class Flight:
    """A replay under way. number: which of its letter's replays it is."""

    number: int
    canary: bool


@dataclass(slots=True)
class Group:
    """A group that this drainer works on. after: the tenant whose turn was last.

    look_at: not to be looked at before. waits: there is more to give back, but it may not go yet. unsaved:
    what was learnt is not in the ledger yet; with it rest, the seconds to be waited after a canary that
    failed, and hopeless, whether that was one too many.
    """

    window: Window
    flights: dict[uuid.UUID, Flight] = field(default_factory=dict)
    after: str = ""
    look_at: float = 0.0
    waits: bool = False
    unsaved: bool = False
    rest: float | None = None
    hopeless: bool = False

    def learn(self, window: Window) -> None:
        self.unsaved = self.unsaved or window != self.window
        self.window = window


class ReplayWorker:
    """Drains dead letters until it is stopped. Several may run; one of them works on a group at a time."""

    def __init__(self, settings: Settings, rate: float | None = None) -> None:
        """rate: replays a second, of this one. Raises InvalidOption and ServicesNotFound."""
        self._bucket = Bucket(rate)
        self._settings = settings.located()
        self._database = Database(self._settings)
        self._doorbell = Doorbell(self._settings)
        # Beside the next round: a bell takes as long as a letter.
        self._ringer = ThreadPoolExecutor(1, thread_name_prefix="threadmill-replay-bells")
        self._drainer = Drainer(uuid7(), LEASE, self._settings.replay_delay_max)
        self._stopping = threading.Event()
        self._groups: dict[str, Group] = {}
        self._place = Place()
        self._wait = 0.0
        self._look_again_at = 0.0
        self._versions: dict[str, tuple[str, str]] = {}
        self._versions_at = self._announce_all_at = 0.0

    def run(self) -> None:
        """Drains until `stop` is called; waits through times in which Postgres is away.

        Raises DatabaseUnavailable or DatabaseNotMigrated where it cannot even begin.
        """
        self._database.carry_out(read_versions())
        _log.info("replay.ready", drainer=str(self._drainer.id))
        try:
            while not self._stopping.is_set():
                self._stopping.wait(self._step())
            self._release(list(self._groups))
        except (Unavailable, psycopg.OperationalError):
            pass  # its leases pass by themselves
        finally:
            self.close()

    def close(self) -> None:
        """Closes its connections. `run` does so at its end."""
        self._ringer.shutdown()
        self._database.close()
        self._doorbell.close()

    def stop(self) -> None:
        """Ends `run` after the step under way; may be called from a signal handler."""
        self._stopping.set()

    def drain_once(self) -> int:
        """One round: reads what came of what was given back, and gives back what may go now; how many."""
        self._announce()
        self._settle()
        self._take_groups()
        for group in self._groups.values():
            group.look_at = 0.0
        return self._give_back()

    def _step(self) -> float:
        """One round; returns for how many seconds nothing is to be done."""
        try:
            if time.monotonic() >= self._look_again_at:
                self._announce()
                self._take_groups()
                self._look_again_at = time.monotonic() + min(self._settings.replay_interval, LEASE / 3)
            self._settle()
            self._give_back()
        except (Unavailable, psycopg.OperationalError) as error:
            _log.warning("replay.waits", error=type(error).__name__)
            return self._settings.replay_interval
        return self._pause()

    def _pause(self) -> float:
        until_look = max(self._look_again_at - time.monotonic(), 0)
        if any(group.flights for group in self._groups.values()):
            return min(until_look, REACTION)
        if any(group.waits for group in self._groups.values()):
            return min(until_look, max(self._wait, REACTION))
        return until_look

    # -----------------------------------------------------------------------------------------------
    # Groups

    def _take_groups(self) -> None:
        """Goes on with its groups, and takes some that have letters due and that nobody works on."""
        due, self._place = self._database.carry_out(find_due(self._place))
        idle = [
            name
            for name, group in self._groups.items()
            if not (group.flights or group.unsaved or name in due)
        ]
        self._release(idle)
        new = [fingerprint for fingerprint in due if fingerprint not in self._groups]
        random.shuffle(new)  # where there are more than fit, each has its turn
        wanted = [*self._groups, *new[: max(GROUPS - len(self._groups), 0)]]
        if not wanted:
            return
        taken, replaying = self._database.carry_out(take(self._drainer, wanted))
        groups = {row["fingerprint"]: self._group(row) for row in taken}
        for lost in self._groups.keys() - groups.keys():
            _log.warning("replay.group_lost", group=lost)
        self._groups = groups
        self._adopt(replaying)

    def _group(self, row: Row) -> Group:
        """The group as the ledger has it, with what is known of it here."""
        known = self._groups.get(row["fingerprint"])
        window = Window(row["window"], row["backoffs"], row["strays"])
        if known is None or not row["mine"]:
            return Group(window)
        if not known.unsaved:
            known.window = window
        return known

    def _adopt(self, replaying: Rows) -> None:
        """Watches what others are replaying of its groups too, among them a drainer that has died."""
        for row in replaying:
            if (group := self._groups.get(row["fingerprint"])) is not None:
                group.flights.setdefault(row["id"], Flight(row["replays"], canary=False))

    def _release(self, fingerprints: list[str]) -> None:
        if fingerprints:
            self._database.carry_out(release(self._drainer, fingerprints))
            for fingerprint in fingerprints:
                del self._groups[fingerprint]

    # -----------------------------------------------------------------------------------------------
    # Outcomes

    def _settle(self) -> None:
        """Learns from the replays that are over, and keeps what was learnt in the ledger."""
        flying = {letter: name for name, group in self._groups.items() for letter in group.flights}
        if flying:
            rows = self._database.carry_out(read_outcomes(flying))
            over = [row for row in rows if self._is_over(flying[row["id"]], row)]
            for row in over:
                self._learn(flying[row["id"]], row)
            gone = flying.keys() - {row["id"] for row in rows}
            for letter in [*(row["id"] for row in over), *gone]:
                del self._groups[flying[letter]].flights[letter]
        self._save()

    def _save(self) -> None:
        unsaved = {name: group for name, group in self._groups.items() if group.unsaved}
        if not unsaved:
            return
        lessons = {name: Lesson(group.window, group.rest) for name, group in unsaved.items()}
        self._database.carry_out(settle(self._drainer, lessons))
        for name, group in unsaved.items():
            if group.rest is not None:
                _log.info("replay.backs_off", group=name, seconds=group.rest, **asdict(group.window))
            if group.hopeless:
                self._park(name, f"{group.window.backoffs} canaries of its group have failed")
            group.unsaved, group.rest, group.hopeless = False, None, False

    def _is_over(self, name: str, row: Row) -> bool:
        flight = self._groups[name].flights[row["id"]]
        return bool(row["status"] != "replaying" or row["replays"] != flight.number)

    def _learn(self, name: str, row: Row) -> None:
        """What the end of a replay says about its group.

        A letter that failed in another way belongs to another group from now on, and says nothing about the
        others. Where it was the canary they wait all the same, as what a dependency answers may change while
        it is down; but it is no evidence that they would fail, so they are not parked for it.
        """
        group = self._groups[name]
        canary = group.flights[row["id"]].canary
        if row["status"] == "resolved":
            group.learn(group.window.widened(len(group.flights), self._settings.replay_window))
        elif row["status"] == "discarded":
            return  # its run was cancelled
        elif row["fingerprint"] != name:
            if canary:
                group.rest = replay_delay(self._settings, group.window.strays)
                group.learn(group.window.strayed())
        elif canary:
            group.rest = replay_delay(self._settings, group.window.backoffs)
            group.learn(group.window.closed())
            group.hopeless = group.window.backoffs >= self._settings.max_replays
        else:
            group.learn(group.window.halved())

    def _park(self, name: str, reason: str) -> None:
        parked = 0
        while not self._stopping.is_set():
            some = self._database.carry_out(park_some(name, reason))
            parked += some
            if not some:
                break
        _log.warning("replay.parked", group=name, letters=parked, reason=reason)

    # -----------------------------------------------------------------------------------------------
    # Giving back

    def _give_back(self) -> int:
        """Gives back what may go; how many."""
        now = time.monotonic()
        looks = [
            Look(name, group.after)
            for name, group in self._groups.items()
            if len(group.flights) < group.window.size and group.look_at <= now
        ]
        random.shuffle(looks)  # who is asked first, takes the last place
        if not looks:
            return 0
        most = self._settings.replay_window
        back = self._database.carry_out(give_back(self._drainer, looks, most, self._bucket))
        self._wait = back.wait
        took = time.monotonic() - now
        if back.bells:
            self._ringer.submit(self._doorbell.ring, back.bells)
        for name, found in back.found.items():
            self._note(self._groups[name], found, took)
        # What backs off, is paused or another's now; what is under way of it is watched to its end.
        self._release([n for n, found in back.found.items() if not (found.own or self._groups[n].flights)])
        letters = sum(len(found.given) for found in back.found.values())
        if letters:
            _log.info("replay.replayed", letters=letters, groups=len(looks), seconds=round(took, 3))
        return letters

    def _note(self, group: Group, found: Found, took: float) -> None:
        canary = group.window.size == 1
        for letter, number in found.given.items():
            group.flights[letter] = Flight(number, canary)
        group.after, group.waits = found.after, found.more
        if not found.given:
            group.look_at = time.monotonic() + REST * took
            if not group.flights and not found.more:
                group.learn(group.window.shut())

    # -----------------------------------------------------------------------------------------------
    # New versions

    def _announce(self) -> None:
        """Has what failed permanently be tried once more where its graph has changed."""
        now = time.monotonic()
        if now < self._versions_at:
            return
        self._versions_at = now + VERSIONS_EVERY
        versions = self._database.carry_out(read_versions())
        if versions == self._versions and now < self._announce_all_at:
            return
        made_due = 0
        while some := self._database.carry_out(announce()):
            made_due += some
        self._versions, self._announce_all_at = versions, now + ALL_EVERY
        if made_due:
            _log.info("replay.new_version", letters=made_due)
