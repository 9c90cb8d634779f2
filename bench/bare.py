"""LangGraph alone: loops over the stock AsyncPostgresSaver, no queue, no ledger, no isolation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from bench.arena import STOCK, Arena
from bench.child import ChildFailed, child, tail
from bench.contestant import Alone, Figures
from bench.load import Load, split, threads_named


class Bare:
    """`processes` loops (None: one for each core), each over one pool, with `at_once` runs at a time."""

    def __init__(self, name: str, *, processes: int | None, at_once: int) -> None:
        self.name = name
        self._processes, self._at_once = processes, at_once

    @contextmanager
    def running(self, arena: Arena, load: Load) -> Iterator[BareFleet]:
        log = arena.folder / "bare.log"
        with arena.fresh_database(STOCK, "bare") as url, ExitStack() as stack:
            argv = [sys.executable, "-m", "bench.bare_loop", url, str(self._at_once)]
            loops = [stack.enter_context(child(argv, log)) for _ in range(self._processes or arena.cores)]
            fleet = BareFleet(url, loops, log)
            fleet.serve(threads_named("warm", load.threads), 1)
            yield fleet


class BareFleet:
    """See contestant.Fleet."""

    def __init__(self, url: str, loops: Sequence[subprocess.Popen[str]], log: Path) -> None:
        self.workers = [psutil.Process(loop.pid) for loop in loops]
        self.saver_url = url
        self._loops, self._log = loops, log

    def key(self, thread_id: str) -> str:
        return thread_id

    def serve(self, threads: Sequence[str], turns: int) -> None:
        # The threads are dealt out, so each process has its own turns to keep and waits for no other.
        for loop, part in zip(self._loops, split(threads, len(self._loops)), strict=True):
            self._order(loop, part, turns)
        for loop in self._loops:
            self._answer(loop)

    def alone(self, threads: Sequence[str]) -> Alone:
        self._order(self._loops[0], threads, 1)
        return Alone(taken={"latency": self._answer(self._loops[0])})

    def extras(self, arena: Arena, load: Load) -> Figures:  # noqa: ARG002 - of the protocol
        return {}

    def _order(self, loop: subprocess.Popen[str], threads: Sequence[str], turns: int) -> None:
        assert loop.stdin is not None
        loop.stdin.write(json.dumps({"threads": list(threads), "turns": turns}) + "\n")
        loop.stdin.flush()

    def _answer(self, loop: subprocess.Popen[str]) -> list[float]:
        assert loop.stdout is not None
        line = loop.stdout.readline()
        if not line:
            raise ChildFailed(f"a bare loop ended:\n{tail(self._log)}")
        taken: list[float] = json.loads(line)
        return taken
