"""Runs enqueued on many threads of several tenants for as long as the attack lasts."""

from __future__ import annotations

import datetime
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
from tests.chaos.evidence import Lane, Sent
from tests.chaos.verdict import input_text

from threadmill.core.errors import Unavailable
from threadmill.core.policy import Durability
from threadmill.core.settings import Settings
from threadmill.producers import Producer

DRIVERS = 4
DURABILITIES: tuple[Durability, ...] = ("sync", "async")
PATIENCE = 60.0


class Load:
    """`threads` threads of `tenants` tenants, `runs` runs on each, spread at random over `seconds`.

    An enqueue that is refused is tried again with the same idempotency key until it returns, so it is known
    exactly which runs there are, and in which order.
    """

    def __init__(
        self, settings: Settings, seed: int, *, tenants: int, threads: int, runs: int, seconds: float
    ) -> None:
        chance = random.Random(seed)
        lanes: list[Lane] = [(f"tenant{n % tenants}", f"thread{n}") for n in range(threads)]
        due = sorted((chance.uniform(0, seconds), lane) for lane in lanes for _ in range(runs))
        self._settings = settings
        # A thread's runs are all enqueued by one driver, so that their order is known.
        drivers = {lane: n % DRIVERS for n, lane in enumerate(lanes)}
        self._due = [[event for event in due if drivers[event[1]] == n] for n in range(DRIVERS)]
        self._ahead = 0.0
        self._lock = threading.Lock()
        self._drivers: list[Future[None]] = []
        self.sent: list[Sent] = []
        self.refusals: Counter[str] = Counter()
        self.enqueues: list[tuple[datetime.datetime, float]] = []

    def start(self) -> None:
        self._began = time.monotonic()
        self._pool = ThreadPoolExecutor(DRIVERS, thread_name_prefix="load")
        self._drivers = [self._pool.submit(self._drive, due) for due in self._due]

    def hurry(self, seconds: float) -> None:
        """What would have been enqueued in the next seconds is enqueued now."""
        with self._lock:
            self._ahead += seconds

    @property
    def is_done(self) -> bool:
        return all(driver.done() for driver in self._drivers)

    def join(self) -> None:
        """Returns when all is enqueued; raises what an enqueue raised that it must not raise."""
        for driver in self._drivers:
            driver.result()
        self._pool.shutdown()

    def _drive(self, due: list[tuple[float, Lane]]) -> None:
        with Producer(self._settings) as producer:
            for at, lane in due:
                while (left := at - self._ahead - (time.monotonic() - self._began)) > 0:
                    time.sleep(min(left, 0.05))
                self._enqueue(producer, lane)

    def _enqueue(self, producer: Producer, lane: Lane) -> None:
        tenant, thread_id = lane
        with self._lock:
            number = len(self.sent)
            key = f"{tenant}/{thread_id}/{number}"
            self.sent.append(Sent(key, tenant, thread_id, None))
        ends_at = time.monotonic() + PATIENCE
        while True:
            began, started = datetime.datetime.now(datetime.UTC), time.monotonic()
            try:
                run = producer.enqueue(
                    "ledger",
                    {"said": [input_text(key)]},
                    tenant=tenant,
                    thread_id=thread_id,
                    idempotency_key=key,
                    durability=DURABILITIES[number % len(DURABILITIES)],
                )
                break
            except (Unavailable, psycopg.Error) as error:
                with self._lock:
                    self.refusals[type(error).__name__] += 1
                if time.monotonic() > ends_at:
                    raise
                time.sleep(0.1)
        with self._lock:
            self.sent[number] = Sent(key, tenant, thread_id, run.id)
            self.enqueues.append((began, time.monotonic() - started))
