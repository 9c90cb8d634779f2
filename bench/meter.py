"""CPU time and memory of processes while something is going on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

import psutil

SAMPLE_EVERY = 0.25  # seconds, for the memory
MEGABYTE = 1_000_000


class Meter:
    """Measures the time between entering and leaving, and what each group of processes used in it.

    A group is given by its root processes; their descendants belong to it. `cpu` is in seconds, user and
    system. `peak_rss` and `pss` are bytes of the group `worker`: the largest sum of resident sets, in which
    shared pages count for each process, and the sum at the end in which they count once (None where
    the system does not tell).
    """

    def __init__(self, **groups: Sequence[psutil.Process]) -> None:
        self._groups = groups
        self.seconds = 0.0
        self.cpu: Mapping[str, float] = {}
        self.peak_rss = 0
        self.pss: int | None = None

    def __enter__(self) -> Meter:
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        self._before = {name: cpu_seconds(roots) for name, roots in self._groups.items()}
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        if error is None:
            self.cpu = {name: cpu_seconds(roots) - self._before[name] for name, roots in self._groups.items()}
            self.pss = proportional_set(_with_descendants(self._groups["worker"]))
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        workers = _with_descendants(self._groups["worker"])
        while True:
            self.peak_rss = max(self.peak_rss, resident_set(workers))
            if self._done.wait(SAMPLE_EVERY):
                return


def _with_descendants(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def cpu_seconds(roots: Iterable[psutil.Process]) -> float:
    """User and system time of the processes, of their descendants, and of those that have ended since."""
    total = 0.0
    for process in _with_descendants(roots):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # its time is now among its parent's children's
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def resident_set(processes: Iterable[psutil.Process]) -> int:
    """The sum of the resident sets."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def proportional_set(processes: Iterable[psutil.Process]) -> int | None:
    """The sum of the proportional sets; None where the system does not tell."""
    total = 0
    for process in processes:
        pss = getattr(process.memory_full_info(), "pss", None)
        if pss is None:
            return None
        total += pss
    return total
