"""What takes too long is given up: its lane is free at once, and what it still does is refused."""

from __future__ import annotations

import datetime
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from threadmill.core.errors import LeaseLost
from threadmill.core.settings import Settings
from threadmill.dlq import DeadLetter, Desk
from threadmill.producers import Producer, Run, waiting
from threadmill.workers import stuck
from threadmill.workers.executor import RunFailed, RunPostponed

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START
    from langgraph.runtime import Runtime

    class State(TypedDict, total=False):
        texts: Annotated[list[str], operator.add]

    class Busy(Exception):
        status_code = 503
        retry_after = 3600

    calls, refused, swallowed = [], [], []
    slow = set()  # what a run must say for its second node to take too long
    started, ended, gate = threading.Event(), threading.Event(), threading.Event()

    def first(state):
        calls.append("first")
        return {"texts": ["first"]}

    def chain(second):
        return (
            StateGraph(State).add_node("first", first).add_node("second", second)
            .add_edge(START, "first").add_edge("first", "second")
        )

    def is_slow(state):
        calls.append("second")
        if state["texts"][-2] in slow:
            started.set()
            return True
        return False

    async def sleeps(state):
        try:
            if is_slow(state):
                await asyncio.sleep(60)
        finally:
            if started.is_set():
                ended.set()
        return {"texts": ["second"]}

    def blocks(state, runtime: Runtime):
        if is_slow(state):
            assert gate.wait(20)
            try:
                runtime.store.put(("notes",), "n", {"late": True})
            except BaseException as error:
                refused.append(error)
            ended.set()
        return {"texts": ["second"]}

    async def swallows(state, runtime: Runtime):
        if is_slow(state):
            while not gate.is_set():
                try:
                    await asyncio.to_thread(gate.wait, 0.1)
                except asyncio.CancelledError:
                    swallowed.append("cancelled")
            try:
                await runtime.store.aput(("notes",), "n", {"late": True})
            except BaseException as error:
                refused.append(error)
            ended.set()
        return {"texts": ["second"]}

    def fails(state):
        raise Busy

    sleeping, blocking, swallowing, failing = chain(sleeps), chain(blocks), chain(swallows), chain(fails)
    patient = strict = sleeping
"""
LIMIT = 0.4
POLICY = {"timeout": LIMIT, "retry_delay": 0, "retry_delay_max": 0, "max_attempts": 2}
Enqueue = Callable[..., Run]


@pytest.fixture
def worker(
    serve: Callable[..., None], start_local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    monkeypatch.setattr(stuck, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("threadmill.workers.executor.STOP_GRACE", 0.2)
    serve(
        GRAPHS,
        sleeping=POLICY,
        blocking=POLICY,
        swallowing=POLICY,
        patient={},
        failing={},
        strict={"on_dead_letter": "hold"},
    )
    worker = start_local(drain_timeout=0.3)
    yield worker
    worker.graphs.gate.set()


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    def enqueue(graph: str, text: str = "slow", thread_id: str = "t", **options: Any) -> Run:
        return producer.enqueue(graph, {"texts": [text]}, tenant="acme", thread_id=thread_id, **options)

    return enqueue


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings) as desk:
        yield desk


def only_letter(desk: Desk) -> DeadLetter:
    (letter,) = desk.list()
    return letter


def attempts(admin: Any) -> list[tuple[Any, ...]]:
    return admin.execute(
        "select attempt, outcome, cause, node, exception_type from attempts order by attempt"
    ).fetchall()


def soon(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within five seconds."""
    ends_at = time.monotonic() + 5
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


# ---------------------------------------------------------------------------------------------------
# One attempt


@pytest.mark.parametrize("graph", ["sleeping", "blocking", "swallowing"])
def test_an_attempt_that_takes_too_long_is_spent_and_the_last_one_ends_the_run(
    graph: str, worker: Any, enqueue: Enqueue, producer: Producer, desk: Desk, admin: Any
) -> None:
    worker.graphs.slow.add("slow")
    worker.listen()
    began = time.monotonic()

    done = producer.wait(enqueue(graph).id, tenant="acme", timeout=20)

    assert time.monotonic() - began < 2 * LIMIT + 3
    assert (done.status, done.attempt, done.error.type) == ("timeout", 2, "RunTimeout")
    assert done.error.message == f"given up after {LIMIT} s: the timeout is over"
    assert worker.graphs.calls == ["first", "second", "second"], "what had finished is not run again"
    assert attempts(admin) == [
        (1, "timeout", "transient: timeout", "second", "RunTimeout"),
        (2, "timeout", "timeout over", "second", "RunTimeout"),
    ]
    letter = only_letter(desk)
    assert (letter.reason, letter.node, letter.error.type) == ("timeout", "second", "RunTimeout")
    head = producer.state("acme", "t")
    assert (head.status, head.values) == ("error", {"texts": ["slow", "first"]})
    assert letter.checkpoint_id == head.checkpoint_id


def test_a_second_attempt_that_is_quicker_succeeds(
    worker: Any, enqueue: Enqueue, producer: Producer, admin: Any
) -> None:
    worker.graphs.slow.add("slow")
    run = enqueue("sleeping")
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)
    worker.graphs.slow.clear()

    assert isinstance(answer.exception(20), RunPostponed)
    assert worker.graphs.ended.wait(20), "the node was cancelled, and its finally ran"
    assert worker.answer(run).result(20) == "success"
    done = producer.get(run.id, tenant="acme")

    assert (done.status, done.attempt, done.error) == ("success", 2, None)
    assert producer.state("acme", "t").values == {"texts": ["slow", "first", "second"]}
    assert admin.execute("select failures from runs").fetchone() == (1,)


@pytest.mark.parametrize("graph", ["blocking", "swallowing"])
def test_a_node_that_cannot_be_stopped_holds_up_nobody_and_writes_nothing(
    graph: str, worker: Any, enqueue: Enqueue, producer: Producer, admin: Any
) -> None:
    worker.graphs.slow.add("slow")
    run, following = enqueue(graph, max_attempts=1), enqueue(graph, "quick")
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)
    worker.listen()

    assert producer.wait(following.id, tenant="acme", timeout=20).status == "success"
    assert isinstance(answer.exception(20), RunFailed)
    assert not worker.graphs.ended.is_set(), "the node of the first run is still at work"
    before = producer.state("acme", "t")
    worker.graphs.gate.set()
    assert worker.graphs.ended.wait(20)

    assert [type(error) for error in worker.graphs.refused] == [LeaseLost]
    refused = "select bool_or(fenced_writes > 0) from attempts"  # on a slow machine the next run has one too
    assert eventually(lambda: admin.execute(refused).fetchone() == (True,)), "and it is counted"
    assert admin.execute("select count(*) from store").fetchone() == (0,)
    assert producer.state("acme", "t") == before
    assert before.values == {"texts": ["quick", "first", "second"]}
    assert producer.get(run.id, tenant="acme").status == "timeout"
    if graph == "swallowing":
        assert worker.graphs.swallowed == ["cancelled"]


@pytest.mark.parametrize("graph", ["blocking", "swallowing"])
def test_a_node_that_never_ends_has_its_process_replaced_once(
    graph: str, worker: Any, enqueue: Enqueue
) -> None:
    asked, again = threading.Event(), threading.Event()
    worker.runtime._stuck._replace = lambda: (again if asked.is_set() else asked).set()
    worker.graphs.slow.add("slow")
    answers = [worker.answer(enqueue(graph, thread_id=f"t{n}", max_attempts=1)) for n in range(2)]

    assert asked.wait(20)

    assert all(isinstance(answer.exception(20), RunFailed) for answer in answers)
    assert not again.wait(0.5)


def test_a_node_that_ends_late_has_no_process_replaced(worker: Any, enqueue: Enqueue) -> None:
    asked = threading.Event()
    worker.runtime._stuck._replace = asked.set
    worker.runtime._stuck._patience = 5
    worker.graphs.slow.add("slow")
    answer = worker.answer(enqueue("blocking", max_attempts=1))
    assert isinstance(answer.exception(20), RunFailed)
    watchers = set(worker.runtime._stuck._watched)
    assert len(watchers) == 1

    worker.graphs.gate.set()

    assert eventually(lambda: not worker.runtime._stuck._watched)
    assert not asked.is_set()


# ---------------------------------------------------------------------------------------------------
# The run as a whole


def test_a_run_that_is_executed_past_its_deadline_is_given_up(
    worker: Any, enqueue: Enqueue, producer: Producer, desk: Desk, admin: Any
) -> None:
    worker.graphs.slow.add("slow")

    run = enqueue("patient", deadline=soon(0.8))
    assert isinstance(worker.answer(run).exception(20), RunFailed)

    assert worker.graphs.ended.wait(20)
    done = producer.get(run.id, tenant="acme")
    assert (done.status, done.attempt, done.error.type, done.error.node) == (
        "timeout",
        1,
        "RunTimeout",
        "second",
    )
    assert re.fullmatch(r"given up after 0\.\d s: the deadline is over", done.error.message)
    assert done.finished_at - done.created_at < datetime.timedelta(seconds=3)
    assert attempts(admin) == [(1, "timeout", "deadline over", "second", "RunTimeout")]
    assert only_letter(desk).reason == "timeout"


def test_a_run_that_waits_for_its_retry_past_its_deadline_is_ended_and_the_next_goes_on(
    worker: Any, enqueue: Enqueue, producer: Producer, desk: Desk, admin: Any
) -> None:
    run = enqueue("failing", deadline=soon(0.8))
    assert isinstance(worker.answer(run).exception(20), RunPostponed)
    following = enqueue("patient", "quick")
    worker.listen()

    done = producer.wait(run.id, tenant="acme", timeout=20)

    assert (done.status, done.attempt) == ("timeout", 1)
    assert done.error.message == "the deadline passed before the run was done"
    assert attempts(admin) == [(1, "failed", "transient: HTTP 503", "second", "Busy")]
    letter = only_letter(desk)
    assert (letter.reason, letter.run_id) == ("timeout", run.id)
    *_, after_first, _, _ = producer.history("acme", "t", limit=100)  # newest first
    assert letter.checkpoint_id == after_first["checkpoint_id"]
    assert producer.wait(following.id, tenant="acme", timeout=20).status == "success"


def test_a_run_that_is_not_begun_by_its_deadline_never_is(
    worker: Any,
    enqueue: Enqueue,
    producer: Producer,
    desk: Desk,
    admin: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker.graphs.slow.add("slow")
    monkeypatch.setattr(waiting, "TRUST_SECONDS", 30.0)  # who waits is told
    ahead = worker.answer(enqueue("patient"))
    assert worker.graphs.started.wait(20)
    late = enqueue("patient", "late", deadline=soon(0.5))

    done = producer.wait(late.id, tenant="acme", timeout=20)

    assert (done.status, done.attempt, done.started_at) == ("timeout", 0, None)
    letter = only_letter(desk)
    assert (letter.reason, letter.checkpoint_id, letter.node) == ("timeout", None, None)
    assert attempts(admin) == []
    assert producer.state("acme", "t").status == "busy", "the run ahead of it goes on"
    assert worker.drops(late)
    ahead.cancel()


def test_a_run_that_is_never_begun_holds_up_none_that_is_ahead_of_it(
    worker: Any, enqueue: Enqueue, producer: Producer, desk: Desk, admin: Any
) -> None:
    ahead = enqueue("failing")
    assert isinstance(worker.answer(ahead).exception(20), RunPostponed)
    late = enqueue("strict", "late", deadline=soon(0.3))
    assert producer.wait(late.id, tenant="acme", timeout=20).status == "timeout"

    admin.execute("update runs set run_at = now(), rank = now() where status = 'pending'")

    assert isinstance(worker.answer(ahead).exception(20), RunPostponed)
    assert producer.get(ahead.id, tenant="acme").attempt == 2


def test_a_bell_for_a_run_past_its_deadline_is_dropped(
    serve: Callable[..., None], start_local: Callable[..., Any], enqueue: Enqueue, admin: Any
) -> None:
    serve(GRAPHS, patient={})
    worker = start_local(sweep_interval=60)  # nobody ends it meanwhile
    run = enqueue("patient", "late", deadline=soon(60))
    admin.execute("update runs set deadline = now()")

    assert worker.drops(run)
    assert worker.graphs.calls == []
