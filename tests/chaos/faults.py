"""The attack: a schedule of faults drawn from a seed, and how each is done and undone."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import psycopg
from tests.chaos.evidence import Fault, Kind
from tests.chaos.fleet import Fleet, Slot, now
from tests.chaos.load import Load
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Postgres, Redis

TICK = 0.02
ON_WORKERS = (Kind.KILL, Kind.FREEZE, Kind.TERM)
# What cannot be done at its time, because too much is amiss already, is tried again for so long, in seconds.
PUT_OFF, PUT_OFF_MAX = 0.5, 6.0
# So long are the workers stopped, so that bells wait while Redis is flushed.
BLINK = 0.4


@dataclass(frozen=True)
class Planned:
    """at: seconds from the beginning. everywhere: all the connections, not one slot's."""

    at: float
    kind: Kind
    lasts: float
    everywhere: bool
    delay: float


def schedule(seed: int, seconds: float, count: int, lease: float, kinds: Sequence[Kind]) -> list[Planned]:
    """`count` faults over so many seconds, in rounds of these kinds, each shuffled.

    lease: the heartbeat's timeout. A worker is frozen for longer; a connection is away for shorter or longer.
    """
    chance = random.Random(seed)
    order = itertools.islice(_rounds(chance, kinds), count)
    gap = seconds / count
    return [
        Planned(
            at=(n + chance.random()) * gap,
            kind=kind,
            lasts=lease * (chance.uniform(1.3, 2) if kind is Kind.FREEZE else chance.uniform(0.2, 1.7)),
            everywhere=chance.random() < 0.5,
            delay=chance.uniform(0.05, 0.3),
        )
        for n, kind in enumerate(order)
    ]


def prelude(seed: int, rounds: int, lease: float) -> list[Planned]:
    """Faults so far apart that what each of them costs can be measured; then the storm may begin."""
    chance = random.Random(seed)
    at, plan = 1.0, []
    # Until a killed worker's runs are rescued; until another has taken its place; until a bell is rung again.
    pauses = {Kind.KILL: 2 * lease, Kind.TERM: 3.5, Kind.REDIS_FLUSH: 3.0, Kind.REDIS_RESTART: 2 + lease}
    for _ in range(rounds):
        for kind, pause in pauses.items():
            plan.append(Planned(at, kind, lasts=1.0, everywhere=True, delay=0.0))
            at += pause + chance.random()
    return plan


def after(plan: list[Planned], storm: list[Planned]) -> list[Planned]:
    """The one plan and then the other."""
    begins = max((planned.at for planned in plan), default=0.0) + 5.0
    return [*plan, *(replace(planned, at=planned.at + begins) for planned in storm)]


def _rounds(chance: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    while True:
        yield from chance.sample(kinds, len(kinds))


class Storm:
    """Does what was scheduled, on the thread that calls `rage`, and keeps the record."""

    def __init__(self, fleet: Fleet, postgres: Postgres, redis: Redis, ours: Proxy, load: Load, seed: int):
        """ours: the proxy between Redis and those who enqueue; it suffers what all the workers' suffer."""
        self._fleet, self._postgres, self._redis = fleet, postgres, redis
        self._ours, self._load = ours, load
        self._chance = random.Random(seed)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._busy: set[Proxy] = set()
        self.faults: list[Fault] = []
        self.skipped: list[Kind] = []

    def rage(self, plan: list[Planned], until: Callable[[], bool]) -> None:
        """Returns when all that was planned is done and undone, and `until` says so."""
        for planned in plan:
            self._in(planned.at, partial(self._begin, planned))
        while self._agenda or not until():
            self._fleet.tick()
            while self._agenda and self._agenda[0][0] <= time.monotonic():
                heapq.heappop(self._agenda)[2]()
            time.sleep(TICK)

    def _in(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._numbers), act))

    def _begin(self, planned: Planned, late: float = 0.0) -> None:
        """late: seconds by which it has been put off."""
        if self._do(planned):
            return
        if late >= PUT_OFF_MAX:
            self.skipped.append(planned.kind)
        else:
            self._in(PUT_OFF, partial(self._begin, planned, late + PUT_OFF))

    def _do(self, planned: Planned) -> bool:
        """Whether it could be done."""
        match planned.kind:
            case Kind.KILL | Kind.FREEZE | Kind.TERM:
                return self._to_a_worker(planned)
            case Kind.POSTGRES_RESTART:
                self._at_once(planned.kind, self._postgres.restart)
            case Kind.POSTGRES_TERMINATE:
                self._at_once(planned.kind, self._terminate_backends)
            case Kind.REDIS_FLUSH | Kind.REDIS_RESTART if not self._redis.is_up:
                return False
            case Kind.REDIS_FLUSH:
                self._at_once(planned.kind, self._flush)
            case Kind.REDIS_RESTART:
                self._redis.stop()
                self._until(planned, self._redis.start)
            case _:
                return self._to_connections(planned)
        return True

    def _at_once(self, kind: Kind, act: Callable[[], None]) -> None:
        began = now()
        act()
        self.faults.append(Fault(kind, began, now()))

    def _until(
        self, planned: Planned, undo: Callable[[], None], slot: Slot | None = None, pid: int | None = None
    ) -> None:
        began = now()

        def end() -> None:
            undo()
            self.faults.append(Fault(planned.kind, began, now(), slot.number if slot else None, pid))

        self._in(planned.lasts, end)

    def _to_a_worker(self, planned: Planned) -> bool:
        up = [slot for slot in self._fleet.slots if slot.is_up]
        if len(up) < 2:  # somebody must be there to carry on
            return False
        slot = self._chance.choice(up)
        assert slot.life is not None
        pid = slot.life.pid
        if planned.kind is Kind.FREEZE:
            self._fleet.freeze(slot)
            self._until(planned, lambda: self._thaw(slot, pid), slot, pid)
            return True
        began = now()
        if planned.kind is Kind.KILL:
            self._fleet.kill(slot)
        else:
            self._fleet.ask_to_end(slot)
        self.faults.append(Fault(planned.kind, began, began, slot.number, pid))
        return True

    def _thaw(self, slot: Slot, pid: int) -> None:
        if slot.life is not None and slot.life.pid == pid:
            self._fleet.thaw(slot)

    def _terminate_backends(self) -> None:
        with psycopg.connect(self._postgres.url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'threadmill' and random() < 0.4"
            )

    def _flush(self) -> None:
        """While the workers are stopped for a moment, so that bells are lost and not just a few keys."""
        up = [slot for slot in self._fleet.slots if slot.is_up]
        for slot in up:
            self._fleet.freeze(slot)
        self._load.hurry(1.0)
        time.sleep(BLINK)
        self._redis.flush()
        for slot in up:
            self._fleet.thaw(slot)

    def _to_connections(self, planned: Planned) -> bool:
        to_postgres = planned.kind.startswith("Postgres")
        slot = None if planned.everywhere else self._chance.choice(self._fleet.slots)
        slots = self._fleet.slots if slot is None else [slot]
        proxies = [one.postgres if to_postgres else one.redis for one in slots]
        if slot is None and not to_postgres:
            proxies.append(self._ours)
        if self._busy.intersection(proxies):  # it would be undone with the one that is under way
            return False
        self._busy.update(proxies)
        for proxy in proxies:
            self._harm(proxy, planned)

        def undo() -> None:
            self._busy.difference_update(proxies)
            for proxy in proxies:
                if planned.kind in (Kind.POSTGRES_SILENT_CUT, Kind.REDIS_SILENT_CUT):
                    proxy.cut_connections()
                proxy.heal()

        self._until(planned, undo, slot)
        return True

    def _harm(self, proxy: Proxy, planned: Planned) -> None:
        match planned.kind:
            case Kind.POSTGRES_CUT | Kind.REDIS_CUT:
                proxy.cut()
            case Kind.POSTGRES_SLOW | Kind.REDIS_SLOW:
                proxy.slow(planned.delay)
            case _:
                proxy.silence()
