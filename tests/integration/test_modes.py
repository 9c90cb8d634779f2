"""The replay modes: what a run that failed has no effect on, and where each mode goes on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import id as checkpoint_ids

from threadmill.core.errors import LeaseLost
from threadmill.core.settings import Settings
from threadmill.dlq import DeadLetter, Desk
from threadmill.producers import Producer, Run
from threadmill.workers.checkpointer import BoundSaver

GRAPHS = """
    import asyncio, operator, threading
    from dataclasses import dataclass
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START, add_messages
    from langgraph.channels import DeltaChannel
    from langgraph.types import Command, Send, interrupt

    @dataclass
    class Topic:
        name: str

    class State(TypedDict, total=False):
        messages: Annotated[list, add_messages]
        log: Annotated[list[str], operator.add]
        topic: str
        place: Topic

    calls = []
    failures = {}  # how often a node still fails, by its name
    gone = set()  # nodes that the graphs are made without
    started, gate = threading.Event(), threading.Event()
    blocking = set()

    async def enter(name):
        calls.append(name)
        if name in blocking:
            started.set()
            assert await asyncio.to_thread(gate.wait, 20)
        if failures.get(name):
            failures[name] -= 1
            raise ValueError(f"{name} failed")

    async def think(state):
        await enter("think")
        return {"messages": [("ai", "hm")], "log": ["thought"], "place": Topic("here")}

    async def answer(state):
        await enter("answer")
        last = [m.content for m in state["messages"] if m.type == "human"][-1]
        topic = f" on {state['topic']}" if state.get("topic") else ""
        assert isinstance(state["place"], Topic)
        return {"messages": [("ai", f"to {last}{topic}")], "log": ["answered"]}

    chat = (
        StateGraph(State).add_node("think", think).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "answer")
    )

    def changing(config):
        if "answer" not in gone:
            return chat.compile()
        return (
            StateGraph(State).add_node("think", think).add_node("reply", answer)
            .add_edge(START, "think").add_edge("think", "reply").compile()
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

    inner = (
        StateGraph(State).add_node("think", think).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "answer").compile()
    )
    async def after(state):
        await enter("after")
        return {"log": ["after"]}

    nested = (
        StateGraph(State).add_node("inner", inner).add_node("after", after)
        .add_edge(START, "inner").add_edge("inner", "after")
    )
    inner_asking = asking.compile()
    nested_asking = (
        StateGraph(State).add_node("inner", inner_asking).add_node("after", after)
        .add_edge(START, "inner").add_edge("inner", "after")
    )

    async def think_less(state):
        await enter("think")
        return {"log": ["thought"]}

    async def gather(state):
        await enter("gather")
        return {"log": ["gathered"]}

    class Kept(TypedDict, total=False):
        log: Annotated[list[str], DeltaChannel(lambda kept, more: sum(more, kept or []))]

    delta = (
        StateGraph(Kept).add_node("think", think_less).add_node("gather", gather)
        .add_edge(START, "think").add_edge("think", "gather")
    )

    async def work(state):
        await enter(f"work {state['n']}")
        return {"log": [f"worked {state['n']}"]}

    fan = (
        StateGraph(State).add_node("think", think).add_node("work", work).add_node("gather", gather)
        .add_edge(START, "think")
        .add_conditional_edges("think", lambda state: [Send("work", {"n": n}) for n in range(3)], ["work"])
        .add_edge("work", "gather")
    )
"""
NAMES = ("pair", "delta", "chat", "changing", "asking", "nested", "nested_asking", "fan")
MODES = ("resume", "restart", "append")

Admin = psycopg.Connection[Any]
Enqueue = Callable[..., Run]


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(GRAPHS, **{name: {} for name in NAMES})
    return start_local()


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    def enqueue(text: str, graph: str = "chat", thread_id: str = "t", **options: Any) -> Run:
        given = None if "command" in options else {"messages": [["user", text]]}
        return producer.enqueue(graph, given, tenant="acme", thread_id=thread_id, max_attempts=1, **options)

    return enqueue


@pytest.fixture
def end_of(worker: Any, producer: Producer) -> Callable[[Run], str]:
    """Executes a run, and gives the status in which it ends."""

    def end_of(run: Run) -> str:
        worker.answer(run).exception(20)
        return producer.get(run.id, tenant="acme").status

    return end_of


@pytest.fixture
def succeed(end_of: Callable[[Run], str], enqueue: Enqueue) -> Enqueue:
    """Enqueues a run and executes it."""

    def succeed(*args: Any, **options: Any) -> Run:
        run = enqueue(*args, **options)
        assert end_of(run) == "success"
        return run

    return succeed


@pytest.fixture
def bury(worker: Any, end_of: Callable[[Run], str], enqueue: Enqueue) -> Enqueue:
    """Enqueues a run of which a node fails, once."""

    def bury(*args: Any, node: str = "answer", **options: Any) -> Run:
        worker.graphs.failures[node] = 1
        run = enqueue(*args, **options)
        assert end_of(run) == "error"
        return run

    return bury


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings) as desk:
        yield desk


def letter_of(desk: Desk, run: Run) -> DeadLetter:
    (letter,) = [letter for letter in desk.list() if letter.run_id == run.id]
    return letter


@pytest.fixture
def replay(end_of: Callable[[Run], str], desk: Desk) -> Callable[..., str]:
    """Replays a run's dead letter and executes the run; the mode that was chosen."""

    def replay(run: Run, mode: str = "auto", patch: Any = None) -> str:
        letter = desk.replay(letter_of(desk, run).id, mode=mode, patch=patch)
        assert end_of(run) == "success"
        assert letter_of(desk, run).status == "resolved"
        assert letter.replay_mode is not None
        return letter.replay_mode

    return replay


@pytest.fixture
def values(producer: Producer) -> Callable[[], dict[str, Any]]:
    return lambda: producer.state("acme", "t").values


@pytest.fixture
def texts(values: Callable[[], dict[str, Any]]) -> Callable[[], list[str]]:
    return lambda: [message["content"] for message in values()["messages"]]


# ---------------------------------------------------------------------------------------------------
# What failed for good has no effect on what follows


def test_after_a_first_run_that_failed_the_next_one_starts_from_nothing(
    bury: Enqueue, succeed: Enqueue, texts: Callable[[], list[str]]
) -> None:
    bury("one")
    succeed("two")
    assert texts() == ["two", "hm", "to two"]


def test_after_a_run_that_failed_the_next_one_goes_on_from_before_it(
    bury: Enqueue, succeed: Enqueue, texts: Callable[[], list[str]], admin: Admin
) -> None:
    before = succeed("one")
    bury("two")
    bury("three")
    run = succeed("four")

    assert texts() == ["one", "hm", "to one", "four", "hm", "to four"]
    (base,) = admin.execute("select checkpoint_id from runs where id = %s", (before.id,)).fetchone() or ()
    (parent,) = (
        admin.execute(
            "select parent_checkpoint_id from checkpoints where metadata ->> 'run_id' = %s"
            " order by checkpoint_id limit 1",
            (run.id,),
        ).fetchone()
        or ()
    )
    assert parent == base


def test_skip_then_the_next_run_then_append_has_the_input_once_at_the_head(
    bury: Enqueue, succeed: Enqueue, replay: Callable[..., str], texts: Callable[[], list[str]]
) -> None:
    run = bury("one")
    succeed("two")

    assert replay(run) == "append"

    assert texts() == ["two", "hm", "to two", "one", "hm", "to one"]


@pytest.mark.parametrize("again", ["succeeds", "fails"])
@pytest.mark.parametrize("decided", ["after", "before"])
def test_a_run_whose_thread_an_earlier_replay_has_moved_leaves_its_failure_behind(
    worker: Any,
    end_of: Callable[[Run], str],
    succeed: Enqueue,
    bury: Enqueue,
    desk: Desk,
    texts: Callable[[], list[str]],
    admin: Admin,
    decided: str,
    again: str,
) -> None:
    """The mode is decided after the earlier run was replayed, or before, as it goes first all the same."""
    succeed("zero")
    one, two = bury("one"), bury("two")

    def replay(run: Run) -> str | None:
        return desk.replay(letter_of(desk, run).id).replay_mode

    admin.execute(
        "insert into limits (kind, name, paused) values ('tenant', 'acme', true)"
    )  # nobody takes them meanwhile
    modes = [replay(two)] if decided == "before" else []
    assert replay(one) == "append"
    admin.execute("update limits set paused = false")
    worker.graphs.failures["answer"] = int(again == "fails")
    assert end_of(one) == ("error" if again == "fails" else "success")
    modes += [] if decided == "before" else [replay(two)]
    assert end_of(two) == "success"

    assert modes == ["append" if decided == "after" else "resume"]
    first = [] if again == "fails" else ["one", "hm", "to one"]
    assert texts() == ["zero", "hm", "to zero", *first, "two", "hm", "to two"]


@pytest.mark.parametrize("mode", ["restart", "append"])
def test_a_worker_whose_clock_is_behind_leaves_the_failure_behind_too(
    worker: Any,
    end_of: Callable[[Run], str],
    enqueue: Enqueue,
    bury: Enqueue,
    desk: Desk,
    texts: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    run = bury("one")
    behind = SimpleNamespace(time_ns=lambda: time.time_ns() - 60 * 10**9)
    monkeypatch.setattr(checkpoint_ids, "_last_v6_timestamp", None)
    monkeypatch.setattr(checkpoint_ids, "time", behind)

    desk.replay(letter_of(desk, run).id, mode=mode)
    assert end_of(run) == "success"
    assert end_of(enqueue("two")) == "success"

    assert texts() == ["one", "hm", "to one", "two", "hm", "to two"]


# ---------------------------------------------------------------------------------------------------
# Each mode, on each kind of graph


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("earlier", [False, True], ids=["first run", "later run"])
def test_the_input_stands_exactly_once(
    worker: Any,
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    values: Callable[[], dict[str, Any]],
    texts: Callable[[], list[str]],
    mode: str,
    earlier: bool,
) -> None:
    if earlier:
        succeed("zero")
    worker.graphs.calls.clear()
    run = bury("one")

    assert replay(run, mode) == mode

    before = 1 if earlier else 0
    assert texts() == ["zero", "hm", "to zero"] * before + ["one", "hm", "to one"]
    assert values()["log"] == ["thought", "answered"] * (before + 1), "a reducer without ids counts them all"
    again = ["answer"] if mode == "resume" else ["think", "answer"]
    assert worker.graphs.calls == ["think", "answer", *again]
    succeed("two")
    assert texts()[-6:] == ["one", "hm", "to one", "two", "hm", "to two"]


@pytest.mark.parametrize("mode", MODES)
def test_a_replay_that_fails_again_can_be_replayed_again(
    worker: Any,
    end_of: Callable[[Run], str],
    succeed: Enqueue,
    bury: Enqueue,
    desk: Desk,
    replay: Callable[..., str],
    texts: Callable[[], list[str]],
    mode: str,
) -> None:
    succeed("zero")
    run = bury("one")
    for again in MODES:
        worker.graphs.failures["answer"] = 1
        desk.replay(letter_of(desk, run).id, mode=again)
        assert end_of(run) == "error"

    replay(run, mode)

    assert texts() == ["zero", "hm", "to zero", "one", "hm", "to one"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node", ["ask", "answer"])
def test_an_answer_is_given_once(
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    producer: Producer,
    texts: Callable[[], list[str]],
    mode: str,
    node: str,
) -> None:
    """node: the one that asked, which fails after it was answered, or the one after it."""
    succeed("one", "asking")
    run = bury("", "asking", command={"resume": "yes"}, node=node)

    replay(run, mode)

    assert texts() == ["one", "hm", "yes", "to yes"]
    assert producer.state("acme", "t").status == "idle"


@pytest.mark.parametrize("node", ["ask", "answer"])
def test_the_answer_of_a_run_that_failed_does_not_answer_for_the_next(
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    texts: Callable[[], list[str]],
    admin: Admin,
    node: str,
) -> None:
    succeed("one", "asking")
    bury("", "asking", command={"resume": "yes", "update": {"log": ["dead"]}}, node=node)

    succeed("", "asking", command={"resume": "no"})

    assert texts() == ["one", "hm", "no", "to no"]


@pytest.mark.parametrize("mode", MODES)
def test_a_sibling_that_had_finished_beside_the_base_is_run_again_where_the_run_begins_anew(
    worker: Any,
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    producer: Producer,
    values: Callable[[], dict[str, Any]],
    mode: str,
) -> None:
    succeed("one", "pair")
    answers = {question["id"]: "yes" for question in producer.state("acme", "t").interrupts}
    run = bury("", "pair", command={"resume": answers}, node="ask_b")
    worker.graphs.calls.clear()

    replay(run, mode)

    assert values()["log"] == ["a yes", "b yes"]
    assert sorted(worker.graphs.calls) == (["ask_b"] if mode == "resume" else ["ask_a", "ask_b"])


def test_a_command_is_restarted_behind_the_answer_that_came_later(
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    values: Callable[[], dict[str, Any]],
    texts: Callable[[], list[str]],
) -> None:
    succeed("one", "asking")
    run = bury("", "asking", command={"resume": "yes", "update": {"log": ["mine"]}}, node="ask")
    succeed("", "asking", command={"resume": "no", "update": {"log": ["other"]}})

    replay(run, "restart")

    assert texts() == ["one", "hm", "yes", "to yes"]
    assert values()["log"] == ["thought", "mine", "answered"]


def test_a_resumed_run_that_asks_again_leaves_its_question_open(
    worker: Any,
    succeed: Enqueue,
    enqueue: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    producer: Producer,
    texts: Callable[[], list[str]],
) -> None:
    run = bury("one", "asking", node="think")
    replay(run, "resume")
    assert producer.state("acme", "t").status == "interrupted"

    succeed("", "asking", command={"resume": "yes"})

    assert texts() == ["one", "hm", "yes", "to yes"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node", ["answer", "after"])
def test_a_subgraphs_run_is_replayed(
    worker: Any,
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    values: Callable[[], dict[str, Any]],
    texts: Callable[[], list[str]],
    mode: str,
    node: str,
) -> None:
    succeed("zero", "nested")
    worker.graphs.calls.clear()
    run = bury("one", "nested", node=node)
    done = ["think", "answer", "after"]
    assert worker.graphs.calls == done[: done.index(node) + 1]
    worker.graphs.calls.clear()

    replay(run, mode)

    assert texts() == ["zero", "hm", "to zero", "one", "hm", "to one"]
    assert worker.graphs.calls == (done[done.index(node) :] if mode == "resume" else done)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node", ["ask", "answer", "after"])
def test_an_answer_to_a_subgraphs_question_is_given_once(
    worker: Any,
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    texts: Callable[[], list[str]],
    mode: str,
    node: str,
) -> None:
    succeed("one", "nested_asking")
    run = bury("", "nested_asking", command={"resume": "yes"}, node=node)

    replay(run, mode)

    assert texts() == ["one", "hm", "yes", "to yes"]
    assert worker.graphs.calls.count("think") == 1, "what had finished before the question is not run again"


def test_the_next_run_answers_a_subgraphs_question_that_a_failed_one_had_answered(
    worker: Any, succeed: Enqueue, bury: Enqueue, texts: Callable[[], list[str]]
) -> None:
    succeed("one", "nested_asking")
    bury("", "nested_asking", command={"resume": "yes"}, node="answer")

    succeed("", "nested_asking", command={"resume": "no"})

    assert texts() == ["one", "hm", "no", "to no"]
    assert worker.graphs.calls.count("think") == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node", ["work 1", "gather"])
def test_finished_siblings_are_run_again_only_where_the_run_begins_anew(
    worker: Any,
    succeed: Enqueue,
    bury: Enqueue,
    replay: Callable[..., str],
    values: Callable[[], dict[str, Any]],
    mode: str,
    node: str,
) -> None:
    succeed("zero", "fan")
    run = bury("one", "fan", node=node)
    worker.graphs.calls.clear()

    replay(run, mode)

    once = ["thought", "worked 0", "worked 1", "worked 2", "gathered"]
    assert values()["log"] == once * 2
    if mode == "resume":
        assert sorted(worker.graphs.calls) == sorted({node, "gather"})
    else:
        assert sorted(worker.graphs.calls) == ["gather", "think", "work 0", "work 1", "work 2"]


@pytest.mark.parametrize("mode", [*MODES, None])
@pytest.mark.parametrize("node", ["think", "gather"])
def test_what_a_delta_channel_keeps_beside_the_base_counts_once(
    worker: Any,
    end_of: Callable[[Run], str],
    enqueue: Enqueue,
    producer: Producer,
    replay: Callable[..., str],
    values: Callable[[], dict[str, Any]],
    mode: str | None,
    node: str,
) -> None:
    """LangGraph writes the input of such a channel beside the checkpoint from which the run sets out."""

    def run(text: str) -> Run:
        return producer.enqueue("delta", {"log": [text]}, tenant="acme", thread_id="t", max_attempts=1)

    assert end_of(run("zero")) == "success"
    worker.graphs.failures[node] = 1
    failed = run("one")
    assert end_of(failed) == "error"

    if mode is not None:
        replay(failed, mode)
        assert end_of(run("two")) == "success"
    else:
        assert end_of(run("two")) == "success"
        assert replay(failed) == "append"

    done = ["one", "two"] if mode else ["two", "one"]
    kept = worker.runtime.submit(state_of(worker, "delta")).result(20)
    assert kept["log"] == [item for text in ("zero", *done) for item in (text, "thought", "gathered")]


async def state_of(worker: Any, graph: str) -> Any:
    """The thread's state as LangGraph puts it together."""
    pool = await worker.runtime._database.pool()
    compiled = getattr(worker.graphs, graph).compile(checkpointer=BoundSaver(pool, "acme"))
    return (await compiled.aget_state({"configurable": {"thread_id": "t"}})).values


def test_after_the_failed_node_was_removed_auto_begins_anew_and_says_so(
    worker: Any,
    start_local: Callable[..., Any],
    bury: Enqueue,
    desk: Desk,
    producer: Producer,
    texts: Callable[[], list[str]],
) -> None:
    run = bury("one", "changing")
    worker.graphs.gone.add("answer")
    changed = start_local()  # the next version, announced
    worker.stop()

    letter = desk.replay(letter_of(desk, run).id)

    assert (letter.replay_mode, letter.replay_why) == ("restart", "the graph has no node answer any more")
    changed.answer(run).exception(20)
    assert producer.wait(run.id, tenant="acme", timeout=20).status == "success"
    assert texts() == ["one", "hm", "to one"]


def test_an_attempt_that_is_lost_after_the_fork_goes_on_where_it_was(
    worker: Any,
    succeed: Enqueue,
    bury: Enqueue,
    desk: Desk,
    end_of: Callable[[Run], str],
    admin: Admin,
    texts: Callable[[], list[str]],
) -> None:
    succeed("zero", "asking")
    run = bury("", "asking", command={"resume": "yes"}, node="answer", durability="sync")
    desk.replay(letter_of(desk, run).id, mode="restart")

    cut_off(worker, run, "answer", admin)
    worker.graphs.calls.clear()
    assert end_of(run) == "success"

    assert texts() == ["zero", "hm", "yes", "to yes"]
    assert worker.graphs.calls == ["answer"], "not the node that had finished since the fork"


def cut_off(worker: Any, run: Run, node: str, admin: Admin) -> None:
    """Executes the run up to the node, where it is taken away, as from a worker that is gone."""
    worker.graphs.blocking.add(node)
    attempt: Future[str] = worker.answer(run)
    assert worker.graphs.started.wait(20)
    admin.execute("update runs set status = 'pending', worker_id = null where id = %s", (run.id,))
    worker.graphs.blocking.clear()
    worker.graphs.gate.set()
    assert isinstance(attempt.exception(20), LeaseLost)


def test_a_patched_state_is_what_the_failed_node_sees(
    worker: Any, bury: Enqueue, replay: Callable[..., str], values: Callable[[], dict[str, Any]]
) -> None:
    run = bury("one")

    replay(run, "resume", {"topic": "tea", "log": ["patched"], "place": {"name": "there"}})

    assert values()["place"]["name"] == "there", "the graph's own type, as the node asserts"
    assert [message["content"] for message in values()["messages"]] == ["one", "hm", "to one on tea"]
    assert values()["log"] == ["patched", "answered"]
    assert worker.graphs.calls == ["think", "answer", "answer"]


def test_a_patch_replaces_messages_and_takes_values_away(
    worker: Any, bury: Enqueue, replay: Callable[..., str], texts: Callable[[], list[str]]
) -> None:
    run = bury("one")

    replay(run, "resume", {"messages": [{"role": "user", "content": "two"}], "topic": None, "log": None})

    assert texts() == ["two", "to two"]


def test_finished_siblings_survive_a_patch(
    worker: Any, bury: Enqueue, replay: Callable[..., str], values: Callable[[], dict[str, Any]]
) -> None:
    run = bury("one", "fan", node="work 1")
    worker.graphs.calls.clear()

    replay(run, "resume", {"log": ["patched"]})

    assert worker.graphs.calls == ["work 1", "gather"]
    assert values()["log"] == ["patched", "worked 0", "worked 1", "worked 2", "gathered"]


def test_a_patch_is_not_applied_again_where_the_run_has_gone_on_from_it(
    worker: Any,
    bury: Enqueue,
    desk: Desk,
    end_of: Callable[[Run], str],
    admin: Admin,
    values: Callable[[], dict[str, Any]],
) -> None:
    run = bury("one", node="think", durability="sync")
    desk.replay(letter_of(desk, run).id, mode="resume", patch={"log": ["patched"]})
    cut_off(worker, run, "answer", admin)

    assert end_of(run) == "success"
    assert values()["log"] == ["patched", "thought", "answered"]


def test_a_patch_is_applied_once_over_lost_attempts_and_failures(
    worker: Any,
    bury: Enqueue,
    desk: Desk,
    replay: Callable[..., str],
    end_of: Callable[[Run], str],
    admin: Admin,
    values: Callable[[], dict[str, Any]],
) -> None:
    run = bury("one")
    letter = desk.replay(letter_of(desk, run).id, mode="resume", patch={"log": ["patched"], "topic": "tea"})
    cut_off(worker, run, "answer", admin)
    worker.graphs.failures["answer"] = 1
    assert end_of(run) == "error"

    replay(run, "resume", {"log": ["again"], "topic": "coffee"})

    assert letter.replays == 1
    assert values()["log"] == ["again", "answered"]
    assert [message["content"] for message in values()["messages"]][-1] == "to one on coffee"


def test_a_restart_forgets_a_patch_that_did_not_help(
    worker: Any,
    end_of: Callable[[Run], str],
    succeed: Enqueue,
    bury: Enqueue,
    desk: Desk,
    replay: Callable[..., str],
    texts: Any,
) -> None:
    succeed("one", "asking")
    run = bury("", "asking", command={"resume": "yes"}, node="ask")
    worker.graphs.failures["ask"] = 1
    desk.replay(letter_of(desk, run).id, mode="resume", patch={"topic": "tea"})
    assert end_of(run) == "error"

    replay(run, "restart")

    assert texts() == ["one", "hm", "yes", "to yes"]


def test_a_patch_beside_a_commands_own_update_takes_its_place(
    succeed: Enqueue, bury: Enqueue, replay: Callable[..., str], values: Callable[[], dict[str, Any]]
) -> None:
    succeed("one", "asking")
    command = {"resume": "yes", "update": {"topic": "milk", "log": ["mine"]}}
    run = bury("", "asking", command=command, node="ask")

    replay(run, "resume", {"topic": "tea"})

    assert values()["topic"] == "tea"
    assert values()["log"] == ["thought", "mine", "answered"]


def test_a_patch_that_the_graph_refuses_fails_the_replay_for_good(
    worker: Any, end_of: Callable[[Run], str], bury: Enqueue, desk: Desk, admin: Admin
) -> None:
    run = bury("one")
    # As announced by workers of another version.
    admin.execute("update graphs set channels = channels || '{nowhere}'::text[]")
    letter = desk.replay(letter_of(desk, run).id, mode="resume", patch={"nowhere": 1})

    assert end_of(run) == "error"

    again = letter_of(desk, run)
    assert (again.id, again.status, again.reason) == (letter.id, "waiting", "permanent")
    assert again.exception_type is not None and again.exception_type.endswith("InvalidInput")
    assert worker.graphs.calls == ["think", "answer"]


# ---------------------------------------------------------------------------------------------------
# Killed workers

KILLED = """
    import os, pathlib, signal
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START, add_messages

    HERE = pathlib.Path(__file__).parent

    class State(TypedDict):
        messages: Annotated[list, add_messages]

    async def think(state):
        if (HERE / "kill in think").exists():
            (HERE / "kill in think").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"messages": [("ai", "hm")]}

    async def answer(state):
        if (HERE / "kill in answer").exists():
            (HERE / "kill in answer").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if (HERE / "fail").exists():
            raise ValueError("no")
        return {"messages": [("ai", "done")]}

    chat = (
        StateGraph(State).add_node("think", think).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "answer")
    )
"""


@pytest.mark.parametrize("mode", ["restart", "append"])
@pytest.mark.parametrize("node", ["think", "answer"])
def test_a_worker_that_is_killed_in_a_replay_leaves_the_input_once(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    settings: Settings,
    producer: Producer,
    desk: Desk,
    texts: Callable[[], list[str]],
    mode: str,
    node: str,
) -> None:
    serve(KILLED, chat={})
    folder = settings.graphs_file.parent
    quick = {"heartbeat_interval": 0.3, "heartbeat_timeout": 1.2, "sweep_interval": 0.2}
    doomed = start_worker(**quick)
    (folder / "fail").touch()
    run = producer.enqueue("chat", {"messages": [["user", "one"]]}, tenant="acme", thread_id="t")
    assert producer.wait(run.id, tenant="acme", timeout=20).status == "error"
    (folder / "fail").unlink()
    if mode == "append":
        later = producer.enqueue("chat", {"messages": [["user", "two"]]}, tenant="acme", thread_id="t")
        assert producer.wait(later.id, tenant="acme", timeout=20).status == "success"
    (folder / f"kill in {node}").touch()

    desk.replay(letter_of(desk, run).id, mode=mode)
    assert doomed.process.wait(20) != 0
    assert not (folder / f"kill in {node}").exists()
    start_worker(**quick)

    ends_at = time.monotonic() + 30
    while producer.wait(run.id, tenant="acme", timeout=30).status != "success":
        assert time.monotonic() < ends_at
    moved = ["two", "hm", "done"] if mode == "append" else []
    assert texts() == [*moved, "one", "hm", "done"]
    assert letter_of(desk, run).status == "resolved"
