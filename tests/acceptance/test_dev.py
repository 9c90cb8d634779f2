"""`threadmill dev`: one command that runs everything, is found by the others, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

GRAPHS = """
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

class State(TypedDict):
    word: str

echo = StateGraph(State).add_node("echo", lambda state: {"word": state["word"] * 2}).add_edge(START, "echo")
"""

COMMAND = [sys.executable, "-P", "-m", "threadmill.cli.main"]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("THREADMILL_")}


class Dev:
    """A `threadmill dev` in a project's folder, up and running."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*COMMAND, "dev", *options],
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("ready"):
                return
        raise AssertionError("\n".join(self.lines))

    @property
    def flower(self) -> str:
        (line,) = (line for line in self.lines if re.match(r"flower +http", line))
        return line.split()[1]

    def call(self, *arguments: str) -> Any:
        """The JSON document that another command in the same folder prints."""
        result = subprocess.run(
            [*COMMAND, *arguments, "--json"],
            cwd=self.folder, env=environment(), check=True, capture_output=True, text=True,
        )  # fmt: skip
        return json.loads(result.stdout)

    def end(self, signum: signal.Signals) -> int:
        """The exit status; nothing that it had started may be left."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signum)
        output, _ = self.process.communicate(timeout=60)
        self.lines += output.splitlines()
        _, left = psutil.wait_procs(started, timeout=10)
        assert left == []
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    """Starts `threadmill dev` in a folder of that name, with a graph in it."""
    started: list[Dev] = []

    def start(name: str, *options: str) -> Dev:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "graphs.py").write_text(GRAPHS)
        (folder / "langgraph.json").write_text('{"graphs": {"echo": "./graphs.py:echo"}}')
        started.append(Dev(folder, *options))
        return started[-1]

    yield start
    for dev in started:
        if dev.process.poll() is None:
            dev.end(signal.SIGTERM)
        assert dev.process.stdout is not None
        dev.process.stdout.close()


ENQUEUE = ["enqueue", "echo", "--tenant", "acme", "--thread", "t", "--input", '{"word": "ho"}', "--wait"]


def test_what_dev_runs_is_found_from_its_folder_and_keeps_its_data(start: Callable[..., Dev]) -> None:
    dev = start("project", "--flower-port", "0")
    dev.wait_until_ready()

    done = dev.call(*ENQUEUE)
    assert (done["status"], done["output"]) == ("success", {"word": "hoho"})
    assert dev.call("doctor")["ok"]
    with urllib.request.urlopen(f"{dev.flower}/task/{done['id']}") as page:
        shown = page.read().decode()
    assert "tenant=acme thread=t graph=echo" in shown
    assert "hoho" not in shown
    assert any(line.startswith("worker | ") for line in dev.lines)
    assert dev.end(signal.SIGINT) == 0

    again = start("project", "--workers", "0", "--flower-port", "0")
    again.wait_until_ready()
    assert again.call("runs", "show", done["id"]) == done
    assert again.end(signal.SIGTERM) == 0


def test_two_projects_run_side_by_side(start: Callable[..., Dev]) -> None:
    one, two = start("one"), start("two")
    one.wait_until_ready()
    two.wait_until_ready()

    assert one.flower != two.flower
    assert one.call(*ENQUEUE)["status"] == "success"
    assert two.call("runs", "list") == []
    assert (one.end(signal.SIGTERM), two.end(signal.SIGTERM)) == (0, 0)


def test_a_worker_that_is_gone_ends_dev_and_all_the_rest(start: Callable[..., Dev]) -> None:
    dev = start("project", "--flower-port", "0")
    dev.wait_until_ready()
    children = psutil.Process(dev.process.pid).children(recursive=True)
    (worker,) = (child for child in children if "worker" in child.cmdline())

    worker.kill()
    output, _ = dev.process.communicate(timeout=60)

    assert dev.process.returncode == 128 + signal.SIGKILL
    assert "worker ended with SIGKILL" in output
    assert psutil.wait_procs(children, timeout=10)[1] == []
