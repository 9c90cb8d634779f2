"""The supervisor with real children, small shell scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import psutil
import pytest

from threadmill.cli.supervisor import Child, Supervisor

# The shell runs a trap once `wait` returns, which a signal makes it do at once.
ENDLESS = "echo up; sleep 60 & wait"
STUBBORN = "trap 'echo asked' TERM; echo up; while :; do sleep 60 & wait; done"


def sh(name: str, script: str, ready: str | None = "up") -> Child:
    return Child(name, ["sh", "-c", script], ready=ready)


def ask(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


class Watched(StringIO):
    """Output that acts on a text in it; `terminal` says what isatty is."""

    def __init__(self, text: str = "", act: Callable[[], None] | None = None, terminal: bool = False) -> None:
        super().__init__()
        self._text, self._act, self._terminal = text, act, terminal

    def write(self, line: str) -> int:
        if self._act is not None and self._text in line:
            self._act()
        return super().write(line)

    def isatty(self) -> bool:
        return self._terminal


def gone(pid: int) -> bool:
    """Whether the process is dead within five seconds; a dead one may wait long for its init to bury it."""
    for _ in range(500):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_every_line_carries_the_name_of_the_child_that_printed_it() -> None:
    output = StringIO()
    children = [sh("worker.1", "echo one; echo two >&2; " + ENDLESS), sh("flower", "echo three; " + ENDLESS)]
    assert Supervisor(children, on_ready=ask(signal.SIGTERM), output=output).run() == 0
    lines = output.getvalue().splitlines()
    assert [line for line in lines if line.startswith("worker.1")] == [
        "worker.1 | one",
        "worker.1 | two",
        "worker.1 | up",
    ]
    assert [line for line in lines if line.startswith("flower")] == ["flower   | three", "flower   | up"]


def test_ready_is_called_once_and_after_the_ready_line_of_every_child() -> None:
    output = StringIO()
    seen: list[str] = []

    def on_ready() -> None:
        seen.append(output.getvalue())
        os.kill(os.getpid(), signal.SIGTERM)

    children = [
        sh("a", "echo not yet; echo up; echo up; sleep 60 & wait"),
        sh("b", "sleep 0.2; echo up; sleep 60 & wait"),
        sh("c", "sleep 60", ready=None),
    ]
    assert Supervisor(children, on_ready=on_ready, output=output).run() == 0
    assert len(seen) == 1
    assert "a   | up" in seen[0]
    assert "b   | up" in seen[0]


def test_it_is_ready_at_once_with_no_child_and_runs_until_it_is_asked_to_stop() -> None:
    assert Supervisor([], on_ready=ask(signal.SIGINT), output=StringIO()).run() == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_children_gently_and_the_status_is_zero(signum: signal.Signals) -> None:
    output = StringIO()
    polite = "trap 'echo draining; exit 3' TERM; echo up; sleep 60 & wait"
    assert Supervisor([sh("a", polite), sh("b", polite)], on_ready=ask(signum), output=output).run() == 0
    assert "a   | draining" in output.getvalue()
    assert "b   | draining" in output.getvalue()


def test_the_handlers_that_were_there_before_are_back_afterwards() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    Supervisor([], on_ready=ask(signal.SIGTERM), output=StringIO()).run()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_second_signal_kills_a_child_that_does_not_stop() -> None:
    output = Watched("asked", ask(signal.SIGINT))
    assert Supervisor([sh("a", STUBBORN)], on_ready=ask(signal.SIGINT), output=output, grace=60).run() == 0
    assert output.getvalue().count("asked") == 1


def test_a_child_that_does_not_stop_is_killed_when_its_time_is_over() -> None:
    output = StringIO()
    assert Supervisor([sh("a", STUBBORN)], on_ready=ask(signal.SIGTERM), output=output, grace=0.2).run() == 0
    assert "asked" in output.getvalue()


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("exit 7", 7, "b ended with status 7"),
        ("kill -KILL $$", 137, "b ended with SIGKILL"),
        ("exit 0", 1, "b ended with status 0"),
    ],
)
def test_a_child_that_ends_by_itself_stops_the_others_and_gives_the_status(
    end: str, status: int, said: str
) -> None:
    output = StringIO()
    polite = "trap 'echo draining; exit 0' TERM; echo up; sleep 60 & wait"
    children = [sh("a", polite), sh("b", f"sleep 0.2; echo last words; {end}", ready=None)]
    assert Supervisor(children, output=output).run() == status
    text = output.getvalue()
    assert said in text
    assert text.index("last words") < text.index(said)
    assert "a   | draining" in text


def test_a_program_that_is_not_there_is_named() -> None:
    output = StringIO()
    assert Supervisor([Child("a", ["/no/such/program"])], output=output).run() == 127
    assert "cannot run /no/such/program" in output.getvalue()


def test_what_a_child_leaves_behind_is_ended_too() -> None:
    output = StringIO()
    child = sh("a", "sleep 60 & echo left $!; kill -KILL $$", ready=None)
    assert Supervisor([child], output=output).run() == 137
    left = int(output.getvalue().split("left ")[1].split()[0])
    assert gone(left)


def test_a_child_has_a_process_group_of_its_own_so_that_ctrl_c_is_for_the_supervisor() -> None:
    output = StringIO()
    show = "import os, time; print(os.getpgrp() == os.getpid(), os.environ['GIVEN'], 'up'); time.sleep(60)"
    child = Child("a", [sys.executable, "-c", show], env={"GIVEN": "this"}, ready="up")
    assert Supervisor([child], on_ready=ask(signal.SIGTERM), output=output).run() == 0
    assert "a   | True this up" in output.getvalue()


def test_prefixes_are_coloured_on_a_terminal_only() -> None:
    for terminal in (True, False):
        output = Watched(terminal=terminal)
        Supervisor([sh("a", ENDLESS)], on_ready=ask(signal.SIGTERM), output=output).run()
        assert ("\x1b[" in output.getvalue()) is terminal


def test_a_closed_output_stops_the_children_gently(tmp_path: Path) -> None:
    def closed() -> None:
        raise BrokenPipeError

    drained = tmp_path / "drained"
    # More than a pipe holds: it must go on being read.
    polite = f'trap \'head -c 200000 /dev/zero | tr "\\0" "\\n"; touch {drained}; exit\' TERM; {ENDLESS}'
    assert Supervisor([sh("a", polite)], output=Watched("up", closed)).run() == 1
    assert drained.exists()


def test_an_error_in_the_callback_leaves_no_child_behind() -> None:
    output = StringIO()

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Supervisor([sh("a", "echo pid $$; " + ENDLESS)], on_ready=fail, output=output).run()
    assert gone(int(output.getvalue().split("pid ")[1].split()[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="needs the signal that Linux sends at a parent's death")
def test_the_children_of_a_supervisor_that_is_killed_are_killed_too() -> None:
    script = """
        from threadmill.cli.supervisor import Child, Supervisor
        endless = "trap '' TERM; echo pid $$; echo up; exec sleep 60"
        Supervisor([Child(name, ["sh", "-c", endless], ready="up") for name in "ab"], on_ready=ready).run()
    """
    ready = "def ready() -> None:\n    print('ready', flush=True)\n"
    argv = [sys.executable, "-c", ready + textwrap.dedent(script)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = []
        for line in supervisor.stdout:
            if "pid" in line:
                pids.append(int(line.split("pid ")[1]))
            if line == "ready\n":
                break
        supervisor.kill()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
