"""A run that is rolled back leaves nothing: row by row, the checkpoints are what they were before it."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from threadmill.core.errors import InvalidOption
from threadmill.core.keys import thread_key
from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import AsyncProducer, Producer, Run
from threadmill.workers.checkpointer import BoundSaver

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START
    from langgraph.types import Send, interrupt

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    started, failing = threading.Event(), threading.Event()
    failing.set()

    async def work(state):
        match state["texts"][-1]:
            case "hang":
                started.set()
                await asyncio.Event().wait()
            case "fail" if failing.is_set():
                raise ValueError("no")
            case "fail":
                started.set()
                await asyncio.Event().wait()
        return {"texts": ["worked"]}

    def before(state):
        return {"texts": state["texts"][-1:]}

    talk = (
        StateGraph(State).add_node("before", before).add_node("work", work)
        .add_edge(START, "before").add_edge("before", "work")
    )

    async def ask(state):
        first = interrupt("first?")
        second = interrupt("second?")
        if second == "hang":
            started.set()
            await asyncio.Event().wait()
        return {"texts": [first, second]}

    questions = (
        StateGraph(State).add_node("before", before).add_node("ask", ask)
        .add_edge(START, "before").add_edge("before", "ask")
    )

    async def last(state):
        if state["texts"][-1] == "hang":
            started.set()
            await asyncio.Event().wait()
        return {"texts": ["last"]}

    inner = StateGraph(State).add_node("ask", ask).add_node("last", last)
    inner = inner.add_edge(START, "ask").add_edge("ask", "last").compile()
    nested = (
        StateGraph(State).add_node("before", before).add_node("inner", inner)
        .add_edge(START, "before").add_edge("before", "inner")
    )

    async def one(state):
        answer = interrupt(state["name"])
        return {"texts": [answer]}

    async def other(state):
        return {"texts": [state["name"]]}

    async def join(state):
        if "hang" in state["texts"]:
            started.set()
            await asyncio.Event().wait()
        return {"texts": ["joined"]}

    fan = (
        StateGraph(State).add_node("before", before).add_node("one", one).add_node("other", other)
        .add_node("join", join)
        .add_edge(START, "before")
        .add_conditional_edges("before", lambda state: [
            Send("one", {"name": "a"}), Send("one", {"name": "b"}), Send("other", {"name": "c"}),
        ], ["one", "other"])
        .add_edge("one", "join")
    )

    stops = (
        StateGraph(State).add_node("before", before).add_node("work", work)
        .add_edge(START, "before").add_edge("before", "work").compile(interrupt_before=["work"])
    )
"""
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
Tables = dict[str, list[Any]]


@pytest.fixture(params=["sync", "async", "exit"])
def durability(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    names = ("talk", "questions", "nested", "fan", "stops")
    serve(GRAPHS, **{name: {"max_attempts": 1} for name in names})
    return start_local(ring_again_after=60)


@pytest.fixture
def enqueue(producer: Producer) -> Callable[..., Run]:
    def one(graph: str, *args: Any, **options: Any) -> Run:
        return producer.enqueue(graph, *args, tenant="acme", thread_id="t", **options)

    return one


@pytest.fixture
def finish(worker: Any, enqueue: Callable[..., Run], producer: Producer) -> Callable[..., Run]:
    """Enqueues and executes a run to its end."""

    def one(*args: Any, **options: Any) -> Run:
        run = enqueue(*args, **options)
        worker.answer(run).exception(20)
        return producer.get(run.id, tenant="acme")

    return one


@pytest.fixture
def savers(monkeypatch: pytest.MonkeyPatch) -> list[BoundSaver]:
    """Those of the attempts, in the order in which they began."""
    made: list[BoundSaver] = []

    class Recorded(BoundSaver):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("threadmill.workers.invocation.BoundSaver", Recorded)
    return made


@pytest.fixture
def hang(worker: Any, enqueue: Callable[..., Run], savers: list[BoundSaver]) -> Callable[..., Run]:
    """Enqueues a run and executes it as far as the node that does not end; all before it is committed."""

    def one(*args: Any, **options: Any) -> Run:
        run = enqueue(*args, **options)
        worker.graphs.started.clear()
        worker.answer(run)
        assert worker.graphs.started.wait(20)
        worker.runtime.submit(savers[-1].flush()).result(20)
        return run

    return one


@pytest.fixture
def tables(admin: Any) -> Callable[[], Tables]:
    """Every row of LangGraph's checkpoint tables."""
    return lambda: {
        table: admin.execute(f"select t.* from {table} t order by t::text").fetchall() for table in TABLES
    }


def test_the_first_run_of_a_thread_leaves_nothing(
    hang: Callable[..., Run], producer: Producer, tables: Callable[[], Tables], durability: str
) -> None:
    run = hang("talk", {"texts": ["hang"]}, durability=durability)

    done = producer.cancel(run.id, tenant="acme", action="rollback")

    assert done.status == "interrupted"
    assert done.error is not None
    assert (done.error.type, done.error.message) == ("Cancelled", "rolled back on request")
    assert tables() == {table: [] for table in TABLES}
    state = producer.state("acme", "t")
    assert (state.status, state.values, state.next, state.interrupts) == ("idle", {}, (), ())


def test_a_later_run_leaves_the_thread_as_it_was(
    finish: Callable[..., Run],
    hang: Callable[..., Run],
    producer: Producer,
    tables: Callable[[], Tables],
    durability: str,
) -> None:
    finish("talk", {"texts": ["zero"]}, durability=durability)
    rows, state = tables(), producer.state("acme", "t")
    run = hang("talk", {"texts": ["hang"]}, durability=durability)
    if durability == "sync":
        assert tables() != rows

    producer.cancel(run.id, tenant="acme", action="rollback")

    assert tables() == rows
    after = producer.state("acme", "t")
    assert {**after.to_dict(), "updated_at": 0} == {**state.to_dict(), "updated_at": 0}
    finish("talk", {"texts": ["next"]})
    assert producer.state("acme", "t").values == {
        "texts": ["zero", "zero", "worked", "next", "next", "worked"]
    }


def test_nothing_is_taken_from_other_threads_and_tenants(
    worker: Any, producer: Producer, hang: Callable[..., Run], tables: Callable[[], Tables]
) -> None:
    for tenant, thread_id in (("acme", "t2"), ("globex", "t"), ("acm", "e")):
        run = producer.enqueue("talk", {"texts": ["a"]}, tenant=tenant, thread_id=thread_id)
        worker.answer(run).result(20)
    rows = tables()
    run = hang("talk", {"texts": ["hang"]})

    producer.cancel(run.id, tenant="acme", action="rollback")

    assert tables() == rows


@pytest.mark.parametrize("graph", ["questions", "nested"])
def test_a_thread_that_stood_at_a_question_stands_there_again(
    finish: Callable[..., Run],
    hang: Callable[..., Run],
    producer: Producer,
    tables: Callable[[], Tables],
    durability: str,
    graph: str,
) -> None:
    # The second answer replaces the first in LangGraph's tables, as both are one node's.
    finish(graph, {"texts": ["zero"]}, durability=durability)
    finish(graph, command={"resume": "one"}, durability=durability)
    rows, state = tables(), producer.state("acme", "t")
    assert [question["value"] for question in state.interrupts] == ["second?"]
    run = hang(graph, command={"resume": "hang"}, durability=durability)

    producer.cancel(run.id, tenant="acme", action="rollback")

    assert tables() == rows
    after = producer.state("acme", "t")
    assert (after.status, after.next, after.interrupts) == ("interrupted", state.next, state.interrupts)
    done = finish(graph, command={"resume": {state.interrupts[0]["id"]: "two"}})
    assert done.status == "success"
    # A subgraph gives back its whole state, which is added to the parent's.
    more = ["zero", "zero", "one", "two", "last"] if graph == "nested" else ["one", "two"]
    assert producer.state("acme", "t").values == {"texts": ["zero", "zero", *more]}


def test_the_first_question_is_open_again_when_its_answer_is_taken_back(
    finish: Callable[..., Run],
    producer: Producer,
    tables: Callable[[], Tables],
    worker: Any,
    enqueue: Callable[..., Run],
) -> None:
    # Given a run that has answered the first question, was asked the second, and is drained before its end
    # is written, so that the question that it replaced is to be put back.
    finish("questions", {"texts": ["zero"]})
    rows, state = tables(), producer.state("acme", "t")
    run = enqueue("questions", command={"resume": "one"})
    succeed = worker.runtime._executor._succeed
    reached, go_on = threading.Event(), threading.Event()

    async def late(attempt: Any, invocation: Any, *rest: Any) -> None:
        await invocation.saver.flush()  # what the graph has written so far is committed
        reached.set()
        await asyncio.to_thread(go_on.wait, 20)
        await succeed(attempt, invocation, *rest)

    worker.runtime._executor._succeed = late
    answer = worker.answer(run)
    assert reached.wait(20)
    assert tables() != rows

    producer.cancel(run.id, tenant="acme", action="rollback")
    go_on.set()
    answer.exception(20)
    worker.runtime._executor._succeed = succeed

    assert tables() == rows
    assert producer.state("acme", "t").interrupts == state.interrupts
    finish("questions", command={"resume": {state.interrupts[0]["id"]: "eins"}})
    (second,) = producer.state("acme", "t").interrupts
    finish("questions", command={"resume": {second["id"]: "zwei"}})
    assert producer.state("acme", "t").values == {"texts": ["zero", "zero", "eins", "zwei"]}


def test_one_of_several_answers_is_taken_back_and_what_siblings_wrote_stays(
    finish: Callable[..., Run], hang: Callable[..., Run], producer: Producer, tables: Callable[[], Tables]
) -> None:
    finish("fan", {"texts": ["zero"]})
    first, second = producer.state("acme", "t").interrupts
    finish("fan", command={"resume": {first["id"]: "x"}})
    rows, state = tables(), producer.state("acme", "t")
    (left,) = state.interrupts
    assert left == second
    run = hang("fan", command={"resume": {left["id"]: "hang"}})

    producer.cancel(run.id, tenant="acme", action="rollback")

    assert tables() == rows
    assert producer.state("acme", "t").interrupts == state.interrupts
    finish("fan", command={"resume": {left["id"]: "y"}})
    assert sorted(producer.state("acme", "t").values["texts"]) == sorted(
        ["zero", "zero", "x", "y", "c", "joined"]
    )


def test_an_answer_that_was_not_rolled_back_is_asked_for_no_longer(
    finish: Callable[..., Run], hang: Callable[..., Run], producer: Producer
) -> None:
    finish("questions", {"texts": ["zero"]})
    finish("questions", command={"resume": "one"})
    run = hang("questions", command={"resume": "hang"})

    producer.cancel(run.id, tenant="acme")

    state = producer.state("acme", "t")
    assert (state.status, state.interrupts) == ("interrupted", ())


def test_a_run_that_never_ran_answers_nothing(
    finish: Callable[..., Run], enqueue: Callable[..., Run], producer: Producer, tables: Callable[[], Tables]
) -> None:
    finish("questions", {"texts": ["zero"]})
    rows, state = tables(), producer.state("acme", "t")
    for action in ("interrupt", "rollback"):
        run = enqueue("questions", command={"resume": "one"})
        producer.cancel(run.id, tenant="acme", action=action)  # type: ignore[arg-type]

        assert tables() == rows
        after = producer.state("acme", "t")
        assert (after.status, after.interrupts) == ("interrupted", state.interrupts)


def test_a_thread_stands_again_where_the_last_run_had_left_it(
    finish: Callable[..., Run], hang: Callable[..., Run], enqueue: Callable[..., Run], producer: Producer
) -> None:
    def standing() -> tuple[Any, ...]:
        state = producer.state("acme", "t")
        return state.status, state.next

    finish("stops", {"texts": ["hang"]})
    assert standing() == ("interrupted", ("work",))
    run = hang("stops", None)  # goes on from the breakpoint
    producer.cancel(run.id, tenant="acme", action="rollback")
    assert standing() == ("interrupted", ("work",))

    assert finish("talk", {"texts": ["fail"]}).status == "error"
    assert standing() == ("error", ("work",))
    for begin in (hang, enqueue):
        run = begin("talk", {"texts": ["hang"]})
        producer.cancel(run.id, tenant="acme", action="rollback")
        assert standing() == ("error", ("work",))


def test_a_replayed_run_is_taken_back_with_what_it_wrote_before_it_failed(
    worker: Any,
    finish: Callable[..., Run],
    producer: Producer,
    settings: Settings,
    tables: Callable[[], Tables],
) -> None:
    finish("talk", {"texts": ["zero"]})
    rows = tables()
    run = finish("talk", {"texts": ["fail"]})
    worker.graphs.failing.clear()
    with Desk(settings) as desk:
        (letter,) = desk.list()
        desk.replay(letter.id)
        answer = worker.answer(run)
        assert worker.graphs.started.wait(20)

        producer.cancel(run.id, tenant="acme", action="rollback")

        assert desk.get(letter.id).status == "discarded"
    answer.exception(20)
    assert tables() == rows
    state = producer.state("acme", "t")
    assert (state.status, state.next) == ("idle", ())


def test_a_replay_is_rolled_back_with_all_that_its_run_wrote_and_later_runs_stay(
    worker: Any,
    finish: Callable[..., Run],
    producer: Producer,
    settings: Settings,
    tables: Callable[[], Tables],
    admin: Any,
) -> None:
    run = finish("talk", {"texts": ["fail"]})
    finish("talk", {"texts": ["later"]})
    rows, state = tables(), producer.state("acme", "t")
    worker.graphs.failing.clear()
    with Desk(settings) as desk:
        (letter,) = desk.list()
        desk.replay(letter.id)  # appends, as the thread has moved
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)
    ends_at = time.monotonic() + 20  # the checkpoint of its input is saved beside the node
    while tables() == rows and time.monotonic() < ends_at:
        time.sleep(0.02)
    assert tables() != rows

    producer.cancel(run.id, tenant="acme", action="rollback")
    answer.exception(20)

    written = "select count(*) from checkpoints where metadata ->> 'run_id' = %s"
    assert admin.execute(written, [run.id]).fetchone() == (0,)
    for table, found in tables().items():
        assert set(map(str, found)) <= set(map(str, rows[table]))
    after = producer.state("acme", "t")
    assert (after.values, after.status, after.checkpoint_id) == (state.values, "idle", state.checkpoint_id)
    finish("talk", {"texts": ["more"]})
    assert producer.state("acme", "t").values["texts"][-2:] == ["more", "worked"]


def test_a_write_in_flight_is_waited_for_and_taken_back_and_the_next_is_refused(
    worker: Any,
    hang: Callable[..., Run],
    producer: Producer,
    admin: Any,
    settings: Settings,
    tables: Callable[[], Tables],
) -> None:
    run = hang("talk", {"texts": ["hang"]})
    write = """
        insert into threadmill.checkpoint_writes
            (run_id, thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
        select %(run)s, %(key)s, '', 'c', 't', %(index)s, 'c', 'null', ''
        from (select threadmill.fence(%(run)s, 1)) as fenced
    """
    values = {"run": uuid.UUID(run.id), "key": thread_key("acme", "t")}
    with psycopg.connect(settings.database_url) as attempt, ThreadPoolExecutor(1) as pool:
        attempt.execute(write, {**values, "index": 0})
        cancelling = pool.submit(producer.cancel, run.id, tenant="acme", action="rollback")
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        while admin.execute(waits).fetchone() is None:
            assert not cancelling.done()
        attempt.commit()
        assert cancelling.result(20).status == "interrupted"

        with pytest.raises(psycopg.Error) as refused:
            attempt.execute(write, {**values, "index": 1})
        assert refused.value.sqlstate == "TM001"
    assert tables() == {table: [] for table in TABLES}


def test_items_of_the_store_stay(hang: Callable[..., Run], producer: Producer, admin: Any) -> None:
    run = hang("talk", {"texts": ["hang"]})
    admin.execute("insert into store (prefix, key, value) values ('acme:.notes', 'k', '{}')")

    producer.cancel(run.id, tenant="acme", action="rollback")

    assert admin.execute("select count(*) from store").fetchone() == (1,)


async def test_the_asyncio_producer_rolls_back_too(
    hang: Callable[..., Run], settings: Settings, tables: Callable[[], Tables]
) -> None:
    run = hang("talk", {"texts": ["hang"]})
    async with AsyncProducer(settings) as producer:
        assert (await producer.cancel(run.id, tenant="acme", action="rollback")).status == "interrupted"
    assert tables() == {table: [] for table in TABLES}


def test_an_unknown_action_is_refused(worker: Any, enqueue: Callable[..., Run], producer: Producer) -> None:
    run = enqueue("talk", {"texts": ["a"]})
    with pytest.raises(InvalidOption, match="action='undo': must be one of interrupt, rollback"):
        producer.cancel(run.id, tenant="acme", action="undo")  # type: ignore[arg-type]
    assert producer.get(run.id, tenant="acme").status == "pending"
