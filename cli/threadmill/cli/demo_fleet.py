"""The demo's processes: workers and a replay worker, as children whose logs go to files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from threadmill.cli.launcher import tied
from threadmill.core.errors import ProcessEnded
from threadmill.core.settings import Settings

# Not from the folder that the demo was started in, whose modules could hide installed ones.
COMMAND = (sys.executable, "-P", "-m", "threadmill.cli.main")
STOP_TIMEOUT = 15.0


class _Member(NamedTuple):
    log: Path
    process: subprocess.Popen[bytes]


class DemoFleet:
    """A context in which `workers` worker processes and one replay worker run.

    Start it on the main thread: on Linux the processes end with the thread that started them.
    """

    def __init__(self, settings: Settings, logs: Path, *, workers: int, env: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **env, **_environment_of(settings)}
        self._logs = logs
        self._commands: dict[str, Sequence[str]] = {f"worker-{n}": ["worker"] for n in range(1, workers + 1)}
        self._commands["replay"] = ["dlq", "drain"]
        self._members: dict[str, _Member] = {}

    def __enter__(self) -> DemoFleet:
        self._logs.mkdir(exist_ok=True)
        try:
            for name, arguments in self._commands.items():
                self._start(name, arguments)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def check(self) -> None:
        """Raises ProcessEnded unless all of them run."""
        for name, (log, process) in self._members.items():
            status = process.poll()
            if status is not None:
                raise ProcessEnded(name, status, str(log))

    def pid_of(self, name: str) -> int:
        """The process id of a member: of the worker itself, as nothing stands between it and us."""
        return self._members[name].process.pid

    def freeze(self, name: str) -> None:
        """Stops a member where it stands, until it is thawed or killed."""
        self._members[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self._members[name].process.send_signal(signal.SIGCONT)

    def kill(self, name: str, *, successor: str) -> None:
        """Kills a member, and starts another in its place."""
        process = self._members[name].process
        process.kill()
        process.wait()
        del self._members[name]
        self._start(successor, self._commands[name])

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        log = self._logs / f"{name}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                tied([*COMMAND, *arguments], signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # The terminal's Ctrl-C is for us: the services must outlive those that use them.
                start_new_session=True,
            )
        self._members[name] = _Member(log, process)

    def _stop(self) -> None:
        """Asks all to end and waits; an exception meanwhile, a second Ctrl-C say, ends them by force."""
        processes = [member.process for member in self._members.values()]
        try:
            for process in processes:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGCONT)  # should it be frozen
            deadline = time.monotonic() + STOP_TIMEOUT
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _environment_of(settings: Settings) -> dict[str, str]:
    """The variables from which another process reads the same settings."""
    values = settings.model_dump(mode="json")
    return {f"THREADMILL_{name.upper()}": str(value) for name, value in values.items() if value is not None}
