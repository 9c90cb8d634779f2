"""A run that arrives on a busy thread: it waits, is refused, or takes the place of those that are there."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from threadmill.core.database import connection_info
from threadmill.core.errors import IdempotencyConflict, ThreadBusy
from threadmill.core.floors import Floors
from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import AsyncProducer, Producer, Run, waiting
from threadmill.producers.catalogue import Catalogue
from threadmill.producers.enqueue import enqueue as enqueuing
from threadmill.producers.quotas import Quotas
from threadmill.producers.request import check_request

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START
    from langgraph.types import interrupt

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    started, stopped, failing = threading.Event(), threading.Event(), threading.Event()
    failing.set()

    async def answer(state):
        match state["texts"][-1]:
            case "hang":
                started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.set()
            case "fail" if failing.is_set():
                raise ValueError("no")
        return {"texts": ["answer"]}

    talk = StateGraph(State).add_node("answer", answer).add_edge(START, "answer")
"""
ON_REQUEST = {"interrupt": "cancelled for a newer run", "rollback": "rolled back for a newer run"}
both = pytest.mark.parametrize("strategy", ["interrupt", "rollback"])


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(GRAPHS, talk={"max_attempts": 1, "durability": "sync"})
    return start_local(ring_again_after=60)


@pytest.fixture
def enqueue(worker: Any, producer: Producer) -> Callable[..., Run]:
    def one(text: str, strategy: str = "enqueue", **options: Any) -> Run:
        values = {"tenant": "acme", "thread_id": "t", "multitask_strategy": strategy, **options}
        return producer.enqueue("talk", {"texts": [text]}, **values)

    return one


@pytest.fixture
def hang(worker: Any, enqueue: Callable[..., Run]) -> Callable[..., Run]:
    """Enqueues a run and executes it as far as the node that does not end."""

    def one(**options: Any) -> Run:
        run = enqueue("hang", **options)
        worker.graphs.started.clear()
        worker.answer(run)
        assert worker.graphs.started.wait(20)
        return run

    return one


def statuses(producer: Producer) -> list[str]:
    """Of the thread's runs, the first one first."""
    runs = producer.list(tenant="acme", thread_id="t")
    return [run.status for run in sorted(runs, key=lambda run: run.seq)]


@pytest.mark.parametrize(
    ("strategy", "first", "texts"),
    [
        # What LangGraph Server does, see its four strategies; there, a run that is rolled back is deleted.
        ("enqueue", "success", ["zero", "answer", "first", "answer", "second", "answer"]),
        ("interrupt", "interrupted", ["zero", "answer", "hang", "second", "answer"]),
        ("rollback", "interrupted", ["zero", "answer", "second", "answer"]),
    ],
)
def test_what_becomes_of_the_run_that_was_there(
    worker: Any,
    enqueue: Callable[..., Run],
    hang: Callable[..., Run],
    producer: Producer,
    strategy: str,
    first: str,
    texts: list[str],
) -> None:
    worker.answer(enqueue("zero")).result(20)
    there = enqueue("first") if strategy == "enqueue" else hang()
    worker.listen()

    second = enqueue("second", strategy)

    assert producer.wait(second.id, tenant="acme", timeout=20).status == "success"
    assert producer.wait(there.id, tenant="acme", timeout=20).status == first
    assert producer.state("acme", "t").values == {"texts": texts}


def test_reject_leaves_it_untouched(
    enqueue: Callable[..., Run], hang: Callable[..., Run], producer: Producer
) -> None:
    there = hang()
    with pytest.raises(ThreadBusy):
        enqueue("second", "reject")
    assert statuses(producer) == ["running"]
    producer.cancel(there.id, tenant="acme")


@both
def test_running_and_pending_runs_are_cancelled_and_the_new_one_is_rung_for_at_once(
    worker: Any,
    enqueue: Callable[..., Run],
    hang: Callable[..., Run],
    producer: Producer,
    admin: Any,
    strategy: str,
) -> None:
    running, pending = hang(), enqueue("waits")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    other = enqueue("other", thread_id="u", run_at=later)

    new = enqueue("new", strategy)

    assert worker.graphs.stopped.wait(1), "the worker is told, and does not find out by itself"
    assert statuses(producer) == ["interrupted", "interrupted", "pending"]
    for run in (running, pending):
        error = producer.get(run.id, tenant="acme").error
        assert error is not None
        assert (error.type, error.message) == ("Cancelled", ON_REQUEST[strategy])
    assert producer.get(other.id, tenant="acme").status == "pending"
    assert admin.execute("select run_id::text, outcome, cause from attempts").fetchall() == [
        (running.id, "cancelled", f"multitask {strategy}")
    ]
    rung = admin.execute("select dispatched_at is not null from runs where id = %s", (new.id,)).fetchone()
    assert rung == (True,)
    assert producer.state("acme", "t").status == "busy"
    assert worker.answer(new).result(20) == "success"


@both
def test_on_a_quiet_thread_it_is_a_run_like_any_other(
    worker: Any, enqueue: Callable[..., Run], producer: Producer, strategy: str
) -> None:
    worker.answer(enqueue("zero")).result(20)

    assert worker.answer(enqueue("new", strategy)).result(20) == "success"

    assert statuses(producer) == ["success", "success"]
    assert producer.state("acme", "t").values == {"texts": ["zero", "answer", "new", "answer"]}


@both
def test_who_waits_for_a_run_that_was_cancelled_is_told(
    enqueue: Callable[..., Run],
    producer: Producer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
) -> None:
    monkeypatch.setattr(waiting, "TRUST_SECONDS", 30.0)
    run = enqueue("a")
    with producer._shards.of("acme").notices.of(run.id) as wait, ThreadPoolExecutor(1) as pool:
        told = pool.submit(wait, 30)
        enqueue("b", strategy)
        told.result(20)


@both
def test_a_repeated_idempotency_key_cancels_nothing(
    enqueue: Callable[..., Run], hang: Callable[..., Run], producer: Producer, strategy: str
) -> None:
    first = enqueue("a", strategy, idempotency_key="k")
    enqueue("b")

    again = enqueue("a", strategy, idempotency_key="k")

    assert (again.id, again.status) == (first.id, "pending")
    assert statuses(producer) == ["pending", "pending"]
    with pytest.raises(IdempotencyConflict):
        enqueue("other", strategy, idempotency_key="k")
    assert statuses(producer) == ["pending", "pending"]


@both
def test_a_key_of_another_thread_cancels_nothing_on_this_one(
    enqueue: Callable[..., Run], producer: Producer, strategy: str
) -> None:
    enqueue("a", thread_id="u", idempotency_key="k")
    enqueue("b")

    with pytest.raises(IdempotencyConflict):
        enqueue("a", strategy, idempotency_key="k")

    assert statuses(producer) == ["pending"]


def test_of_several_in_one_call_each_cancels_those_before_it(
    worker: Any, enqueue: Callable[..., Run], hang: Callable[..., Run], producer: Producer, admin: Any
) -> None:
    there = hang()
    call = [
        ("a", "enqueue"), ("b", "interrupt"), ("c", "enqueue"), ("d", "rollback"), ("e", "enqueue"),
    ]  # fmt: skip
    requests = [
        {"graph": "talk", "input": {"texts": [text]}, "tenant": "acme", "thread_id": "t",
         "multitask_strategy": strategy}
        for text, strategy in call
    ]  # fmt: skip
    requests.insert(2, {**requests[0], "thread_id": "u"})

    runs = producer.enqueue_many(requests)

    assert [run.status for run in runs] == [
        "interrupted", "interrupted", "pending", "interrupted", "pending", "pending",
    ]  # fmt: skip
    assert [run.seq for run in runs if run.thread_id == "t"] == [2, 3, 4, 5, 6]
    errors = [run.error.message for run in runs if run.error is not None]
    assert errors == [ON_REQUEST["interrupt"], ON_REQUEST["rollback"], ON_REQUEST["rollback"]]
    assert producer.get(there.id, tenant="acme").status == "interrupted"
    assert runs == [producer.get(run.id, tenant="acme") for run in runs]
    worker.listen()
    for run in runs:
        producer.wait(run.id, tenant="acme", timeout=20)
    assert producer.state("acme", "t").values == {"texts": ["hang", "d", "answer", "e", "answer"]}


@both
def test_a_replay_that_is_taken_over_is_discarded_and_frees_the_lane(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    settings: Settings,
    strategy: str,
) -> None:
    serve(GRAPHS, talk={"max_attempts": 1, "on_dead_letter": "hold"})
    worker = start_local(ring_again_after=60)
    where = {"tenant": "acme", "thread_id": "t"}
    failed = producer.enqueue("talk", {"texts": ["fail"]}, **where)
    worker.answer(failed).exception(20)
    with Desk(settings) as desk:
        (letter,) = desk.list()
        # A dead letter that waits holds the lane, as ever.
        held = producer.enqueue("talk", {"texts": ["a"]}, **where, multitask_strategy=strategy)
        assert worker.drops(held)
        desk.replay(letter.id)

        new = producer.enqueue("talk", {"texts": ["new"]}, **where, multitask_strategy=strategy)

        assert desk.get(letter.id).status == "discarded"
    assert statuses(producer) == ["interrupted", "interrupted", "pending"]
    assert worker.answer(new).result(20) == "success"
    assert producer.state("acme", "t").values == {"texts": ["new", "answer"]}


@both
def test_many_at_once_leave_one(enqueue: Callable[..., Run], producer: Producer, strategy: str) -> None:
    callers = 8
    barrier = threading.Barrier(callers)

    def one(number: int) -> Run:
        barrier.wait(10)
        return enqueue(str(number), strategy)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(one, range(callers)))

    assert statuses(producer) == ["interrupted"] * (callers - 1) + ["pending"]


@both
@pytest.mark.parametrize("commits", [True, False])
def test_in_a_callers_transaction_it_happens_with_the_commit_or_not_at_all(
    worker: Any,
    enqueue: Callable[..., Run],
    hang: Callable[..., Run],
    producer: Producer,
    settings: Settings,
    strategy: str,
    commits: bool,
) -> None:
    there = hang()
    worker.graphs.stopped.clear()
    with psycopg.connect(connection_info(settings)) as session:  # the fleet's role
        new = enqueue("new", strategy, session=session)
        setting = session.execute("select current_setting('threadmill.tenant', true)").fetchone()
        assert setting in [(None,), ("",)], "the caller's transaction is bound to no tenant afterwards"
        assert producer.get(there.id, tenant="acme").status == "running"
        if commits:
            worker.listen()
            session.commit()
        else:
            session.rollback()

    if commits:
        assert worker.graphs.stopped.wait(1.5), "the leader hears of it and tells the worker"
        assert producer.wait(new.id, tenant="acme", timeout=20).status == "success"
        kept = ["hang"] if strategy == "interrupt" else []
        assert producer.state("acme", "t").values == {"texts": [*kept, "new", "answer"]}
    else:
        assert statuses(producer) == ["running"]
        assert producer.state("acme", "t").values == {"texts": ["hang"]}
        producer.cancel(there.id, tenant="acme")


@both
async def test_the_asyncio_producer_does_it_too(
    worker: Any, hang: Callable[..., Run], settings: Settings, strategy: str
) -> None:
    there = await asyncio.to_thread(hang)
    async with AsyncProducer(settings) as producer:
        await producer.enqueue(
            "talk", {"texts": ["new"]}, tenant="acme", thread_id="t", multitask_strategy=strategy
        )
        assert await asyncio.to_thread(worker.graphs.stopped.wait, 1)
        assert (await producer.get(there.id, tenant="acme")).status == "interrupted"


def test_it_is_one_round_trip_and_costs_the_others_nothing(
    worker: Any, settings: Settings, producer: Producer
) -> None:
    catalogue = Catalogue(60)
    producer._shards.of("acme").database.carry_out(catalogue.read())

    def first_batch(strategy: Any) -> Any:
        request = check_request(
            settings, "talk", {"texts": []}, tenant="acme", thread_id="t", multitask_strategy=strategy
        )
        return next(enqueuing([request], catalogue, Quotas(settings), Floors(0)))

    for strategy, statements in (("enqueue", 3), ("interrupt", 5), ("rollback", 6)):
        batch = first_batch(strategy)
        assert (batch.final, len(list(batch.steps))) == (True, statements)
