"""A run that has cost workers is executed by a child process, alone, and is not lost with its parent."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from threadmill.producers import Producer, Run

# A node says on stderr that it has begun, and who executes it.
GRAPHS = """
    import asyncio, operator, os, sys, time
    from pathlib import Path
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict, total=False):
        texts: Annotated[list[str], operator.add]

    def begin(node):
        print(f"{node}.begun {os.getpid()}", file=sys.stderr, flush=True)
        return {"texts": [f"{node} {os.getpid()}"]}

    async def first(state):
        texts = begin("first")
        while state["texts"] == ["slow"] and not Path("gate").exists():
            await asyncio.sleep(0.02)
        return texts

    def blocking(state):
        texts = begin("blocking")
        while state["texts"] == ["slow"] and not Path("gate").exists():
            time.sleep(0.02)
        return texts

    def second(state):
        if state["texts"][0] == "exit":
            os._exit(3)
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
Start = Callable[..., Any]


@pytest.fixture
def start(serve: Callable[..., None], start_worker: Start) -> Start:
    serve(GRAPHS, waits={}, blocks={}, limited={"timeout": 0.5, "max_attempts": 1})
    return lambda **overrides: start_worker(**{**QUICK, **overrides})


@pytest.fixture
def open_gate(tmp_path: Path) -> Callable[[], None]:
    return (tmp_path / "gate").touch


@pytest.fixture
def enqueue(producer: Producer, admin: Any) -> Callable[..., Run]:
    """Enqueues a run, by default one that has cost two workers."""

    def enqueue(graph: str, text: str = "slow", thread_id: str = "t", losses: int = 2) -> Run:
        # By the column's default: no worker sees the run before.
        admin.execute(f"alter table runs alter worker_losses set default {losses}")
        # sync: what has ended is stored when the next node ends its process at once.
        run = producer.enqueue(
            graph, {"texts": [text]}, tenant="acme", thread_id=thread_id, durability="sync"
        )
        admin.execute("alter table runs alter worker_losses set default 0")
        return run

    return enqueue


def begun(worker: Any, node: str) -> psutil.Process:
    """The process that executes the node, when it has begun."""
    line = worker.wait_for(f"{node}.begun")
    return psutil.Process(int(line.split()[1]))


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone; a child that nobody waits for counts as gone."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within twenty seconds."""
    ends_at = time.monotonic() + 20
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


def attempts(admin: Any) -> list[tuple[Any, ...]]:
    return admin.execute(
        "select attempt, outcome, cause, node from attempts order by run_id, attempt"
    ).fetchall()


def standing(admin: Any) -> list[tuple[Any, ...]]:
    """Of each run the status, and what it has cost: failures and lost workers."""
    return admin.execute("select status, failures, worker_losses from runs order by id").fetchall()


def test_runs_that_have_cost_two_workers_are_executed_by_a_child_which_is_replaced_when_it_is_lost(
    start: Start, enqueue: Callable[..., Run], producer: Producer, admin: Any
) -> None:
    worker = start(drain_timeout=0.5)

    def executed_by(graph: str, thread_id: str, losses: int = 2) -> set[int]:
        run = enqueue(graph, "quick", thread_id, losses)
        done = producer.wait(run.id, tenant="acme", timeout=30)
        assert done.status == "success"
        return {int(node.split()[1]) for node in done.output["texts"][1:]}

    assert executed_by("waits", "innocent", losses=1) == {worker.process.pid}
    (first,) = executed_by("waits", "first")
    assert attempts(admin) == []

    # It ends its process.
    done = producer.wait(enqueue("waits", "exit").id, tenant="acme", timeout=30)

    assert (done.status, done.error.type, done.error.node) == ("error", "WorkerLost", "second")
    assert attempts(admin) == [(1, "lost", "exit code 3", "second")]
    assert admin.execute("select reason, node, checkpoint_id is not null from dead_letters").fetchone() == (
        "worker_lost",
        "second",
        True,
    )

    # Its node never ends, and keeps the one thread that the next one needs.
    stuck = enqueue("limited", thread_id="stuck")
    assert producer.wait(stuck.id, tenant="acme", timeout=30).status == "timeout"
    second = begun(worker, "blocking")

    (third,) = executed_by("blocks", "next")

    assert len({worker.process.pid, first, second.pid, third}) == 4
    assert eventually(lambda: has_ended(second))
    assert worker.stop() == 0
    assert not psutil.pid_exists(third)


def test_a_child_that_has_lost_its_parent_hands_over_its_run_and_ends(
    start: Start, enqueue: Callable[..., Run], open_gate: Callable[[], None], admin: Any
) -> None:
    lost = start()
    enqueue("waits")
    child = begun(lost, "first")

    lost.process.kill()
    assert eventually(lambda: any("worker.drains" in line for line in lost.lines)), "the child's word"
    open_gate()

    assert eventually(lambda: has_ended(child))
    assert (attempts(admin), standing(admin)) == ([(1, "drained", "drain", None)], [("pending", 0, 2)])


def test_a_parent_that_drains_has_its_child_hand_over_what_takes_too_long(
    start: Start, enqueue: Callable[..., Run], admin: Any
) -> None:
    leaving = start(drain_timeout=0.5)
    enqueue("blocks")
    child = begun(leaving, "blocking")

    leaving.process.send_signal(signal.SIGTERM)

    assert leaving.process.wait(20) == 0
    assert has_ended(child), "although its node does not end"
    assert (attempts(admin), standing(admin)) == (
        [(1, "drained", "drain timeout", None)],
        [("pending", 0, 2)],
    )
