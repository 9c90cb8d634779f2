"""Worker processes that are told to stop hand over what they hold; one that cannot end replaces itself."""

from __future__ import annotations

import datetime
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from threadmill.core.notice import connect_redis
from threadmill.core.settings import Settings
from threadmill.producers import Producer, Run

# A node says on stderr, where the worker's log goes, that it has begun, and waits for a file.
GRAPHS = """
    import asyncio, operator, os, sys, time
    from pathlib import Path
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict, total=False):
        texts: Annotated[list[str], operator.add]

    def begin(node):
        print(f"{node}.begun", file=sys.stderr, flush=True)
        return {"texts": [f"{node} {os.getpid()}"]}

    async def first(state):
        texts = begin("first")
        while not Path("gate").exists():
            await asyncio.sleep(0.02)
        return texts

    def blocking(state):
        texts = begin("blocking")
        while not Path("gate").exists() and state["texts"] == ["slow"]:
            time.sleep(0.02)
        return texts

    async def second(state):
        return begin("second")

    def chain(name, node):
        return (
            StateGraph(State).add_node(name, node).add_node("second", second)
            .add_edge(START, name).add_edge(name, "second")
        )

    waits = chain("first", first)
    blocks = limited = chain("blocking", blocking)
"""
QUICK = {"heartbeat_interval": 0.2, "heartbeat_timeout": 1.5, "sweep_interval": 0.2, "ring_again_after": 1.0}
# The command that people use, which does not wait for threads that cannot be ended.
COMMAND = "import sys; from threadmill.cli.main import main; sys.argv = ['threadmill', 'worker']; main()"
Start = Callable[..., Any]


@pytest.fixture
def start(serve: Callable[..., None], start_worker: Start) -> Start:
    serve(GRAPHS, waits={}, blocks={}, limited={"timeout": 0.5, "max_attempts": 1})
    return lambda pool="asyncio", **overrides: start_worker(pool, **{**QUICK, **overrides})


@pytest.fixture
def open_gate(tmp_path: Path) -> Callable[[], None]:
    return (tmp_path / "gate").touch


@pytest.fixture
def enqueue(producer: Producer) -> Callable[..., Run]:
    def enqueue(graph: str, text: str = "slow", thread_id: str = "t") -> Run:
        return producer.enqueue(graph, {"texts": [text]}, tenant="acme", thread_id=thread_id)

    return enqueue


def finishes(producer: Producer, run: Run) -> list[str]:
    """The nodes and the processes that executed them, of a run that succeeds."""
    done = producer.wait(run.id, tenant="acme", timeout=30)
    assert done.status == "success"
    texts: list[str] = done.output["texts"]
    return texts[1:]


def attempts(admin: Any) -> list[tuple[Any, ...]]:
    return admin.execute("select attempt, outcome, cause from attempts order by run_id, attempt").fetchall()


def standing(admin: Any) -> list[tuple[Any, ...]]:
    """Of each run the status, and what it has cost: failures and lost workers."""
    return admin.execute("select status, failures, worker_losses from runs order by id").fetchall()


def test_a_run_is_handed_over_at_its_next_step_and_goes_on_elsewhere_within_a_second(
    start: Start, enqueue: Callable[..., Run], open_gate: Callable[[], None], producer: Producer, admin: Any
) -> None:
    leaving = start()
    run = enqueue("waits")
    leaving.wait_for("first.begun")
    staying = start()

    leaving.process.send_signal(signal.SIGTERM)
    leaving.wait_for("worker.drains")
    open_gate()

    assert leaving.process.wait(20) == 0
    assert finishes(producer, run) == [f"first {leaving.process.pid}", f"second {staying.process.pid}"]
    assert (attempts(admin), standing(admin)) == ([(1, "drained", "drain")], [("success", 0, 0)])
    (pause,) = admin.execute(
        "select runs.dispatched_at - attempts.ended_at from runs join attempts on run_id = runs.id"
    ).fetchone()
    assert pause < datetime.timedelta(seconds=1)


def test_a_bell_that_waits_for_a_slot_goes_back_to_the_queue(
    start: Start, enqueue: Callable[..., Run], open_gate: Callable[[], None], settings: Settings
) -> None:
    leaving = start(concurrency=1, ring_again_after=60)
    enqueue("waits")
    leaving.wait_for("first.begun")
    waits = enqueue("waits", thread_id="another")
    client = connect_redis(settings, timeout=5)
    assert client is not None
    with client:
        assert eventually(lambda: client.llen(settings.queue) == 0)

        leaving.process.send_signal(signal.SIGTERM)
        leaving.wait_for("worker.drains")
        open_gate()

        assert leaving.process.wait(20) == 0
        bells = [json.loads(bell)["headers"]["id"] for bell in client.lrange(settings.queue, 0, -1)]
    assert waits.id in bells


@pytest.mark.parametrize(
    ("graph", "node", "number"),
    [("waits", "first", signal.SIGINT), ("blocks", "blocking", signal.SIGTERM)],
)
def test_a_node_that_takes_too_long_is_fenced_and_its_run_released_and_the_process_ends(
    graph: str, node: str, number: signal.Signals, start: Start, enqueue: Callable[..., Run], admin: Any
) -> None:
    leaving = start(prelude=COMMAND, drain_timeout=0.5)
    enqueue(graph)
    leaving.wait_for(f"{node}.begun")

    began = time.monotonic()
    leaving.process.send_signal(number)

    assert leaving.process.wait(20) == 0, "although its node does not end"
    assert time.monotonic() - began < 12
    assert (attempts(admin), standing(admin)) == ([(1, "drained", "drain timeout")], [("pending", 0, 0)])
    assert admin.execute("select count(*) from workers").fetchone() == (0,)


def test_a_second_sigint_ends_the_process_at_once_and_leaves_its_runs_to_the_leader(
    start: Start, enqueue: Callable[..., Run], admin: Any
) -> None:
    leaving = start()
    enqueue("waits")
    leaving.wait_for("first.begun")

    leaving.process.send_signal(signal.SIGINT)
    leaving.wait_for("worker.drains")
    began = time.monotonic()
    leaving.process.send_signal(signal.SIGINT)

    assert leaving.process.wait(20) == 128 + signal.SIGINT
    assert time.monotonic() - began < 2
    assert (attempts(admin), standing(admin)) == ([], [("running", 0, 0)])
    assert admin.execute("select count(*) from workers").fetchone() == (1,)


def test_a_worker_with_a_node_that_never_ends_replaces_itself_and_serves_on(
    start: Start, enqueue: Callable[..., Run], producer: Producer, admin: Any
) -> None:
    worker = start(prelude=COMMAND, drain_timeout=0.5)
    (before,) = admin.execute("select id from workers").fetchone()
    stuck = enqueue("limited")
    assert producer.wait(stuck.id, tenant="acme", timeout=20).status == "timeout"

    worker.wait_for("worker.replaces_itself")
    run = enqueue("blocks", "quick", "other")

    pid = worker.process.pid
    assert finishes(producer, run) == [f"blocking {pid}", f"second {pid}"]
    assert sum("worker.ready" in line for line in worker.lines) == 2
    ((after, after_pid),) = admin.execute("select id, pid from workers").fetchall()
    assert after != before
    assert after_pid == pid
    assert worker.stop() == 0


def test_with_prefork_a_child_with_a_node_that_never_ends_is_replaced(
    start: Start, enqueue: Callable[..., Run], producer: Producer
) -> None:
    worker = start("prefork", concurrency=1, drain_timeout=0.5)
    worker.wait_for("sweeper.leads")  # the child is up, which Celery does not wait for
    stuck = enqueue("limited")
    assert producer.wait(stuck.id, tenant="acme", timeout=20).status == "timeout"

    worker.wait_for("worker.stuck")
    first, second = finishes(producer, enqueue("blocks", "quick", "other"))

    assert first.split()[1] == second.split()[1]
    assert worker.process.poll() is None


def test_with_prefork_the_runs_of_the_children_are_handed_over_too(
    start: Start, enqueue: Callable[..., Run], open_gate: Callable[[], None], admin: Any
) -> None:
    leaving = start("prefork", concurrency=2)
    leaving.wait_for("sweeper.leads")
    for n in range(2):
        enqueue("waits", thread_id=f"t{n}")
    assert eventually(lambda: sum("first.begun" in line for line in leaving.lines) == 2)

    leaving.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: sum("worker.drains" in line for line in leaving.lines) == 2)
    open_gate()

    assert leaving.process.wait(20) == 0
    assert (attempts(admin), standing(admin)) == ([(1, "drained", "drain")] * 2, [("pending", 0, 0)] * 2)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within twenty seconds."""
    ends_at = time.monotonic() + 20
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True
