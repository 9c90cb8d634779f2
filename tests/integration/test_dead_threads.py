"""What is cancelled on a thread whose last run has failed for good leaves it as it stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from threadmill.producers import Producer, Run

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START
    from langgraph.types import interrupt

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    started = threading.Event()

    async def ask(state):
        answer = interrupt("sure?")
        if answer == "hang":
            started.set()
            await asyncio.Event().wait()
        return {"texts": [answer]}

    async def check(state):
        if state["texts"][-1] == "fail":
            raise ValueError("no")
        if state["texts"][-1] == "hang later":
            started.set()
            await asyncio.Event().wait()
        return {"texts": ["checked"]}

    asking = (
        StateGraph(State).add_node("ask", ask).add_node("check", check)
        .add_edge(START, "ask").add_edge("ask", "check")
    )
    plain = StateGraph(State).add_node("check", check).add_edge(START, "check")
"""
TABLES = {
    "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint::text, metadata::text",
    "checkpoint_writes": "checkpoint_ns, checkpoint_id, task_id, idx, run_id, channel, blob",
    "checkpoint_blobs": "checkpoint_ns, channel, version, blob",
}


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    # Sync, so that what a run has written by the time its node begins is there.
    policy = {"max_attempts": 1, "durability": "sync"}
    serve(GRAPHS, asking=policy, plain=policy)
    return start_local(ring_again_after=60)


@pytest.fixture
def begin(worker: Any, producer: Producer) -> Callable[..., tuple[Run, Any]]:
    def begin(graph: str, *texts: str, resume: str | None = None) -> tuple[Run, Any]:
        what: dict[str, Any] = {"input": {"texts": list(texts)}} if resume is None else {}
        if resume is not None:
            (question,) = producer.state("acme", "t").interrupts
            what = {"command": {"resume": {question["id"]: resume}}}
        run = producer.enqueue(graph, tenant="acme", thread_id="t", **what)
        return run, worker.answer(run)

    return begin


@pytest.fixture
def tables(admin: Any) -> Callable[[], dict[str, list[Any]]]:
    return lambda: {
        table: admin.execute(f"select {columns} from {table} order by {columns}").fetchall()
        for table, columns in TABLES.items()
    }


def test_a_run_that_is_rolled_back_leaves_the_thread_before_the_one_that_failed(
    begin: Callable[..., Any],
    worker: Any,
    producer: Producer,
    tables: Callable[[], dict[str, list[Any]]],
) -> None:
    begin("plain", "a")[1].result(20)
    begin("plain", "fail")[1].exception(20)
    before = tables()

    worker.graphs.started.clear()
    run, answer = begin("plain", "hang later")
    assert worker.graphs.started.wait(20)
    assert tables() != before
    producer.cancel(run.id, tenant="acme", action="rollback")
    answer.exception(20)

    assert tables() == before
    begin("plain", "b")[1].result(20)
    assert producer.state("acme", "t").values["texts"] == ["a", "checked", "b", "checked"]


@pytest.mark.parametrize("answered", ["hang", "hang later"])
def test_an_answer_that_is_rolled_back_leaves_nothing_beside_the_question(
    begin: Callable[..., Any],
    worker: Any,
    producer: Producer,
    tables: Callable[[], dict[str, list[Any]]],
    answered: str,
) -> None:
    begin("asking", "a")[1].result(20)
    before_answer = producer.state("acme", "t").interrupts
    failed, answer = begin("asking", resume="fail")
    answer.exception(20)
    before = tables()

    worker.graphs.started.clear()
    run, answer = begin("asking", resume=answered)
    assert worker.graphs.started.wait(20)
    producer.cancel(run.id, tenant="acme", action="rollback")
    answer.exception(20)

    after = tables()
    for name, rows in before.items():
        assert [row for row in after[name] if row not in rows] == [], f"left in {name}"
        # What the failed run wrote beside the question was taken away when another began there.
        gone = [row for row in rows if row not in after[name]]
        assert name == "checkpoint_writes" or not gone
        assert {str(row[4]) for row in gone} <= {failed.id}
    assert producer.state("acme", "t").interrupts == before_answer
    begin("asking", resume="yes")[1].result(20)
    assert producer.state("acme", "t").values["texts"] == ["a", "yes", "checked"]
