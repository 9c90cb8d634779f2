"""What a contestant of the benchmark is, and what is measured of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, Protocol

import psutil
from langgraph.checkpoint.postgres import PostgresSaver
from redis import Redis

from bench.arena import Arena
from bench.load import Load, transcript

Figures = dict[str, float]

# Seconds without any run finished until a contestant has failed.
PATIENCE = 60.0


@dataclass
class Alone:
    """What runs took that were by themselves, one after the other.

    sent: the clock when each was asked for; empty where nobody has to be asked. taken: seconds, by what they
    went for: `latency` until it had finished, `enqueue` in the call alone.
    """

    sent: list[float] = field(default_factory=list)
    taken: dict[str, list[float]] = field(default_factory=dict)


class Fleet(Protocol):
    """A contestant's workers, started and warm, on a database of their own."""

    @property
    def workers(self) -> Sequence[psutil.Process]:
        """The root processes of what counts as a worker."""

    @property
    def saver_url(self) -> str:
        """The connection string with which the stock saver finds the states."""

    def key(self, thread_id: str) -> str:
        """The `thread_id` under which LangGraph keeps the thread."""

    def serve(self, threads: Sequence[str], turns: int) -> None:
        """All turns of all threads: turn by turn, each when the one before is done on every thread."""

    def alone(self, threads: Sequence[str]) -> Alone:
        """Each thread's first turn, one at a time."""

    def extras(self, arena: Arena, load: Load) -> Figures:
        """What only this contestant is asked for. Called last; it may stop the workers."""


class Contestant(Protocol):
    """Somebody who runs the graph."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def running(self, arena: Arena, load: Load) -> AbstractContextManager[Fleet]:
        """The contestant's fleet, started for one round."""


class WrongState(Exception):
    """A contestant lost a message, doubled one, or mixed up their order: its figures are worth nothing."""


class Stalled(Exception):
    """A contestant finished no run for a long time."""


def check_states(fleet: Fleet, threads: Sequence[str], turns: int) -> None:
    """Raises WrongState."""
    for thread_id, values in zip(threads, _states(fleet, threads), strict=True):
        texts = [message.content for message in values.get("messages", ())]
        if texts != transcript(thread_id, turns):
            raise WrongState(f"{thread_id} holds {len(texts)} messages, not its {2 * turns} in order")


def begun(fleet: Fleet, threads: Sequence[str]) -> list[float]:
    """The clock when each thread's last run was in its first node."""
    return [values["began"] for values in _states(fleet, threads)]


def _states(fleet: Fleet, threads: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The channels of each thread, as the stock saver reads them."""
    with PostgresSaver.from_conn_string(fleet.saver_url) as saver:
        for thread_id in threads:
            found = saver.get_tuple({"configurable": {"thread_id": fleet.key(thread_id)}})
            yield {} if found is None else found.checkpoint["channel_values"]


@contextmanager
def finish_counter(redis: Redis, pattern: str) -> Iterator[Callable[[int], None]]:
    """A function that returns when so many more runs have been announced as finished on Redis.

    Celery's Redis backend and Threadmill both publish one message for each, so both are watched in the
    same way and at the same cost. The function raises Stalled.
    """
    with redis.pubsub() as notices:
        notices.psubscribe(pattern)
        notices.get_message(timeout=PATIENCE)

        def wait(count: int) -> None:
            for number in range(count):
                if notices.get_message(timeout=PATIENCE) is None:
                    raise Stalled(f"{number} of {count} runs finished, then none for {PATIENCE:g} s")

        yield wait


def percentiles(name: str, seconds: Sequence[float]) -> Figures:
    """The median and the 99th percentile, in milliseconds."""
    if not seconds:
        return {}
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_p50_ms": cuts[49] * 1e3, f"{name}_p99_ms": cuts[98] * 1e3}


def rate(count: int, work: Callable[[], object]) -> float:
    """How many a second, if `work` does so many."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def per_run(prefix: str, seconds: float, cpu: Mapping[str, float], runs: int) -> Figures:
    """Runs per second, and the milliseconds of CPU that each group of processes spent on one."""
    return {
        f"{prefix}runs_per_second": runs / seconds,
        **{f"{prefix}{group}_cpu_ms": spent / runs * 1e3 for group, spent in cpu.items()},
        f"{prefix}cpu_ms": sum(cpu.values()) / runs * 1e3,
    }
