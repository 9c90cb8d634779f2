"""A held lane, real workers of which one after the other is killed, and two replay workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from threadmill.core.settings import Settings
from threadmill.producers import Producer

FOLLOWERS = 5
KILLS = 2
QUICK = {
    "heartbeat_interval": 0.2,
    "heartbeat_timeout": 1.5,
    "sweep_interval": 0.2,
    "ring_again_after": 1.0,
    "replay_delay": 0.2,
    "replay_delay_max": 0.4,
    "replay_interval": 0.1,
}
# It fails until the gate is there, and then takes its time, so that it can be killed at it.
GRAPHS = """
    import asyncio, operator, sys
    from pathlib import Path
    from typing import Annotated, TypedDict
    from langgraph.graph import START, StateGraph

    class State(TypedDict):
        said: Annotated[list[str], operator.add]

    async def think(state):
        return {"said": ["hm"]}

    async def answer(state):
        if not Path("gate").exists():
            raise ConnectionError("the gate is shut")
        print("answer.begun", file=sys.stderr, flush=True)
        await asyncio.sleep(0.3)
        return {"said": ["done"]}

    strict = (
        StateGraph(State).add_node("think", think).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "answer")
    )
"""


@pytest.fixture
def start_drain(settings: Settings) -> Iterator[Callable[[], None]]:
    """Starts `threadmill dlq drain` in a process of its own."""
    drains: list[subprocess.Popen[bytes]] = []
    values = {**settings.model_dump(mode="json"), **QUICK, "max_replays": 50}
    environment = {f"THREADMILL_{k.upper()}": str(v) for k, v in values.items() if v is not None}

    def start() -> None:
        argv = [sys.executable, "-m", "threadmill.cli.main", "dlq", "drain"]
        drains.append(subprocess.Popen(argv, env={**os.environ, **environment}, stderr=subprocess.DEVNULL))

    yield start
    for drain in drains:
        drain.send_signal(signal.SIGTERM)
    assert [drain.wait(15) for drain in drains] == [0] * len(drains)


@pytest.mark.timeout(150)
def test_a_held_lane_goes_on_in_order_under_worker_kills(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    start_drain: Callable[[], None],
    producer: Producer,
    admin: Any,
    tmp_path: Path,
) -> None:
    serve(
        GRAPHS,
        strict={"on_dead_letter": "hold", "max_attempts": 1, "durability": "sync", "breaker_threshold": None},
    )
    workers = [start_worker(max_replays=50, **QUICK) for _ in range(KILLS + 1)]

    def enqueue(text: str) -> str:
        return producer.enqueue("strict", {"said": [text]}, tenant="acme", thread_id="t").id

    failed = enqueue("first")
    assert producer.wait(failed, tenant="acme", timeout=30).status == "error"
    followers = [enqueue(f"follower {number}") for number in range(FOLLOWERS)]
    for _ in range(2):
        start_drain()

    (tmp_path / "gate").touch()
    for _ in range(KILLS):
        victim = busy(workers)
        victim.stop(signal.SIGKILL)
        workers.remove(victim)

    done = [producer.wait(run, tenant="acme", timeout=60) for run in (failed, *followers)]
    assert [run.status for run in done] == ["success"] * (FOLLOWERS + 1)
    finished = [run.finished_at for run in done if run.finished_at is not None]
    assert finished == sorted(finished)
    texts = ["first", *(f"follower {number}" for number in range(FOLLOWERS))]
    assert producer.state("acme", "t").values["said"] == [
        word for text in texts for word in (text, "hm", "done")
    ]
    assert admin.execute("select status from dead_letters").fetchall() == [("resolved",)]
    assert admin.execute("select count(*) from held_lanes").fetchone() == (0,)
    replays, recorded = admin.execute(
        "select max(replays), (select count(*) from dead_letter_actions where action = 'replay') from runs"
    ).fetchone()
    assert replays == recorded


def busy(workers: list[Any]) -> Any:
    """The worker that is at a node which takes its time."""
    seen = {id(worker): len(worker.lines) for worker in workers}
    ends_at = time.monotonic() + 20
    while time.monotonic() < ends_at:
        for worker in workers:
            if any("answer.begun" in line for line in worker.lines[seen[id(worker)] :]):
                return worker
        time.sleep(0.01)
    pytest.fail("nobody is at work")
