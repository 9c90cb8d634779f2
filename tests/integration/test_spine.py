"""A run is enqueued, a worker process executes it against Postgres, its result comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from threadmill.core.errors import RunNotFound, WaitTimeout
from threadmill.core.settings import Settings
from threadmill.producers import AsyncProducer, Producer

ECHO = """
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START, add_messages

    class State(TypedDict):
        messages: Annotated[list, add_messages]

    async def think(state):
        return {}

    async def answer(state):
        last = state["messages"][-1].content
        if last == "boom":
            raise ValueError("it went boom")
        return {"messages": [("ai", f"{len(state['messages'])}: {last}")]}

    echo = (
        StateGraph(State)
        .add_node("think", think).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "answer")
    )
"""


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture
def echo(serve: Callable[..., None], start_worker: Callable[..., Any]) -> None:
    serve(ECHO, echo={})
    start_worker()


def test_a_run_comes_back_with_its_output(echo: None, producer: Producer) -> None:
    run = producer.enqueue("echo", said("hello"), tenant="acme", thread_id="ticket-42")
    assert (run.status, run.seq, run.attempt) == ("pending", 1, 0)

    done = producer.wait(run.id, tenant="acme", timeout=20)

    assert done.status == "success"
    assert [m["content"] for m in done.output["messages"]] == ["hello", "1: hello"]
    assert done.error is None
    assert done.attempt == 1


def test_the_next_run_of_a_thread_continues_its_state(echo: None, producer: Producer) -> None:
    for text in ("one", "two"):
        run = producer.enqueue("echo", said(text), tenant="acme", thread_id="t")
        producer.wait(run.id, tenant="acme", timeout=20)

    state = producer.state("acme", "t")

    assert [m["content"] for m in state.values["messages"]] == ["one", "1: one", "two", "3: two"]
    assert (state.status, state.next, state.interrupts) == ("idle", (), ())


def test_a_failed_run_says_why_and_where(echo: None, producer: Producer, admin: Any) -> None:
    run = producer.enqueue("echo", said("boom"), tenant="acme", thread_id="t")

    done = producer.wait(run.id, tenant="acme", timeout=20)

    assert done.status == "error"
    assert done.error is not None
    assert (done.error.type, done.error.message, done.error.node) == ("ValueError", "it went boom", "answer")
    attempt = admin.execute("select outcome, node, exception_type, traceback from attempts").fetchone()
    assert attempt[:3] == ("failed", "answer", "ValueError")
    assert "it went boom" in attempt[3]
    assert admin.execute("select status, run_id::text, node from dead_letters").fetchall() == [
        ("waiting", run.id, "answer")
    ]


async def test_the_asyncio_producer_has_the_same_surface(echo: None, settings: Settings) -> None:
    async with AsyncProducer(settings) as producer:
        runs = await producer.enqueue_many(
            {"graph": "echo", "input": said(str(n)), "tenant": "acme", "thread_id": f"t{n}"}
            for n in range(20)
        )
        done = await asyncio.gather(*(producer.wait(run.id, tenant="acme", timeout=20) for run in runs))

        assert [run.status for run in done] == ["success"] * 20
        assert {run.id for run in await producer.list(tenant="acme")} == {run.id for run in runs}
        assert (await producer.state("acme", "t3")).values["messages"][0]["content"] == "3"


def test_waiting_for_what_does_not_finish_times_out(
    serve: Callable[..., None], start_worker: Callable[..., Any], producer: Producer
) -> None:
    serve(ECHO, echo={})
    start_worker().stop()
    run = producer.enqueue("echo", said("hello"), tenant="acme", thread_id="t")

    with pytest.raises(WaitTimeout, match="still pending after"):
        producer.wait(run.id, tenant="acme", timeout=0.2)


def test_another_tenants_run_is_not_found(echo: None, producer: Producer) -> None:
    run = producer.enqueue("echo", said("hello"), tenant="acme", thread_id="t")

    with pytest.raises(RunNotFound):
        producer.get(run.id, tenant="globex")
    assert producer.list(tenant="globex") == []


def test_prefork_serves_too(
    serve: Callable[..., None], start_worker: Callable[..., Any], producer: Producer
) -> None:
    serve(ECHO, echo={})
    start_worker("prefork", concurrency=2)
    runs = [producer.enqueue("echo", said("x"), tenant="acme", thread_id=f"t{n}") for n in range(4)]

    assert [producer.wait(r.id, tenant="acme", timeout=30).status for r in runs] == ["success"] * 4
