"""A trial of a dead letter: it tells what a replay would come to, and nothing of it is left."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from uuid_utils.compat import uuid7

from threadmill.core.database import Database
from threadmill.core.errors import DeadLetterNotFound, InvalidInput, InvalidOption
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import begin_trial
from threadmill.dlq import DeadLetter, Desk
from threadmill.producers import Producer, Run

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.config import get_store
    from langgraph.graph import StateGraph, START, add_messages
    from langgraph.types import Command, Send, interrupt

    class State(TypedDict, total=False):
        messages: Annotated[list, add_messages]
        log: Annotated[list[str], operator.add]
        topic: str

    calls, seen = [], []
    failures = {}
    started, gate = threading.Event(), threading.Event()
    blocking = set()

    async def enter(name):
        calls.append(name)
        if name in blocking:
            started.set()
            await asyncio.to_thread(gate.wait, 20)
        if failures.get(name):
            failures[name] -= 1
            raise ValueError(f"{name} failed")

    async def think(state, config):
        await enter("think")
        seen.append(config["configurable"]["thread_id"])
        store = get_store()
        item = await store.aget(("notes",), "count")
        await store.aput(("notes",), "count", {"n": (item.value["n"] if item else 0) + 1})
        return {"messages": [("ai", "hm")], "log": ["thought"]}

    async def answer(state):
        await enter("answer")
        store = get_store()
        item = await store.aget(("notes",), "count")
        found = await store.asearch(("notes",))
        seen.append((item.value["n"], [one.value["n"] for one in found]))
        last = [m.content for m in state["messages"] if m.type == "human"][-1]
        topic = f" on {state['topic']}" if state.get("topic") else ""
        return {"messages": [("ai", f"to {last}{topic}")], "log": ["answered"]}

    chat = (
        StateGraph(State).add_node("think", think).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "answer")
    )

    async def ask(state):
        said = interrupt("sure?")
        await enter("ask")
        return {"messages": [("human", said)]}

    asking = (
        StateGraph(State).add_node("think", think).add_node("ask", ask).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "ask").add_edge("ask", "answer")
    )
    async def ask_a(state):
        said = interrupt("a?")
        await enter("ask_a")
        return {"log": [f"a {said}"]}

    async def ask_b(state):
        said = interrupt("b?")
        await enter("ask_b")
        return {"log": [f"b {said}"]}

    pair = (
        StateGraph(State).add_node("ask_a", ask_a).add_node("ask_b", ask_b)
        .add_edge(START, "ask_a").add_edge(START, "ask_b")
    )

    inner = asking.compile()
    async def after(state):
        return {"log": ["after"]}
    nested = (
        StateGraph(State).add_node("inner", inner).add_node("after", after)
        .add_edge(START, "inner").add_edge("inner", "after")
    )

    async def work(state):
        await enter(f"work {state['n']}")
        return {"log": [f"worked {state['n']}"]}

    fan = (
        StateGraph(State).add_node("think", think).add_node("work", work)
        .add_edge(START, "think")
        .add_conditional_edges("think", lambda state: [Send("work", {"n": n}) for n in range(3)], ["work"])
    )
"""

Admin = psycopg.Connection[Any]
Enqueue = Callable[..., Run]
# Not of what is done: heartbeats, and the record that there was a trial.
NOT_COMPARED = ("workers", "dead_letter_actions")


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(GRAPHS, pair={}, chat={}, asking={}, nested={}, fan={})
    worker = start_local()
    worker.listen()
    return worker


@pytest.fixture
def enqueue(producer: Producer, worker: Any) -> Enqueue:
    """Enqueues a run and waits for its end. fails: a node of it that does so, once."""

    def enqueue(text: str, graph: str = "chat", fails: str | None = None, **options: Any) -> Run:
        if fails is not None:
            worker.graphs.failures[fails] = 1
        given = None if "command" in options else {"messages": [["user", text]]}
        run = producer.enqueue(graph, given, tenant="acme", thread_id="t", max_attempts=1, **options)
        run = producer.wait(run.id, tenant="acme", timeout=20)
        assert run.status == ("success" if fails is None else "error")
        worker.graphs.calls.clear()
        worker.graphs.seen.clear()
        return run

    return enqueue


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings) as desk:
        yield desk


def only(desk: Desk) -> DeadLetter:
    (letter,) = desk.list()
    return letter


@pytest.fixture
def checksums(admin: Admin) -> Callable[[], dict[str, str]]:
    """Of all rows of all tables, LangGraph's among them."""

    def checksums() -> dict[str, str]:
        tables = admin.execute(
            "select tablename from pg_tables where schemaname = 'threadmill' order by tablename"
        ).fetchall()
        found = {}
        for (table,) in tables:
            if table not in NOT_COMPARED:
                row = admin.execute(
                    "select count(*) || ' ' || coalesce(md5(string_agg(row::text, ',' order by row::text)),"
                    f" '') from {table} as row"
                ).fetchone()
                assert row is not None
                found[table] = row[0]
        return found

    return checksums


def texts(values: list[Any]) -> list[str]:
    return [message["content"] for message in values]


@pytest.mark.parametrize("mode", ["resume", "restart", "append"])
@pytest.mark.parametrize("fails_again", [False, True])
def test_a_trial_changes_nothing(
    worker: Any,
    enqueue: Enqueue,
    desk: Desk,
    producer: Producer,
    checksums: Callable[[], dict[str, str]],
    mode: str,
    fails_again: bool,
) -> None:
    enqueue("zero")
    run = enqueue("one", fails="answer")
    letter = only(desk)
    before = checksums()
    assert len(before) > 15
    worker.graphs.failures["answer"] = int(fails_again)

    trial = desk.scratch(letter.id, mode=mode, by="ann")

    assert checksums() == before
    assert worker.graphs.calls == (["answer"] if mode == "resume" else ["think", "answer"])
    assert trial.nodes == worker.graphs.calls
    if fails_again:
        assert trial.status == "error"
        assert trial.error is not None
        assert (trial.error.type, trial.error.message) == ("ValueError", "answer failed")
        assert trial.error.node == "answer"
    else:
        assert (trial.status, trial.error) == ("success", None)
        assert texts(trial.output["messages"]) == ["zero", "hm", "to zero", "one", "hm", "to one"]
        added = {change.path: change.kind for change in trial.diff}
        assert added == dict.fromkeys(
            ("/messages/3", "/messages/4", "/messages/5", "/log/2", "/log/3"), "added"
        )
    assert only(desk) == letter
    assert producer.get(run.id, tenant="acme").status == "error"
    (action,) = [action for action in desk.detail(letter.id).actions if action.action == "scratch"]
    assert action.by == "ann"
    # And the letter is as replayable as before.
    worker.graphs.failures.clear()
    desk.replay(letter.id)
    assert producer.wait(run.id, tenant="acme", timeout=20).status in ("success", "error")


def test_a_trials_nodes_see_what_they_write_to_the_store_and_nobody_else_does(
    worker: Any, enqueue: Enqueue, desk: Desk, admin: Admin
) -> None:
    enqueue("zero")
    enqueue("one", fails="answer")

    assert desk.scratch(only(desk).id, mode="restart").status == "success"

    assert worker.graphs.seen == ["t", (3, [3])], "on the thread's own id, over the items of before"
    stored = admin.execute("select value ->> 'n' from store where key = 'count'").fetchall()
    assert stored == [("2",)]


def test_of_two_trials_of_one_letter_none_sees_the_other(worker: Any, enqueue: Enqueue, desk: Desk) -> None:
    enqueue("one", fails="answer")
    letter = only(desk)

    with ThreadPoolExecutor(4) as pool:
        trials = list(pool.map(lambda _: desk.scratch(letter.id, mode="restart"), range(4)))

    assert [texts(trial.output["messages"]) for trial in trials] == [["one", "hm", "to one"]] * 4


def test_a_trial_tells_what_an_edit_would_do(
    worker: Any, enqueue: Enqueue, desk: Desk, checksums: Callable[[], dict[str, str]]
) -> None:
    enqueue("one", fails="answer")
    letter = only(desk)
    before = checksums()

    edited = desk.scratch(letter.id, mode="restart", patch={"messages": [["user", "two"]]})
    patched = desk.scratch(letter.id, patch={"topic": "tea", "log": ["patched"]})

    assert texts(edited.output["messages"]) == ["two", "hm", "to two"]
    assert (patched.mode, patched.why) == ("resume", "the thread stands where the run failed")
    assert texts(patched.output["messages"]) == ["one", "hm", "to one on tea"]
    assert patched.output["log"] == ["patched", "answered"]
    assert checksums() == before


def test_after_the_thread_has_moved_on_a_trial_appends(worker: Any, enqueue: Enqueue, desk: Desk) -> None:
    enqueue("one", fails="answer")
    enqueue("two")

    trial = desk.scratch(only(desk).id)
    restart = desk.scratch(only(desk).id, mode="restart")

    assert trial.mode == "append"
    assert texts(trial.output["messages"]) == ["two", "hm", "to two", "one", "hm", "to one"]
    assert texts(restart.output["messages"]) == ["one", "hm", "to one"]
    assert "changed" in {change.kind for change in restart.diff}


@pytest.mark.parametrize("graph", ["asking", "nested"])
@pytest.mark.parametrize("mode", ["resume", "restart", "append"])
@pytest.mark.parametrize("node", ["ask", "answer"])
def test_a_command_is_tried_on_the_question_that_was_open(
    worker: Any,
    enqueue: Enqueue,
    desk: Desk,
    checksums: Callable[[], dict[str, str]],
    graph: str,
    mode: str,
    node: str,
) -> None:
    enqueue("one", graph)
    enqueue("", graph, command={"resume": "yes"}, fails=node)
    before = checksums()

    trial = desk.scratch(only(desk).id, mode=mode)

    assert trial.status == "success"
    assert texts(trial.output["messages"]) == ["one", "hm", "yes", "to yes"]
    assert "think" not in worker.graphs.calls, "what had finished before the question is not run again"
    assert checksums() == before


@pytest.mark.parametrize("mode", ["resume", "restart", "append"])
def test_what_the_failed_run_left_beside_the_base_counts_for_a_resume_only(
    worker: Any, enqueue: Enqueue, desk: Desk, producer: Producer, mode: str
) -> None:
    enqueue("one", "pair")
    answers = {question["id"]: "yes" for question in producer.state("acme", "t").interrupts}
    enqueue("", "pair", command={"resume": answers}, fails="ask_b")

    trial = desk.scratch(only(desk).id, mode=mode)

    assert trial.status == "success"
    assert trial.output["log"] == ["a yes", "b yes"]
    assert sorted(worker.graphs.calls) == (["ask_b"] if mode == "resume" else ["ask_a", "ask_b"])


def test_finished_siblings_are_not_tried_again(worker: Any, enqueue: Enqueue, desk: Desk) -> None:
    enqueue("one", "fan", fails="work 1")

    trial = desk.scratch(only(desk).id)

    assert worker.graphs.calls == ["work 1"]
    assert trial.output["log"] == ["thought", "worked 0", "worked 1", "worked 2"]


def test_a_trial_that_asks_says_what(worker: Any, enqueue: Enqueue, desk: Desk) -> None:
    enqueue("one", "asking", fails="think")

    trial = desk.scratch(only(desk).id)

    assert trial.status == "interrupted"
    assert [question["value"] for question in trial.interrupts or []] == ["sure?"]


def test_a_trial_ends_at_its_time_limit(
    worker: Any, enqueue: Enqueue, desk: Desk, checksums: Callable[[], dict[str, str]]
) -> None:
    enqueue("one", fails="answer")
    before = checksums()
    worker.graphs.blocking.add("answer")

    trial = desk.scratch(only(desk).id, timeout=0.3)
    worker.graphs.gate.set()

    assert trial.status == "timeout"
    assert trial.error is not None and trial.error.type == "RunTimeout"
    assert trial.seconds < 3
    assert checksums() == before


def test_without_a_worker_a_trial_says_so(
    worker: Any, enqueue: Enqueue, desk: Desk, checksums: Callable[[], dict[str, str]]
) -> None:
    enqueue("one", fails="answer")
    worker.stop()
    before = checksums()

    trial = desk.scratch(only(desk).id, timeout=0.1)

    assert (trial.status, trial.output) == ("timeout", None)
    assert trial.error is not None and "no worker" in trial.error.message
    assert checksums() == before


def test_a_trial_whose_worker_was_lost_is_not_begun_again(
    worker: Any, enqueue: Enqueue, desk: Desk, admin: Admin
) -> None:
    enqueue("one", fails="answer")
    worker.graphs.blocking.add("answer")
    with ThreadPoolExecutor(1) as pool:
        trial = pool.submit(desk.scratch, only(desk).id, timeout=20)
        assert worker.graphs.started.wait(20)
        admin.execute("update runs set status = 'pending', worker_id = null where scratch is not null")
        worker.graphs.gate.set()
        told = trial.result(20)

    assert told.status == "error"
    assert told.error is not None and told.error.type == "WorkerLost"
    assert worker.graphs.calls == ["answer"]


def test_the_leader_removes_a_trial_whose_requester_died(
    worker: Any,
    enqueue: Enqueue,
    desk: Desk,
    settings: Settings,
    admin: Admin,
    start_local: Callable[..., Any],
    checksums: Callable[[], dict[str, str]],
) -> None:
    enqueue("one", fails="answer")
    worker.stop()
    before = checksums()
    parameters = {
        "letter_id": uuid.UUID(only(desk).id),
        "run_id": uuid7(),
        "thread_id": "scratch-of-who-died",
        "mode": "resume",
        "edited": False,
        "input": None,
        "state_patch": None,
        "metadata": {"timeout": 60},
    }
    with closing(Database(settings)) as database:
        database.carry_out(begun(parameters))
    assert checksums() != before
    admin.execute("update runs set created_at = now() - interval '3 hours' where scratch is not null")

    start_local()

    ends_at = time.monotonic() + 20
    while {name: sums for name, sums in checksums().items() if name in ("runs", "threads")} != {
        name: before[name] for name in ("runs", "threads")
    }:
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def begun(parameters: dict[str, Any]) -> Plan[None]:
    yield Batch([Step(begin_trial(), parameters)])


def test_bad_trials_are_refused_by_name(
    worker: Any, enqueue: Enqueue, desk: Desk, checksums: Callable[[], dict[str, str]]
) -> None:
    enqueue("one", fails="answer")
    letter = only(desk)
    before = checksums()

    with pytest.raises(DeadLetterNotFound):
        desk.scratch("nothing")
    for options in ({"mode": "again"}, {"timeout": 0}, {"timeout": 1e9}, {"input": {}, "patch": {}}):
        with pytest.raises(InvalidOption):
            desk.scratch(letter.id, **options)
    with pytest.raises(InvalidInput):
        desk.scratch(letter.id, mode="restart", input={"log": "no list"})
    with pytest.raises(InvalidInput):
        desk.scratch(letter.id, patch={"nowhere": 1})

    assert checksums() == before
    assert worker.graphs.calls == []
