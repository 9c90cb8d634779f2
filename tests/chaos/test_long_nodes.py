"""Numbers 4 and 5: a node that blocks the event loop, and one that takes long, are run once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.form import Form

from threadmill.core.settings import Settings
from threadmill.producers import Producer, Run

# Each execution of a node leaves a line in a file beside this one.
GRAPHS = """
    import asyncio, operator, time
    from pathlib import Path
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        seconds: float
        said: Annotated[list[str], operator.add]

    def note(name):
        with Path("executions").open("a") as file:
            file.write(name + "\\n")

    async def wait(state):
        note("wait")
        await asyncio.sleep(state["seconds"])
        return {"said": ["waited"]}

    async def block(state):
        note("block")
        time.sleep(state["seconds"] / 2)  # blocks the loop, and lets the other threads run
        ends_at = time.monotonic() + state["seconds"] / 2
        while time.monotonic() < ends_at:  # and so does this, but keeps their interpreter busy too
            pass
        return {"said": ["blocked"]}

    waits = StateGraph(State).add_node("wait", wait).add_edge(START, "wait")
    blocks = StateGraph(State).add_node("block", block).add_edge(START, "block")
"""
# A broker's visibility timeout is no setting of Threadmill's, since no message is held for long.
VISIBILITY = """
from threadmill.core import celery_app
options = celery_app._transport_options
celery_app._transport_options = lambda *given: {{**options(*given), "visibility_timeout": {seconds}}}
"""


@pytest.fixture
def executions(tmp_path: Path) -> Callable[[], list[str]]:
    """The nodes that were executed, in order."""

    def read() -> list[str]:
        file = tmp_path / "executions"
        return file.read_text().splitlines() if file.exists() else []

    return read


def eventually(condition: Callable[[], bool], timeout: float = 30) -> bool:
    ends_at = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


def enqueue(producer: Producer, graph: str, thread_id: str, seconds: float) -> Run:
    return producer.enqueue(graph, {"seconds": seconds, "said": []}, tenant="acme", thread_id=thread_id)


@pytest.mark.chaos
def test_a_node_that_blocks_the_loop_is_not_rescued_and_the_others_are_only_late(
    form: Form,
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    producer: Producer,
    executions: Callable[[], list[str]],
    admin: Any,
) -> None:
    serve(GRAPHS, waits={}, blocks={})
    seconds = 60.0 if form.long else 5.0
    impatient = {} if form.long else {"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0}
    start_worker(**impatient)
    others = [enqueue(producer, "waits", f"t{n}", 1.0) for n in range(10)]
    assert eventually(lambda: executions().count("wait") == 10)
    blocking = enqueue(producer, "blocks", "blocked", seconds)
    assert eventually(lambda: "block" in executions())
    start_worker(**impatient)  # that could rescue them

    runs = [producer.wait(run.id, tenant="acme", timeout=seconds + 30) for run in [blocking, *others]]

    assert [(run.status, run.attempt) for run in runs] == [("success", 1)] * 11
    assert sorted(executions()) == ["block"] + ["wait"] * 10
    assert admin.execute("select * from attempts").fetchall() == []


@pytest.mark.chaos
def test_a_node_that_outlasts_the_visibility_timeout_is_run_once(
    form: Form,
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    settings: Settings,
    executions: Callable[[], list[str]],
    admin: Any,
) -> None:
    serve(GRAPHS, waits={})
    # Each worker looks every 10 s for messages to restore, the first one first. The default is an hour.
    seconds = 600.0 if form.long else 9.0
    queues = {"seconds": VISIBILITY.format(seconds=5 if form.long else 2)}
    if form.long:
        queues["default"] = ""
    runs = []
    for queue, prelude in queues.items():
        # Two workers on each queue, so that somebody is free to take a message that comes again.
        own = {"queue": f"{settings.queue}-{queue}"}
        start_worker(prelude=prelude, **own)
        start_worker(prelude=prelude, **own)
        with Producer(settings.model_copy(update=own)) as producer:
            runs.append(enqueue(producer, "waits", queue, seconds))
    with Producer(settings) as producer:
        ended = [producer.wait(run.id, tenant="acme", timeout=seconds + 30) for run in runs]

    assert [(run.status, run.attempt) for run in ended] == [("success", 1)] * len(queues)
    assert executions() == ["wait"] * len(queues)
    assert admin.execute("select * from attempts").fetchall() == []
