"""A run that fails is tried again from its last checkpoint, as often as it may; every failure is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from threadmill.core.errors import DatabaseUnavailable
from threadmill.core.settings import Settings
from threadmill.dlq import DeadLetter, Desk
from threadmill.producers import Producer, Run
from threadmill.workers import ending
from threadmill.workers.executor import RunFailed, RunPostponed

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START
    from langgraph.types import Send, interrupt

    class State(TypedDict, total=False):
        texts: Annotated[list[str], operator.add]

    class Single(TypedDict, total=False):
        text: str

    calls = []
    troubles = {}  # by node: the exceptions that it raises, one after the other
    started, gate = threading.Event(), threading.Event()

    def visit(node):
        calls.append(node)
        if troubles.get(node):
            raise troubles[node].pop(0)
        return {"texts": [node]}

    def chain(state, *nodes):
        graph = StateGraph(state)
        for before, (name, node) in zip((START, *(name for name, _ in nodes)), nodes):
            graph.add_node(name, node).add_edge(before, name)
        return graph

    async def first(state):
        return visit("first")

    def second(state):
        return visit("second")

    line = chain(State, ("first", first), ("second", second))
    judged = limited = line

    async def slow(state):
        started.set()
        assert await asyncio.to_thread(gate.wait, 20)
        return visit("slow")

    slow = chain(State, ("slow", slow), ("second", second))

    # Side by side: the last one waits for its siblings, as its failure would cancel them.
    finished = set()

    async def sibling(name):
        if name == "last":
            assert await asyncio.to_thread(gate.wait, 20)
            for _ in range(20):  # until what the others returned was taken from them
                await asyncio.sleep(0)
        texts = visit(name)
        finished.add(name)
        if len(finished) == 2:
            gate.set()
        return texts

    async def a(state):
        return await sibling("a")

    async def b(state):
        return await sibling("b")

    async def last(state):
        return await sibling("last")

    async def join(state):
        return visit("join")

    fan = StateGraph(State).add_node("join", join)
    for node in (a, b, last):
        fan.add_node(node.__name__, node).add_edge(START, node.__name__)
    fan.add_edge(["a", "b", "last"], "join")

    async def item(state):
        return await sibling(state["name"])

    sent = (
        StateGraph(State).add_node("item", item).add_node("join", join).add_edge("item", "join")
        .add_conditional_edges(START, lambda s: [Send("item", {"name": n}) for n in ["a", "b", "last"]])
    )
    nested = chain(State, ("first", first), ("inside", chain(State, ("one", lambda s: visit("one")),
        ("two", lambda s: visit("two"))).compile()), ("second", second))

    # Wrong in themselves.
    loop = StateGraph(State).add_node("first", first).add_edge(START, "first").add_edge("first", "first")
    clash = StateGraph(Single)
    for name in ("x", "y"):
        clash.add_node(name, lambda s: {"text": "mine"}).add_edge(START, name)
    says = {"value": ""}
    single = chain(Single, ("say", lambda s: {"text": says["value"]}))
    listed = chain(State, ("say", lambda s: {"texts": [says["value"]]}))

    def ask(state):
        calls.append("ask")
        return {"texts": [interrupt("sure?")]}

    def ask_and_do(state):
        answer = interrupt("sure?")
        visit(f"do {answer}")
        return {"texts": [answer]}

    asking = chain(State, ("ask", ask), ("second", second))
    doing = chain(State, ("ask", ask_and_do), ("second", second))

    async def left(state):
        return visit(f"left {interrupt('left?')}")

    async def right(state):
        return visit(f"right {interrupt('right?')}")

    questions = StateGraph(State)
    for node in (left, right):
        questions.add_node(node.__name__, node).add_edge(START, node.__name__)

    def made(config):
        visit("made")
        return questions.compile()

    def judge(error):
        kinds = {"LookupError": "transient", "GraphLoadFailed": "transient", "ConnectionError": "permanent"}
        return kinds.get(type(error).__name__)

    def babble(error):
        from threadmill.graphs import Verdict
        return Verdict("transient", why="nul \\0")

    babbling = line
"""
DURABILITIES = ("sync", "async", "exit")
AT_ONCE = {"retry_delay": 0, "retry_delay_max": 0}
Enqueue = Callable[..., Run]


class Busy(Exception):
    """What a client raises that was told when to come back."""

    status_code = 503
    retry_after = 3600


class TooMany(Exception):
    """What a client raises that was told that it asks too often."""

    status_code = 429

    def __init__(self, retry_after: float) -> None:
        super().__init__("slow down")
        self.retry_after = retry_after


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(
        GRAPHS,
        line=AT_ONCE,
        fan=AT_ONCE,
        sent=AT_ONCE,
        nested=AT_ONCE,
        slow=AT_ONCE,
        loop={"recursion_limit": 3},
        clash={},
        single={},
        listed={},
        asking=AT_ONCE,
        doing=AT_ONCE,
        made={**AT_ONCE, "classifier": "./graphs.py:judge"},
        limited={**AT_ONCE, "rate_limit_budget": 50, "max_attempts": 2},
        judged={**AT_ONCE, "classifier": "./graphs.py:judge"},
        babbling={**AT_ONCE, "classifier": "./graphs.py:babble"},
    )
    worker = start_local()
    worker.graphs.calls.clear()  # it has loaded them
    return worker


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    def enqueue(graph: str = "line", text: str = "in", thread_id: str = "t", **options: Any) -> Run:
        given = {"text": text} if graph in ("clash", "single") else {"texts": [text]}
        return producer.enqueue(
            graph, None if "command" in options else given, tenant="acme", thread_id=thread_id, **options
        )

    return enqueue


@pytest.fixture
def finish(worker: Any, enqueue: Enqueue, producer: Producer) -> Enqueue:
    """Enqueues a run and waits for its end; from then on the worker answers every bell."""

    def finish(*args: Any, **options: Any) -> Run:
        if worker._listener is None:
            worker.listen()
        return producer.wait(enqueue(*args, **options).id, tenant="acme", timeout=20)

    return finish


@pytest.fixture
def make_due(admin: Any) -> Callable[[], None]:
    """Brings the time of every run that waits."""
    return lambda: admin.execute(
        "update runs set run_at = now(), rank = now() where rank is not null and status = 'pending'"
    )


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings) as desk:
        yield desk


def attempts(admin: Any) -> list[tuple[Any, ...]]:
    return admin.execute(
        "select attempt, outcome, cause, node, exception_type from attempts order by run_id, attempt"
    ).fetchall()


def costs(admin: Any, run: Run) -> tuple[int, int, float]:
    """What the run's attempts have cost so far: failures, workers, seconds of waiting."""
    row = admin.execute(
        "select failures, worker_losses, throttled from runs where id = %s", [run.id]
    ).fetchone()
    return tuple(row)


def only_letter(desk: Desk) -> DeadLetter:
    (letter,) = desk.list()
    return letter


# ---------------------------------------------------------------------------------------------------
# Tried again, from the last checkpoint


def test_a_transient_failure_is_tried_again_and_nothing_that_finished_is(
    worker: Any, finish: Enqueue, producer: Producer, admin: Any
) -> None:
    for durability in DURABILITIES:
        worker.graphs.calls.clear()
        worker.graphs.troubles["second"] = [ConnectionError("refused"), TimeoutError("late")]

        done = finish(thread_id=durability, durability=durability)

        assert (done.status, done.attempt, done.error) == ("success", 3, None)
        assert worker.graphs.calls == ["first", "second", "second", "second"]
        assert producer.state("acme", durability).values == {"texts": ["in", "first", "second"]}
        assert done.output == {"texts": ["in", "first", "second"]}
    assert attempts(admin) == 3 * [
        (1, "failed", "transient: ConnectionError", "second", "ConnectionError"),
        (2, "failed", "transient: TimeoutError", "second", "TimeoutError"),
    ]


def test_attempts_that_are_used_up_end_in_a_dead_letter_and_every_one_is_recorded(
    worker: Any, finish: Enqueue, desk: Desk, producer: Producer, admin: Any
) -> None:
    worker.graphs.troubles["second"] = [ConnectionError(f"refused {n}") for n in range(9)]

    done = finish()

    assert (done.status, done.attempt) == ("error", 3)
    assert (done.error.type, done.error.message, done.error.node) == (
        "ConnectionError",
        "refused 2",
        "second",
    )
    assert worker.graphs.calls == ["first"] + ["second"] * 3
    letter = only_letter(desk)
    assert (letter.reason, letter.node, letter.run_id) == ("exhausted", "second", done.id)
    assert attempts(admin) == [
        (n, "failed", "transient: ConnectionError", "second", "ConnectionError") for n in (1, 2, 3)
    ]
    assert costs(admin, done) == (3, 0, 0)
    texts = admin.execute("select message, traceback from attempts order by attempt").fetchall()
    for number, (message, traceback) in enumerate(texts):
        assert message == f"refused {number}"
        assert "raise troubles[node].pop(0)\nConnectionError: refused" in " ".join(traceback.split(" " * 4))
    head = producer.state("acme", "t")
    assert (head.status, head.values) == ("error", {"texts": ["in", "first"]})
    assert admin.execute(
        "select bool_and(checkpoint_id = %s), bool_and(worker_id = %s), bool_and(started_at < ended_at)"
        " from attempts",
        [head.checkpoint_id, worker.runtime.worker_id],
    ).fetchone() == (True, True, True)


@pytest.mark.parametrize("graph", ["fan", "sent"])
def test_siblings_that_finished_are_not_run_again(
    graph: str, worker: Any, finish: Enqueue, producer: Producer
) -> None:
    for durability in DURABILITIES:
        worker.graphs.calls.clear()
        worker.graphs.finished.clear()
        worker.graphs.gate.clear()
        worker.graphs.troubles["last"] = [ConnectionError("refused"), ConnectionError("refused")]

        done = finish(graph, thread_id=durability, durability=durability)

        assert (done.status, done.attempt) == ("success", 3)
        assert sorted(worker.graphs.calls) == ["a", "b", "join", "last", "last", "last"]
        assert producer.state("acme", durability).values == {"texts": ["in", "a", "b", "last", "join"]}


def test_a_subgraph_goes_on_where_it_failed(worker: Any, finish: Enqueue, admin: Any) -> None:
    for durability in DURABILITIES:
        worker.graphs.calls.clear()
        worker.graphs.troubles["two"] = [ConnectionError("refused")]

        done = finish("nested", thread_id=durability, durability=durability)

        assert (done.status, done.attempt) == ("success", 2)
        assert worker.graphs.calls == ["first", "one", "two", "two", "second"]
    assert attempts(admin) == 3 * [(1, "failed", "transient: ConnectionError", "inside", "ConnectionError")]


def test_what_fails_before_any_node_is_tried_again_too(
    worker: Any, finish: Enqueue, producer: Producer, admin: Any
) -> None:
    worker.graphs.troubles["made"] = [OSError("no prompts")]

    done = finish("made")

    assert (done.status, done.attempt) == ("success", 2)
    assert attempts(admin) == [(1, "failed", "transient: GraphLoadFailed", None, "GraphLoadFailed")]
    assert producer.state("acme", "t").values == {"texts": ["in"]}


# ---------------------------------------------------------------------------------------------------
# While it waits


def test_the_lane_stays_the_runs_own_while_it_waits_as_long_as_it_was_told(
    worker: Any,
    enqueue: Enqueue,
    finish: Enqueue,
    producer: Producer,
    make_due: Callable[[], None],
    admin: Any,
) -> None:
    worker.graphs.troubles["second"] = [Busy("come back")]
    run = enqueue()
    assert isinstance(worker.answer(run).exception(20), RunPostponed)
    later = enqueue(text="later")

    waiting = producer.get(run.id, tenant="acme")
    assert (waiting.status, waiting.attempt) == ("pending", 1)
    assert (waiting.error.type, waiting.error.node) == ("Busy", "second")
    assert producer.state("acme", "t").status == "busy"
    (seconds,) = admin.execute(
        "select extract(epoch from run_at - now())::float from runs where id = %s", [run.id]
    ).fetchone()
    assert 3590 < seconds <= 3600
    assert worker.drops(run)
    assert worker.drops(later), "a later run of the thread waits behind it"
    assert finish(thread_id="other").status == "success"
    assert worker.graphs.calls == ["first", "second", "first", "second"]

    make_due()

    assert [producer.wait(one.id, tenant="acme", timeout=20).status for one in (run, later)] == [
        "success"
    ] * 2
    assert producer.state("acme", "t").values["texts"] == [
        *("in", "first", "second"),
        *("later", "first", "second"),
    ]


def test_the_next_attempt_begins_at_once_where_it_is_due_at_once(
    worker: Any, enqueue: Enqueue, producer: Producer
) -> None:
    worker.listen()  # the retry's own bell; nobody looks for lost ones
    worker.runtime._tasks[0].cancel()
    worker.graphs.troubles["second"] = [ConnectionError("refused")] * 2

    assert producer.wait(enqueue().id, tenant="acme", timeout=20).status == "success"


# ---------------------------------------------------------------------------------------------------
# What it costs


def test_a_rate_limit_costs_no_attempt_until_the_budget_is_used_up(
    worker: Any, enqueue: Enqueue, producer: Producer, make_due: Callable[[], None], desk: Desk, admin: Any
) -> None:
    worker.graphs.troubles["second"] = [TooMany(30), TooMany(20), TooMany(1), TooMany(0)]
    run = enqueue("limited")
    seen = []
    answer = worker.answer(run)
    for _ in range(3):
        assert isinstance(answer.exception(20), RunPostponed)
        seen.append(costs(admin, run))
        # Nobody else takes it up: its bell counts as rung.
        admin.execute("update runs set run_at = now(), dispatched_at = now() + interval '1 h'")
        answer = worker.answer(run)
    assert isinstance(answer.exception(20), RunFailed)

    assert seen == [(0, 0, 30), (0, 0, 50), (1, 0, 50)]
    assert costs(admin, run) == (2, 0, 50)
    assert only_letter(desk).reason == "exhausted"
    over = "rate_limited: HTTP 429, and 50 s were waited already"
    assert [cause for _, _, cause, _, _ in attempts(admin)] == ["rate_limited: HTTP 429"] * 2 + [over] * 2


def test_infrastructure_trouble_costs_nothing(
    worker: Any, finish: Enqueue, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "INFRASTRUCTURE_DELAY", 0)
    worker.graphs.troubles["second"] = [DatabaseUnavailable("elsewhere", "refused") for _ in range(5)]

    done = finish(max_attempts=1)

    assert (done.status, done.attempt, done.error) == ("success", 6, None)
    assert costs(admin, done) == (0, 0, 0)
    assert attempts(admin) == [
        (n, "failed", "infrastructure: DatabaseUnavailable", "second", "DatabaseUnavailable")
        for n in range(1, 6)
    ]


@pytest.mark.parametrize(
    ("graph", "kind", "node"),
    [
        ("line", "ValueError", "second"),
        ("loop", "GraphRecursionError", "first"),
        # LangGraph cannot show a state in which two writes clash, so it is not known where it failed.
        ("clash", "InvalidUpdateError", None),
    ],
)
def test_what_no_retry_mends_is_a_dead_letter_at_once(
    graph: str, kind: str, node: str | None, worker: Any, finish: Enqueue, desk: Desk, admin: Any
) -> None:
    worker.graphs.troubles["second"] = [ValueError("no")]

    done = finish(graph)

    assert (done.status, done.attempt, done.error.type) == ("error", 1, kind)
    letter = only_letter(desk)
    assert letter.reason == "permanent"
    assert letter.checkpoint_id is not None, "from which a replay sees that the input is in the state"
    ((*record, recorded_node, recorded_kind),) = attempts(admin)
    assert record == [1, "failed", f"permanent: {kind}"]
    assert (recorded_node, recorded_kind) == (node, kind)


def test_a_graphs_own_classifier_decides(worker: Any, finish: Enqueue, desk: Desk, admin: Any) -> None:
    worker.graphs.troubles["second"] = [LookupError("not yet"), ConnectionError("never")]

    done = finish("judged")

    assert (done.status, done.attempt) == ("error", 2)
    assert only_letter(desk).reason == "permanent"
    assert [cause for _, _, cause, _, _ in attempts(admin)] == [
        "transient: LookupError",
        "permanent: ConnectionError",
    ]


# ---------------------------------------------------------------------------------------------------
# Commands are given once


def test_an_answer_is_given_once_however_often_its_run_fails(
    worker: Any, finish: Enqueue, producer: Producer
) -> None:
    assert finish("asking").status == "success"
    worker.graphs.troubles["second"] = [ConnectionError("refused")] * 2

    done = finish("asking", command={"resume": "yes"})

    assert (done.status, done.attempt) == ("success", 3)
    assert worker.graphs.calls == ["ask", "ask", "second", "second", "second"]
    assert producer.state("acme", "t").values == {"texts": ["in", "yes", "second"]}


def test_an_answer_in_whose_node_it_failed_is_not_asked_for_again(
    worker: Any, finish: Enqueue, producer: Producer
) -> None:
    assert finish("doing").status == "success"
    worker.graphs.troubles["do yes"] = [ConnectionError("refused")] * 2

    done = finish("doing", command={"resume": "yes"})

    assert (done.status, done.attempt) == ("success", 3)
    assert worker.graphs.calls == ["do yes", "do yes", "do yes", "second"]
    assert producer.state("acme", "t").values == {"texts": ["in", "yes", "second"]}


def test_an_update_is_applied_once_however_often_its_run_fails(
    worker: Any, finish: Enqueue, producer: Producer
) -> None:
    assert finish().status == "success"
    worker.graphs.troubles["second"] = [ConnectionError("refused")] * 2

    done = finish(command={"update": {"texts": ["mended"]}, "goto": "second"})

    assert (done.status, done.attempt) == ("success", 3)
    assert producer.state("acme", "t").values == {"texts": ["in", "first", "second", "mended", "second"]}


@pytest.mark.parametrize("fails", ["before", "after"])
def test_what_a_failed_run_has_answered_is_not_taken_for_this_runs_answer(
    fails: str, worker: Any, finish: Enqueue, producer: Producer
) -> None:
    assert finish("made").status == "success"
    ids = {question["value"]: question["id"] for question in producer.state("acme", "t").interrupts}
    worker.graphs.troubles["left no"] = [ValueError("no")]
    # It leaves its answer beside the checkpoint at which the thread still stands.
    assert finish("made", command={"resume": {ids["left?"]: "no"}}).status == "error"
    # Before the next run has given its own answer, or after.
    worker.graphs.troubles["made" if fails == "before" else "right yes"] = [LookupError("not yet")]

    done = finish("made", command={"resume": {ids["right?"]: "yes"}})

    assert (done.status, done.attempt) == ("success", 2)
    (question,) = producer.state("acme", "t").interrupts
    assert question["id"] == ids["left?"], "what it had answered is open again"
    assert finish("made", command={"resume": {ids["left?"]: "maybe"}}).status == "success"
    assert producer.state("acme", "t").values == {"texts": ["in", "left maybe", "right yes"]}


# ---------------------------------------------------------------------------------------------------
# What can hardly be recorded


class Mute(Exception):
    """An error that has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("message", "kept"),
    [("a\0b", "a\ufffdb"), ("half \ud83d", "half ?"), ("x" * 10_000, "x" * 4_000)],
    ids=["nul", "surrogate", "long"],
)
def test_a_message_that_postgres_cannot_hold_is_recorded_as_far_as_it_can(
    message: str, kept: str, worker: Any, finish: Enqueue, admin: Any
) -> None:
    worker.graphs.troubles["second"] = [ValueError(message)]

    done = finish()

    assert (done.status, done.error.message) == ("error", kept)
    assert admin.execute("select message from attempts").fetchone() == (kept,)


def test_an_error_that_cannot_be_described_ends_its_run_all_the_same(
    worker: Any, finish: Enqueue, producer: Producer, desk: Desk, admin: Any
) -> None:
    worker.graphs.troubles["second"] = [Mute()]

    done = finish()

    assert (done.status, done.error.type, done.error.message) == (
        "error",
        "Mute",
        "<no message: its __str__ raised RuntimeError>",
    )
    letter = only_letter(desk)
    assert (letter.reason, letter.checkpoint_id) == ("permanent", producer.state("acme", "t").checkpoint_id)
    assert attempts(admin) == [(1, "failed", "permanent: Mute is not known", "second", "Mute")]


def test_a_verdict_that_cannot_be_recorded_ends_its_run_all_the_same(
    worker: Any, finish: Enqueue, admin: Any
) -> None:
    worker.graphs.troubles["second"] = [ValueError("no")] * 3

    done = finish("babbling")

    assert (done.status, done.error.type) == ("error", "ValueError")
    assert len(attempts(admin)) == 3


@pytest.mark.parametrize("value", ["a\0b", "half \ud83d"], ids=["nul", "surrogate"])
@pytest.mark.parametrize("graph", ["single", "listed"])
def test_a_value_that_postgres_cannot_hold_ends_its_run_one_way_or_the_other(
    graph: str, value: str, worker: Any, finish: Enqueue, producer: Producer, desk: Desk, admin: Any
) -> None:
    worker.graphs.says["value"] = value

    done = finish(graph)

    if graph == "listed":  # a blob of the checkpointer's, and JSON text in the ledger, hold anything
        assert (done.status, done.output["texts"][-1]) == ("success", value)
    else:  # stands in the checkpoint's own row, as jsonb
        assert done.status == "error"
        assert only_letter(desk).reason == "permanent"
        assert len(attempts(admin)) == 1
    worker.graphs.says["value"] = "well"
    assert finish("listed", thread_id="other").status == "success"


class Ended(BaseException):
    """An exception that is none, by its class."""


def test_a_node_that_exits_ends_its_run_and_not_its_worker(
    worker: Any, enqueue: Enqueue, finish: Enqueue, desk: Desk, admin: Any
) -> None:
    beside = enqueue("slow", thread_id="beside")
    answer = worker.answer(beside)
    assert worker.graphs.started.wait(20)

    for error in (SystemExit(2), KeyboardInterrupt(), Ended(), asyncio.CancelledError()):
        for node in ("first", "second"):  # on the loop, in a thread
            worker.graphs.troubles[node] = [error]
            done = finish()
            assert (done.status, done.attempt, done.error.node) == ("error", 1, node)
            traceback = "select traceback from attempts where run_id = %s"
            assert type(error).__name__ in admin.execute(traceback, [done.id]).fetchone()[0]

    assert {letter.reason for letter in desk.list()} == {"permanent"}
    worker.graphs.gate.set()
    assert answer.result(20) == "success"
    assert finish(thread_id="later").status == "success"
