"""What a run tells while it runs: in order, bounded, and never by an attempt that has lost its lease."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from threadmill.core.errors import InvalidOption, NotStreamed, RunNotFound
from threadmill.core.event_stream import stream_key
from threadmill.core.notice import connect_redis
from threadmill.core.settings import Settings
from threadmill.producers import AsyncProducer, Event, Producer, Run
from threadmill.workers.executor import RunPostponed

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.config import get_stream_writer
    from langgraph.graph import StateGraph, START
    from langgraph.types import interrupt

    class State(TypedDict, total=False):
        said: Annotated[list[str], operator.add]

    failures = []
    reached, gate = threading.Event(), threading.Event()

    async def first(state):
        get_stream_writer()({"says": "first"})
        return {"said": ["first"]}

    async def second(state):
        write = get_stream_writer()
        write({"says": "second"})
        if failures:
            raise failures.pop()
        return {"said": ["second"]}

    async def chatter(state):
        write = get_stream_writer()
        for number in range(state["said"] and int(state["said"][-1])):
            write(number)
        return {"said": ["done"]}

    async def slow(state):
        get_stream_writer()("begun")
        reached.set()
        assert await asyncio.to_thread(gate.wait, 20)
        get_stream_writer()("after")
        return {"said": ["slow"]}

    async def ask(state):
        return {"said": [interrupt("sure?")]}

    def line(*nodes):
        graph = StateGraph(State)
        for before, node in zip([START, *[n.__name__ for n in nodes]], nodes):
            graph.add_node(node.__name__, node).add_edge(before, node.__name__)
        return graph

    two = line(first, second)
    many = line(chatter)
    stuck = line(slow)
    asking = line(first, ask)
    inner = line(first).compile()
    nested = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
"""
GRAPH_NAMES = ("two", "many", "stuck", "asking", "nested")
Enqueue = Callable[..., Run]
Follow = Callable[..., list[Event]]


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(GRAPHS, **{name: {"retry_delay": 0, "retry_delay_max": 0} for name in GRAPH_NAMES})
    return start_local(max_stream_events=50)


@pytest.fixture
def enqueue(worker: Any, producer: Producer) -> Enqueue:
    def enqueue(graph: str = "two", *modes: str, text: str = "hi", **options: Any) -> Run:
        return producer.enqueue(
            graph,
            {"said": [text]},
            tenant="acme",
            thread_id="t",
            stream_mode=list(modes) or "custom",  # type: ignore[arg-type]
            **options,
        )

    return enqueue


@pytest.fixture
def follow(producer: Producer) -> Follow:
    """All that a run has told and tells, once it has ended."""
    return lambda run, **options: list(producer.stream(run.id, tenant="acme", **options))


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    client = connect_redis(settings)
    assert client is not None
    with client:
        yield client


def told(events: list[Event]) -> list[Any]:
    return [(event.mode, event.data) for event in events]


def test_what_a_run_tells_is_told_in_order_and_ends_with_the_run(
    worker: Any, enqueue: Enqueue, follow: Follow, producer: Producer
) -> None:
    run = enqueue("two", "values", "updates", "custom")
    with ThreadPoolExecutor(1) as pool:
        followed = pool.submit(follow, run)  # from before it begins
        assert worker.answer(run).result(20) == "success"
        events = followed.result(20)

    assert told(events) == [
        ("values", {"said": ["hi"]}),
        ("custom", {"says": "first"}),
        ("updates", {"first": {"said": ["first"]}}),
        ("values", {"said": ["hi", "first"]}),
        ("custom", {"says": "second"}),
        ("updates", {"second": {"said": ["second"]}}),
        ("values", {"said": ["hi", "first", "second"]}),
    ]
    assert {(event.attempt, event.namespace, event.missed) for event in events} == {(1, (), 0)}
    assert producer.get(run.id, tenant="acme").output == {"said": ["hi", "first", "second"]}
    assert follow(run) == events, "who comes later sees the same"
    assert follow(run, after=events[4].id) == events[5:]


async def test_it_is_followed_with_asyncio_too(worker: Any, enqueue: Enqueue, settings: Settings) -> None:
    run = enqueue("two")
    async with AsyncProducer(settings) as producer:
        worker.answer(run)
        events = [event async for event in producer.stream(run.id, tenant="acme")]

    assert told(events) == [("custom", {"says": "first"}), ("custom", {"says": "second"})]


async def test_a_run_that_has_ended_is_read_without_a_pause(
    worker: Any, enqueue: Enqueue, follow: Follow, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threadmill.producers.events.GAP_SECONDS", gap := 3)
    run = enqueue("two")
    assert worker.answer(run).result(20) == "success"

    began = time.monotonic()
    events = follow(run)
    async with AsyncProducer(settings) as producer:
        assert [event async for event in producer.stream(run.id, tenant="acme")] == events

    assert len(events) == 2
    assert time.monotonic() - began < gap


@pytest.mark.parametrize("wanted", [True, False])
def test_subgraphs_tell_where_it_was_asked_for(
    wanted: bool, worker: Any, enqueue: Enqueue, follow: Follow
) -> None:
    run = enqueue("nested", "custom", "values", stream_subgraphs=wanted)
    assert worker.answer(run).result(20) == "success"

    events = follow(run)

    inner = [event for event in events if event.namespace]
    assert bool(inner) is wanted
    assert all(event.namespace[0].startswith("inner:") for event in inner)
    assert told(events)[-1] == ("values", {"said": ["hi", "hi", "first"]})


def test_a_graph_that_asks_comes_to_the_same_as_without_a_stream(
    worker: Any, enqueue: Enqueue, follow: Follow, producer: Producer, admin: Any
) -> None:
    run = enqueue("asking", "updates", "values")
    assert worker.answer(run).result(20) == "success"

    assert producer.get(run.id, tenant="acme").output == {"said": ["hi", "first"]}
    state = producer.state("acme", "t")
    assert [interrupt["value"] for interrupt in state.interrupts] == ["sure?"]
    assert admin.execute("select status from threads").fetchone() == ("interrupted",)
    assert [list(data) for mode, data in told(follow(run)) if mode == "updates"] == [
        ["first"],
        ["__interrupt__"],
    ]


def test_an_attempt_that_follows_goes_on_telling(
    worker: Any, enqueue: Enqueue, follow: Follow, producer: Producer
) -> None:
    worker.graphs.failures.append(ConnectionError("away"))
    run = enqueue("two", durability="sync")
    seen: list[Event] = []
    first = threading.Event()

    def read() -> None:
        for event in producer.stream(run.id, tenant="acme"):
            seen.append(event)
            if event.data == {"says": "first"}:
                first.set()

    reader = threading.Thread(target=read)
    reader.start()
    answer = worker.answer(run)
    assert first.wait(20)
    assert isinstance(answer.exception(20), RunPostponed)
    assert worker.answer(run).result(20) == "success"
    reader.join(20)

    by_attempt = [(event.attempt, event.data["says"]) for event in seen]
    assert by_attempt[0] == (1, "first")
    assert by_attempt[-1] == (2, "second"), "the node that had finished is not run again"
    assert told(follow(run)) == [("custom", {"says": "second"})], "the attempt that succeeded"


def test_a_stream_keeps_its_newest_events_and_says_how_many_are_missing(
    worker: Any, enqueue: Enqueue, follow: Follow, redis: Redis
) -> None:
    run = enqueue("many", text="300")
    assert worker.answer(run).result(20) == "success"

    events = follow(run)

    assert [event.data for event in events] == list(range(250, 300))
    assert [event.missed for event in events] == [250] + [0] * 49
    assert redis.xlen(stream_key(run.id)) == 50
    assert 0 < redis.pttl(stream_key(run.id)) <= 600_000
    assert follow(run, after=events[10].id)[0].missed == 0


def test_what_is_too_large_is_told_by_a_marker(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer
) -> None:
    serve(GRAPHS, two={})
    worker = start_local(max_output_bytes=100)
    run = producer.enqueue(
        "two", {"said": ["x" * 200]}, tenant="acme", thread_id="t", stream_mode=["values", "custom"]
    )
    assert worker.answer(run).result(20) == "success"

    events = list(producer.stream(run.id, tenant="acme"))

    assert events[0].data["$omitted"]["limit"] == 100
    assert ("custom", {"says": "second"}) in told(events)


def test_a_cancelled_run_tells_nothing_more(
    worker: Any, enqueue: Enqueue, producer: Producer, redis: Redis
) -> None:
    run = enqueue("stuck")
    events = producer.stream(run.id, tenant="acme")
    answer = worker.answer(run)
    assert next(events).data == "begun"
    assert worker.graphs.reached.wait(20)

    producer.cancel(run.id, tenant="acme")
    assert answer.exception(20) is not None
    worker.graphs.gate.set()

    assert list(events) == []
    assert redis.xlen(stream_key(run.id)) == 1


def test_events_of_an_attempt_that_has_lost_its_lease_are_not_shown(
    worker: Any, enqueue: Enqueue, follow: Follow, producer: Producer, redis: Redis, admin: Any
) -> None:
    run = enqueue("two", durability="sync")
    forged = {"number": 1, "mode": "custom", "namespace": "[]", "data": json.dumps("a zombie's")}

    redis.xadd(stream_key(run.id), {"attempt": 0, **forged})  # pending, by who had it before
    events = producer.stream(run.id, tenant="acme")
    worker.answer(run).result(20)
    redis.xadd(stream_key(run.id), {"attempt": 0, **forged})

    assert [event.data for event in events] == [{"says": "first"}, {"says": "second"}]
    for status in ("pending", "interrupted", "timeout", "error"):
        admin.execute("update runs set status = %s", [status])
        if status != "pending":  # else it is waited for
            assert follow(run) == []


def test_a_run_does_not_wait_for_a_redis_that_is_away(
    serve: Callable[..., None], start_local: Callable[..., Any], settings: Settings, producer: Producer
) -> None:
    serve(GRAPHS, two={})
    worker = start_local(broker_url="redis://127.0.0.1:1/0")
    run = producer.enqueue(
        "two", {"said": ["hi"]}, tenant="acme", thread_id="t", stream_mode=["values", "custom"]
    )

    assert worker.answer(run).result(20) == "success"

    with Producer(settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})) as lonely:
        assert list(lonely.stream(run.id, tenant="acme")) == []


def test_what_redis_has_lost_is_counted(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    settings: Settings,
    producer: Producer,
    redis: Redis,
) -> None:
    serve(GRAPHS, stuck={})
    worker = start_local()
    run = producer.enqueue("stuck", {"said": ["hi"]}, tenant="acme", thread_id="t", stream_mode="custom")
    answer = worker.answer(run)
    assert worker.graphs.reached.wait(20)
    ends_at = time.monotonic() + 20
    while not redis.xlen(stream_key(run.id)) and time.monotonic() < ends_at:
        time.sleep(0.01)
    redis.delete(stream_key(run.id))
    worker.graphs.gate.set()
    assert answer.result(20) == "success"

    (event,) = producer.stream(run.id, tenant="acme")

    assert (event.data, event.missed) == ("after", 1)


def test_another_tenants_and_what_has_no_stream_is_refused(
    worker: Any, enqueue: Enqueue, producer: Producer
) -> None:
    run = enqueue("two")
    plain = producer.enqueue("two", {"said": ["hi"]}, tenant="acme", thread_id="u")

    with pytest.raises(RunNotFound):
        next(producer.stream(run.id, tenant="other"))
    with pytest.raises(NotStreamed, match="enqueue it with stream_mode"):
        next(producer.stream(plain.id, tenant="acme"))
    for modes in ("values,updates", ["values", "bogus"], [], 7, "events"):
        with pytest.raises(InvalidOption, match="stream_mode"):
            producer.enqueue("two", {}, tenant="acme", thread_id="t", stream_mode=modes)  # type: ignore[arg-type]
