"""A run that kills its worker is a dead letter after three losses, and takes nobody with it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from threadmill.dlq import Desk
from threadmill.producers import Producer, Run

INNOCENT = 200
QUICK = {"heartbeat_interval": 0.3, "heartbeat_timeout": 1.5, "sweep_interval": 0.3, "ring_again_after": 1}

GRAPHS = """
    import asyncio, operator, os, signal
    from typing import Annotated
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    async def first(state):
        await asyncio.sleep(0.3)
        return {"texts": ["first"]}

    async def second(state):
        if state["texts"][0] == "poison":
            await asyncio.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"texts": ["second"]}

    work = (
        StateGraph(State).add_node("first", first).add_node("second", second)
        .add_edge(START, "first").add_edge("first", "second")
    )
"""


class Fleet:
    """Worker processes, each started again when it is gone."""

    def __init__(self, start: Callable[..., Any], number: int) -> None:
        self._start = start
        self.workers = [start(**QUICK) for _ in range(number)]
        self.deaths = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._replace)
        self._thread.start()

    def _replace(self) -> None:
        while not self._stopping.wait(0.1):
            for place, worker in enumerate(self.workers):
                if worker.process.poll() is not None:
                    assert worker.process.returncode == -signal.SIGKILL, worker.lines[-20:]
                    self.deaths += 1
                    self.workers[place] = self._start(**QUICK)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def fleet(serve: Callable[..., None], start_worker: Callable[..., Any]) -> Iterator[Fleet]:
    serve(GRAPHS, work={"durability": "sync"})
    fleet = Fleet(start_worker, 2)
    yield fleet
    fleet.stop()


@pytest.mark.chaos
def test_poison_is_buried_after_three_losses_and_the_innocent_succeed(
    fleet: Fleet, producer: Producer, admin: Any, settings: Any
) -> None:
    def request(text: str, thread: str) -> dict[str, Any]:
        return {"graph": "work", "input": {"texts": [text]}, "tenant": "acme", "thread_id": thread}

    poison = producer.enqueue(**request("poison", "poison"))
    innocent: list[Run] = []
    for number in range(INNOCENT):
        innocent.append(producer.enqueue(**request("innocent", f"t{number}")))
        time.sleep(0.02)

    assert producer.wait(poison.id, tenant="acme", timeout=60).status == "error"
    for run in innocent:
        assert producer.wait(run.id, tenant="acme", timeout=60).status == "success"

    with Desk(settings) as desk:
        (letter,) = desk.list()
    assert (letter.run_id, letter.reason, letter.node) == (poison.id, "worker_lost", "second")
    assert letter.error.message == "its worker was lost 3 times, at last by signal 9 (SIGKILL)"
    attempts = admin.execute(
        "select outcome, cause, node from attempts where run_id = %s order by attempt", [poison.id]
    ).fetchall()
    assert attempts == [
        ("lost", "heartbeat stale", None),
        ("lost", "heartbeat stale", None),
        ("lost", "signal 9 (SIGKILL)", "second"),
    ]
    assert fleet.deaths == 2, "the third time only the quarantine's child died"
    assert admin.execute(
        "select count(*) from runs where failures > 0 and id <> %s", [poison.id]
    ).fetchone() == (0,)
    for number in range(INNOCENT):
        assert producer.state("acme", f"t{number}").values == {"texts": ["innocent", "first", "second"]}
