"""Several programs in one foreground: their lines with a prefix each, one Ctrl-C for all of them.

Rejected: honcho's Manager, which knows no readiness, ends everything by force five seconds after the first
exit (a worker drains for longer), answers a second Ctrl-C like the first, and gives 130 for a stop that was
asked for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from queue import Empty, SimpleQueue
from typing import TextIO

from threadmill.cli.launcher import tied

OWN_NAME = "dev"
COLOURS = (36, 33, 32, 35, 34, 31)  # ANSI foregrounds

# Seconds for the last lines of a child that is gone: a grandchild may hold its output open for ever.
LAST_LINES_TIMEOUT = 1.0


@dataclass(frozen=True)
class Child:
    """A program to run. It is up when it prints a line that contains `ready`, or at once when that is None.

    `name` is unique among the children. `env` is added to our own environment.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str | None = None


@dataclass(frozen=True)
class Up:
    """A child printed its ready line."""

    name: str


@dataclass(frozen=True)
class Ended:
    """A child is gone, with this exit status; below zero, a signal's number."""

    name: str
    status: int


@dataclass(frozen=True)
class Asked:
    """We got a signal that asks us to stop."""


@dataclass(frozen=True)
class OutputGone:
    """Nobody reads our output any longer: the terminal or the pipe was closed."""


Event = Up | Ended | Asked | OutputGone


class Supervisor:
    """Runs children until asked to stop (SIGINT, SIGTERM, SIGHUP) or until one of them ends by itself.

    `on_ready` is called once, when all are up. Children that do not follow their SIGTERM within `grace`
    seconds are killed; on a second signal at once. On Linux they are killed as well when we are.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        on_ready: Callable[[], None] = lambda: None,
        output: TextIO | None = None,
        grace: float = 60,
    ) -> None:
        self._children = children
        self._on_ready = on_ready
        self._output = output or sys.stdout
        self._grace = grace
        self._width = max(len(name) for name in (OWN_NAME, *(child.name for child in children)))
        self._writing = threading.Lock()
        # SimpleQueue: its put may interrupt another put, as a signal handler does.
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: dict[str, threading.Thread] = {}
        self._output_gone = False

    def run(self) -> int:
        """The exit status: 0 when asked to stop; else that of the child that ended first, but never 0.

        To be called on the main thread, once.
        """
        with self._signals_as_events():
            try:
                for child, colour in zip(self._children, cycle(COLOURS), strict=False):
                    self._start(child, colour)
                return self._watch()
            finally:
                self._leave_nobody()

    def _start(self, child: Child, colour: int) -> None:
        process = subprocess.Popen(
            tied(child.argv, signal.SIGKILL),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Otherwise Python holds lines back as long as nobody watches a terminal.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **child.env},
            text=True,
            encoding="utf-8",
            errors="replace",
            # The terminal's Ctrl-C is for us; and what a child leaves behind is found by its group.
            start_new_session=True,
        )
        self._running[child.name] = process
        reader = threading.Thread(target=self._relay, args=(child, process, colour), daemon=True)
        # Apart from the reader: the end of a child is not the end of its output if it has children.
        waiter = threading.Thread(target=self._wait, args=(child.name, process), daemon=True)
        self._readers[child.name] = reader
        reader.start()
        waiter.start()

    def _relay(self, child: Child, process: subprocess.Popen[str], colour: int) -> None:
        assert process.stdout is not None
        prefix = self._prefix(child.name, colour)
        awaited = child.ready
        with process.stdout:
            for line in process.stdout:
                self._write(prefix + line.rstrip("\n"))
                if awaited is not None and awaited in line:
                    awaited = None
                    self._events.put(Up(child.name))

    def _wait(self, name: str, process: subprocess.Popen[str]) -> None:
        self._events.put(Ended(name, process.wait()))

    def _watch(self) -> int:
        awaited = {child.name for child in self._children if child.ready is not None}
        exit_status: int | None = None  # None until there is a reason to stop
        deadline: float | None = None
        if not awaited:
            self._announce()
        while self._running or exit_status is None:
            event = self._next_event(deadline)
            if isinstance(event, Ended):
                self._bury(event.name)
            if exit_status is not None:
                if event is None or isinstance(event, Asked):
                    self._signal_all(signal.SIGKILL)
                    deadline = None
            elif isinstance(event, Up):
                awaited.discard(event.name)
                if not awaited:
                    self._announce()
            else:
                exit_status = self._exit_status_after(event)
                self._signal_all(signal.SIGTERM)
                deadline = time.monotonic() + self._grace
        return exit_status

    def _exit_status_after(self, event: Ended | Asked | OutputGone | None) -> int:
        """Ours, where this is the reason to stop."""
        match event:
            case Ended(name, status):
                self._say(f"{name} ended with {_described(status)}; stopping the others")
                # 128 + signal, as a shell has it. A child that ended well has ended all the same.
                return (status if status >= 0 else 128 - status) or 1
            case OutputGone():
                return 1
            case _:
                return 0

    def _next_event(self, deadline: float | None) -> Event | None:
        """What happens next; None at the deadline."""
        try:
            return self._events.get(timeout=None if deadline is None else max(0, deadline - time.monotonic()))
        except Empty:
            return None

    def _announce(self) -> None:
        # Under the lock, so that no child's line gets into the midst of what is printed there.
        with self._writing:
            self._on_ready()

    def _signal_all(self, signum: signal.Signals) -> None:
        for process in self._running.values():
            if signum == signal.SIGKILL:
                _kill_group(process.pid)
            else:
                process.send_signal(signum)

    def _bury(self, name: str) -> None:
        """Forgets a child that is gone, ends what it left behind, and waits for its last lines."""
        _kill_group(self._running.pop(name).pid)
        self._readers[name].join(LAST_LINES_TIMEOUT)

    def _leave_nobody(self) -> None:
        """Ends by force whoever is still there, which only an error leaves us."""
        self._signal_all(signal.SIGKILL)
        for process in self._running.values():
            process.wait()

    def _say(self, line: str) -> None:
        self._write(self._prefix(OWN_NAME, 1) + line)

    def _prefix(self, name: str, colour: int) -> str:
        prefix = f"{name:<{self._width}} | "
        return f"\x1b[{colour}m{prefix}\x1b[0m" if self._output.isatty() else prefix

    def _write(self, line: str) -> None:
        with self._writing:
            # Children go on being read even so, or they would block as they drain.
            if self._output_gone:
                return
            try:
                self._output.write(line + "\n")
                self._output.flush()
            except OSError:
                self._output_gone = True
                self._events.put(OutputGone())

    @contextmanager
    def _signals_as_events(self) -> Iterator[None]:
        signals = [signal.SIGINT, signal.SIGTERM]
        # nohup ignores it for us.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        handlers = {s: signal.signal(s, lambda *_: self._events.put(Asked())) for s in signals}
        try:
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler or signal.SIG_DFL)


def _kill_group(pid: int) -> None:
    # macOS answers "not permitted" for a group of which only the dead are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _described(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
