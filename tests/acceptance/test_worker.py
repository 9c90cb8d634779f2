"""`threadmill worker`: how it starts, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from threadmill.core.settings import Settings
from threadmill.producers import Producer

GRAPHS = """
    import asyncio
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        word: str

    async def echo(state):
        return {"word": state["word"] * 2}

    async def dawdle(state):
        print("it dawdles", flush=True)
        await asyncio.sleep(60)

    echoer = StateGraph(State).add_node("echo", echo).add_edge(START, "echo")
    dawdler = StateGraph(State).add_node("dawdle", dawdle).add_edge(START, "dawdle")
"""
NOWHERE = "redis://:hunter2@127.0.0.1:1/0"


class Command:
    """`threadmill worker` as a process, whose lines are kept and can be waited for."""

    def __init__(self, settings: Settings, *options: str) -> None:
        variables = {
            f"THREADMILL_{name.upper()}": str(value)
            for name, value in settings.model_dump(mode="json").items()
            if value is not None
        }
        self.lines: list[str] = []
        self._said = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "threadmill.cli.main", "worker", *options],
            cwd=settings.graphs_file.parent, env={**os.environ, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                with self._said:
                    self.lines.append(line)
                    self._said.notify_all()

    def wait_for(self, text: str) -> None:
        with self._said:
            said = self._said.wait_for(lambda: any(text in line for line in self.lines), timeout=30)
        assert said, "".join(self.lines)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """The exit status."""
        status = self.process.wait(30)
        self._reader.join()
        return status


@pytest.fixture
def start(settings: Settings, serve: Callable[..., None]) -> Iterator[Callable[..., Command]]:
    serve(GRAPHS, echoer={}, dawdler={})
    started: list[Command] = []

    def start(*options: str, **overrides: Any) -> Command:
        started.append(Command(settings.model_copy(update=overrides), *options))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()
        command.end()


def test_it_starts_while_the_broker_is_away_and_takes_runs_from_the_ledger(
    settings: Settings, start: Callable[..., Command]
) -> None:
    worker = start(broker_url=NOWHERE)
    worker.wait_for("graph.served")
    worker.wait_for('"graph": "dawdler"')

    with Producer(settings.model_copy(update={"broker_url": NOWHERE})) as producer:
        run = producer.enqueue("echoer", {"word": "ho"}, tenant="acme", thread_id="t")
        done = producer.wait(run.id, tenant="acme", timeout=20)

    assert (done.status, done.output) == ("success", {"word": "hoho"})
    (warning,) = (line for line in worker.lines if "worker.broker_away" in line)
    assert "redis://:**@127.0.0.1:1/0" in warning
    worker.send(signal.SIGTERM)
    assert worker.end() == 0
    assert "hunter2" not in "".join(worker.lines)


def test_it_does_not_start_while_postgres_is_away(start: Callable[..., Command]) -> None:
    worker = start(database_url="postgresql://user:hunter2@127.0.0.1:1/none")

    assert worker.end() == 1
    (error,) = (line for line in worker.lines if line.startswith("error: "))
    assert "Postgres at" in error
    assert "hunter2" not in "".join(worker.lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_hands_over_and_ends_with_0(
    number: signal.Signals, producer: Producer, start: Callable[..., Command]
) -> None:
    worker = start("--json", drain_timeout=0)
    worker.wait_for("worker.ready")
    run = producer.enqueue("dawdler", {"word": "ho"}, tenant="acme", thread_id="t")
    worker.wait_for("it dawdles")

    worker.send(number)

    assert worker.end() == 0
    assert '"status": "stopped"' in "".join(worker.lines)
    assert producer.get(run.id, tenant="acme").status == "pending"


def test_at_a_second_interrupt_it_ends_at_once_and_its_run_is_the_leases(
    producer: Producer, start: Callable[..., Command]
) -> None:
    worker = start()
    worker.wait_for("worker.ready")
    run = producer.enqueue("dawdler", {"word": "ho"}, tenant="acme", thread_id="t")
    worker.wait_for("it dawdles")

    worker.send(signal.SIGINT)
    worker.wait_for("worker.drains")
    worker.send(signal.SIGINT)

    assert worker.end() == 128 + signal.SIGINT
    assert producer.get(run.id, tenant="acme").status == "running"
