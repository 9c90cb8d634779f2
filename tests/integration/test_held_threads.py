"""`on_dead_letter: hold`: what comes after a dead letter waits, and nothing else does."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import Producer, Run
from threadmill.workers.executor import RunFailed

GRAPH = """
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        word: str

    def speak(state):
        if state["word"] == "boom":
            raise ValueError("boom")
        return {}

    speaker = StateGraph(State).add_node("speak", speak).add_edge(START, "speak")
"""


def test_a_held_thread_takes_no_run_until_its_dead_letter_is_discarded(
    settings: Settings, serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer
) -> None:
    serve(GRAPH, speaker={"max_attempts": 1, "on_dead_letter": "hold"})
    worker = start_local()

    def enqueue(word: str, thread_id: str) -> Any:
        return producer.enqueue("speaker", {"word": word}, tenant="acme", thread_id=thread_id)

    assert isinstance(worker.answer(enqueue("boom", "held")).exception(20), RunFailed)
    behind = enqueue("hello", "held")
    assert worker.drops(behind)
    assert worker.answer(enqueue("hello", "other")).result(20) == "success"

    with Desk(settings) as desk:
        (letter,) = desk.list()
        desk.discard(letter.id)
    assert worker.answer(behind).result(20) == "success"


Enqueue = Callable[..., Run]


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    def enqueue(word: str, **options: Any) -> Run:
        return producer.enqueue("speaker", {"word": word}, tenant="acme", thread_id="t", **options)

    return enqueue


def test_what_is_held_goes_on_when_the_time_for_holding_it_is_over(
    settings: Settings,
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    enqueue: Enqueue,
    admin: Any,
) -> None:
    serve(GRAPH, speaker={"on_dead_letter": "hold", "hold_timeout": 3600})
    worker = start_local()
    failed, behind = enqueue("boom"), enqueue("hello")
    worker.answer(failed).exception(20)
    assert producer.wait(failed.id, tenant="acme", timeout=20).status == "error"
    assert admin.execute("select until - since from held_lanes").fetchone() == (datetime.timedelta(hours=1),)
    assert worker.drops(behind)
    assert producer.state("acme", "t").status == "error"

    admin.execute("update held_lanes set until = now()")
    worker.listen()

    assert producer.wait(behind.id, tenant="acme", timeout=20).status == "success"
    assert admin.execute("select count(*) from held_lanes").fetchone() == (0,)
    with Desk(settings) as desk:
        (letter,) = desk.list()
        assert letter.status == "waiting", "it is held no more, and still to be dealt with"
        assert desk.replay(letter.id).replay_mode == "append"


@pytest.mark.parametrize(("policy", "own"), [("skip", "hold"), ("hold", "skip")])
def test_a_run_may_choose_otherwise_than_its_graph(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    enqueue: Enqueue,
    admin: Any,
    policy: str,
    own: str,
) -> None:
    serve(GRAPH, speaker={"on_dead_letter": policy})
    worker = start_local()
    failed = enqueue("boom", on_dead_letter=own)
    worker.answer(failed).exception(20)
    assert producer.wait(failed.id, tenant="acme", timeout=20).status == "error"

    behind = enqueue("hello")

    assert admin.execute("select count(*) from held_lanes").fetchone() == (int(own == "hold"),)
    if own == "hold":
        assert worker.drops(behind)
    else:
        worker.answer(behind).exception(20)
        assert producer.wait(behind.id, tenant="acme", timeout=20).status == "success"


def test_a_replay_has_a_deadline_of_its_own(
    settings: Settings,
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    enqueue: Enqueue,
    admin: Any,
) -> None:
    serve(GRAPH, speaker={"deadline": 600})
    worker = start_local()
    failed = enqueue("boom")
    worker.answer(failed).exception(20)
    assert producer.wait(failed.id, tenant="acme", timeout=20).status == "error"
    admin.execute("update runs set deadline = now() - interval '1 h'")
    admin.execute("insert into limits (kind, name, paused) values ('tenant', 'acme', true)")

    with Desk(settings) as desk:
        (letter,) = desk.list()
        desk.replay(letter.id)

    left = admin.execute("select extract(epoch from deadline - now())::float from runs").fetchone()[0]
    assert 500 < left <= 600
