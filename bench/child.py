"""Processes of a contestant: started, awaited, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from threadmill.cli.launcher import tied

ROOT = Path(__file__).parent.parent
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
LOOK_AGAIN_AFTER = 0.05


class ChildFailed(Exception):
    """A process of a contestant ended, or did not get ready. The text ends with what it logged."""


@contextmanager
def child(
    argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The process, its stdin and stdout pipes, its stderr added to `log`; it is asked to end on leaving."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("THREADMILL_")}
    with log.open("a") as stderr:
        process = subprocess.Popen(
            tied(argv, signal.SIGKILL),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**inherited, **(env or {})},
            cwd=ROOT,
            text=True,
            # Ctrl-C is for the benchmark, which then ends its children.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Returns when the process and what it started are gone."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def wait_for_line(process: subprocess.Popen[str], log: Path, text: str, times: int = 1) -> None:
    """Returns when the log holds the text so many times. Raises ChildFailed."""
    deadline = time.monotonic() + START_TIMEOUT
    while log.read_text().count(text) < times:
        if process.poll() is not None or time.monotonic() > deadline:
            raise ChildFailed(f"no {text!r} from {process.args!r}:\n{tail(log)}")
        time.sleep(LOOK_AGAIN_AFTER)


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
