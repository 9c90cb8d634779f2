"""A cancelled run ends at once, its thread goes on, and what it still writes is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from threadmill.core.errors import LeaseLost, NotCancellable, RunNotFound
from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import AsyncProducer, Producer, Run, waiting

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START
    from langgraph.runtime import Runtime

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    started, gate, stopped = threading.Event(), threading.Event(), threading.Event()
    finished, refused = [], []

    async def first(state, runtime: Runtime):
        match state["texts"][-1]:
            case "slow":
                started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.set()
            case "stubborn":
                started.set()
                await asyncio.shield(asyncio.ensure_future(go_on(runtime)))
        return {"texts": ["first"]}

    async def go_on(runtime):
        assert await asyncio.to_thread(gate.wait, 20)
        try:
            await runtime.store.aput(("notes",), "n", {"by": "first"})
        except Exception as error:
            refused.append(type(error).__name__)
        finally:
            stopped.set()

    def second(state):
        finished.append("second")
        if state["texts"][-2] == "fail":
            raise ValueError("no")
        return {"texts": ["second"]}

    work = (
        StateGraph(State).add_node("first", first).add_node("second", second)
        .add_edge(START, "first").add_edge("first", "second")
    )
"""
CANCELLED = ("Cancelled", "cancelled on request", None)


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(GRAPHS, work={"durability": "sync"})
    return start_local(ring_again_after=60)


@pytest.fixture
def enqueue(producer: Producer) -> Callable[[str], Run]:
    return lambda text: producer.enqueue("work", {"texts": [text]}, tenant="acme", thread_id="t")


def error_of(run: Run) -> tuple[str, str, str | None]:
    assert run.error is not None
    return run.error.type, run.error.message, run.error.node


def test_a_pending_run_is_cancelled_at_once_and_the_next_goes_on(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer, admin: Any
) -> None:
    first, second, third = (enqueue(text) for text in "abc")

    for run in (second, first):
        cancelled = producer.cancel(run.id, tenant="acme")
        assert (cancelled.status, error_of(cancelled)) == ("interrupted", CANCELLED)
        assert cancelled.finished_at is not None
        assert cancelled.started_at is None
    assert worker.drops(first)
    assert worker.drops(second)
    worker.listen()

    assert producer.wait(third.id, tenant="acme", timeout=20).status == "success"
    state = producer.state("acme", "t")
    assert (state.status, state.values) == ("idle", {"texts": ["c", "first", "second"]})
    assert admin.execute("select count(*) from attempts").fetchone() == (0,)


def test_the_only_run_of_a_thread_leaves_it_idle(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer
) -> None:
    producer.cancel(enqueue("a").id, tenant="acme")

    state = producer.state("acme", "t")
    assert (state.status, state.values) == ("idle", {})


def test_a_running_run_is_stopped_at_once(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer, admin: Any
) -> None:
    run = enqueue("slow")
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)
    before = producer.state("acme", "t").checkpoint_id

    cancelled = producer.cancel(run.id, tenant="acme")
    assert (cancelled.status, cancelled.attempt) == ("interrupted", 1)
    assert producer.state("acme", "t").status == "interrupted"

    assert worker.graphs.stopped.wait(1), "by Redis; the next heartbeat would find out later"
    with pytest.raises(LeaseLost):
        answer.result(20)
    assert worker.graphs.finished == [], "the second node is not begun"
    state = producer.state("acme", "t")
    assert (state.checkpoint_id, state.values) == (before, {"texts": ["slow"]})
    assert producer.get(run.id, tenant="acme") == cancelled
    assert admin.execute(
        "select attempt, outcome, cause, started_at is not null from attempts"
    ).fetchall() == [(1, "cancelled", "on request", True)]
    assert admin.execute("select count(*) from dead_letters").fetchone() == (0,)


def test_what_a_node_writes_that_goes_on_all_the_same_is_refused(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer, admin: Any
) -> None:
    run = enqueue("stubborn")
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)

    producer.cancel(run.id, tenant="acme")
    with pytest.raises(LeaseLost):
        answer.result(20)
    worker.graphs.gate.set()

    assert worker.graphs.stopped.wait(20)
    assert worker.graphs.refused == ["LeaseLost"]
    assert admin.execute("select count(*) from store").fetchone() == (0,)
    assert producer.state("acme", "t").values == {"texts": ["stubborn"]}


def test_the_thread_of_a_cancelled_running_run_goes_on(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer
) -> None:
    run, following = enqueue("stubborn"), enqueue("quick")
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)
    worker.listen()

    producer.cancel(run.id, tenant="acme")

    # The node of the cancelled attempt is still at work.
    assert producer.wait(following.id, tenant="acme", timeout=20).status == "success"
    worker.graphs.gate.set()
    assert isinstance(answer.exception(20), LeaseLost)
    state = producer.state("acme", "t")
    assert (state.status, state.values) == ("idle", {"texts": ["stubborn", "quick", "first", "second"]})


def test_who_waits_for_a_cancelled_run_is_told(
    worker: Any,
    enqueue: Callable[[str], Run],
    producer: Producer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "TRUST_SECONDS", 30.0)  # who waits does not ask the ledger again by itself
    run = enqueue("a")

    with (
        Producer(settings) as other,
        producer._shards.of("acme").notices.of(run.id) as wait,
        ThreadPoolExecutor(1) as pool,
    ):
        told = pool.submit(wait, 30)
        other.cancel(run.id, tenant="acme")
        told.result(20)


@pytest.mark.parametrize("text", ["a", "fail"])
def test_a_finished_run_is_not_cancellable(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer, text: str
) -> None:
    run = enqueue(text)
    worker.answer(run).exception(20)
    done = producer.get(run.id, tenant="acme")

    with pytest.raises(NotCancellable) as raised:
        producer.cancel(run.id, tenant="acme")

    assert (raised.value.run_id, raised.value.status) == (run.id, done.status)
    assert done.is_finished
    assert producer.get(run.id, tenant="acme") == done


def test_a_cancelled_run_is_not_cancellable(
    enqueue: Callable[[str], Run], worker: Any, producer: Producer
) -> None:
    run = enqueue("a")
    producer.cancel(run.id, tenant="acme")

    with pytest.raises(NotCancellable, match=f"run {run.id} is interrupted and cannot be cancelled"):
        producer.cancel(run.id, tenant="acme")


def test_of_several_who_cancel_at_once_one_does(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer
) -> None:
    run = enqueue("a")
    barrier = threading.Barrier(6)

    def cancel(_: int) -> str:
        barrier.wait(10)
        try:
            return producer.cancel(run.id, tenant="acme").status
        except NotCancellable:
            return "refused"

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(cancel, range(6))) == ["interrupted"] + ["refused"] * 5


def test_another_tenants_run_is_not_found_and_goes_on(
    worker: Any, enqueue: Callable[[str], Run], producer: Producer
) -> None:
    run = enqueue("a")

    for name in (run.id, "no-uuid", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(RunNotFound, match=name):
            producer.cancel(name, tenant="globex")

    assert worker.answer(run).result(20) == "success"


def test_cancelling_a_replay_discards_its_dead_letter_and_frees_the_lane(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    enqueue: Callable[[str], Run],
    producer: Producer,
    settings: Settings,
) -> None:
    serve(GRAPHS, work={"on_dead_letter": "hold"})
    worker = start_local(ring_again_after=60)
    run = enqueue("fail")
    worker.answer(run).exception(20)
    following = enqueue("a")
    with Desk(settings) as desk:
        (letter,) = desk.list()
        desk.replay(letter.id)
        assert worker.drops(following)

        assert producer.cancel(run.id, tenant="acme").status == "interrupted"

        assert desk.get(letter.id).status == "discarded"
    assert worker.answer(following).result(20) == "success"


async def test_the_asyncio_producer_cancels_and_tells_too(
    worker: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "TRUST_SECONDS", 30.0)
    async with AsyncProducer(settings) as producer, AsyncProducer(settings) as other:
        run = await producer.enqueue("work", {"texts": ["a"]}, tenant="acme", thread_id="t")
        async with producer._shards.of("acme").notices.of(run.id) as wait:
            told = asyncio.create_task(wait(30))
            assert (await other.cancel(run.id, tenant="acme")).status == "interrupted"
            async with asyncio.timeout(20):
                await told

        with pytest.raises(NotCancellable):
            await producer.cancel(run.id, tenant="acme")
