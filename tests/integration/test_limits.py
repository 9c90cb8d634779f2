"""Tenants share the workers by their weights, and what a tenant or a graph may counts at once."""

from __future__ import annotations

import datetime
import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from threadmill.core.errors import InvalidRequest, InvalidTenant
from threadmill.core.limits import Limit, Limits
from threadmill.core.settings import Settings
from threadmill.producers import Producer, Run

GRAPHS = """
    import asyncio, threading
    from typing import TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict, total=False):
        text: str

    started, gate = [], threading.Event()

    async def do(state):
        started.append(state["text"])
        if state["text"].startswith("stands"):
            assert await asyncio.to_thread(gate.wait, 30)
        else:
            await asyncio.sleep(0.3 if state["text"].startswith("slow") else 0.02)

    work = StateGraph(State).add_node("do", do).add_edge(START, "do")
    other = StateGraph(State).add_node("do", do).add_edge(START, "do")
"""

# Of what there are limits, and whom the tests' own runs belong to.
NAMES = [("tenant", "acme"), ("graph", "work")]


@pytest.fixture
def limits(settings: Settings) -> Iterator[Limits]:
    with Limits(settings) as limits:
        yield limits


@pytest.fixture
def start(serve: Callable[..., None], start_local: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Starts a worker that answers bells and takes what is ready; what stands is let go at the end."""
    serve(GRAPHS, work={}, other={})
    start_local().stop()  # announces them
    workers = []

    def start(**settings: Any) -> Any:
        worker = start_local(takes=True, sweep_interval=0.5, **settings)
        workers.append(worker)
        worker.listen()
        return worker

    yield start
    for worker in workers:
        worker.graphs.gate.set()


def requests(tenant: str, count: int, text: str = "quick", **more: Any) -> list[dict[str, Any]]:
    """Each on a thread of its own."""
    return [
        {"graph": "work", "input": {"text": f"{text} {tenant}"}, "tenant": tenant, "thread_id": f"{text}{n}"}
        | more
        for n in range(count)
    ]


def running(admin: Any, column: str = "tenant") -> Counter[str]:
    rows = admin.execute(f"select {column}, count(*) from runs where status = 'running' group by 1")
    return Counter(dict(rows.fetchall()))


def slots(admin: Any, tenant: str) -> float:
    """How many runs of the tenant's run at once, in the mean of a second."""
    seen = []
    for _ in range(20):
        seen.append(running(admin)[tenant])
        time.sleep(0.05)
    return statistics.mean(seen)


def becomes(what: Callable[[], Any], expected: Any, seconds: float = 10) -> float:
    """How long it took to come to this."""
    began = time.monotonic()
    while (found := what()) != expected:
        assert time.monotonic() < began + seconds, f"{found}, expected {expected}"
        time.sleep(0.02)
    return time.monotonic() - began


def finish(producer: Producer, runs: list[Run]) -> None:
    for run in runs:
        assert producer.wait(run.id, tenant=run.tenant, timeout=30).status == "success"


@pytest.mark.parametrize("shares", [(2, 4, 8), (5, 9, 18)], ids=sum)
def test_slots_are_shared_by_weight(
    start: Callable[..., Any],
    producer: Producer,
    limits: Limits,
    admin: Any,
    lose_bells: Callable[[], None],
    shares: tuple[int, int, int],
) -> None:
    """As nearly as whole slots can be: of 32 there are 4.6, 9.1 and 18.3 for them."""
    for tenant, weight in (("one", 1), ("two", 2), ("four", 4)):
        limits.set("tenant", tenant, weight=weight)
        producer.enqueue_many(requests(tenant, 20, "stands"))
    lose_bells()  # one that is answered while the worker looks gets a slot beside the shares, for a turn

    start(concurrency=sum(shares))

    becomes(
        functools.partial(running, admin), Counter(dict(zip(("one", "two", "four"), shares, strict=True)))
    )


def test_shares_come_right_that_were_not(
    start: Callable[..., Any], producer: Producer, limits: Limits, admin: Any
) -> None:
    """Who came first has all the slots, and each would go on from one run to the next."""
    limits.set("tenant", "late", weight=3)
    producer.enqueue_many(requests("early", 100, "slow"))
    start(concurrency=12)
    becomes(functools.partial(running, admin), Counter(early=12))

    producer.enqueue_many(requests("late", 100, "slow"))

    time.sleep(2.5)  # a turn, a sweep, and two runs
    assert 8 <= slots(admin, "late") <= 10


def test_a_weight_counts_for_what_waits_already_when_it_is_changed(
    start: Callable[..., Any], producer: Producer, limits: Limits, admin: Any
) -> None:
    for tenant in ("same", "more"):
        producer.enqueue_many(requests(tenant, 200, "slow"))
    start(concurrency=12)
    becomes(functools.partial(running, admin), Counter(same=6, more=6))

    limits.set("tenant", "more", weight=3)

    time.sleep(2)
    assert 8 <= slots(admin, "more") <= 10


def test_a_flood_keeps_nobody_waiting(start: Callable[..., Any], producer: Producer) -> None:
    worker = start(concurrency=4)
    producer.enqueue_many(requests("flood", 300))
    becomes(lambda: len(worker.graphs.started) > 20, True)

    (late,) = producer.enqueue_many(requests("late", 1))
    finish(producer, [late])

    place = worker.graphs.started.index("quick late")
    assert place < 200, "the flood has not run dry before"
    assert worker.graphs.started.count("quick flood") < 300


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_a_limit_counts_for_what_waits_already_and_when_it_is_changed(
    kind: Any, name: str, start: Callable[..., Any], producer: Producer, limits: Limits, admin: Any
) -> None:
    runs = producer.enqueue_many(requests("acme", 8, "stands"))
    limits.set(kind, name, max_running=2)
    worker = start(concurrency=20)

    becomes(lambda: running(admin, kind)[name], 2)
    time.sleep(1)
    assert running(admin, kind)[name] == 2

    limits.set(kind, name, max_running=5)
    assert becomes(lambda: running(admin, kind)[name], 5) < 2

    limits.set(kind, name, max_running=None)
    assert becomes(lambda: running(admin, kind)[name], 8) < 2
    worker.graphs.gate.set()
    finish(producer, runs)


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_what_is_paused_starts_nothing_and_then_goes_on(
    kind: Any, name: str, start: Callable[..., Any], producer: Producer, limits: Limits, admin: Any
) -> None:
    limits.set(kind, name, paused=True)
    runs = producer.enqueue_many(requests("acme", 4))
    others = producer.enqueue_many(requests("globex", 4, graph="other"))
    start(concurrency=20)

    finish(producer, others)
    assert admin.execute("select count(*) from runs where attempt > 0 and tenant = 'acme'").fetchone() == (0,)

    limits.set(kind, name, paused=False)
    began = time.monotonic()
    finish(producer, runs)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_so_many_are_started_in_a_second(
    kind: Any, name: str, start: Callable[..., Any], producer: Producer, limits: Limits, admin: Any
) -> None:
    limits.set(kind, name, rate=10)
    start(concurrency=50)

    finish(producer, producer.enqueue_many(requests("acme", 30)))

    # A second's worth at once, and the others one after the other.
    (most,) = admin.execute(
        "select max(n) from (select count(*) over (order by started_at range between current row"
        " and interval '1 s' following) as n from runs) as windows"
    ).fetchone()
    assert 10 <= most <= 21
    span = "select extract(epoch from max(started_at) - min(started_at))::float from runs"
    assert admin.execute(span).fetchone()[0] > 1.9


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_a_rate_counts_for_what_waits_already_when_it_is_changed(
    kind: Any, name: str, start: Callable[..., Any], producer: Producer, limits: Limits
) -> None:
    producer.enqueue_many(requests("acme", 60, "slow"))
    started = start(concurrency=2).graphs.started
    becomes(lambda: len(started) >= 4, True)

    limits.set(kind, name, rate=1)
    time.sleep(0.1)  # a claim that was under way
    before = len(started)
    time.sleep(2)
    assert 1 <= len(started) - before <= 3

    limits.set(kind, name, rate=None)
    before = len(started)
    assert becomes(lambda: len(started) >= before + 4, True) < 2


def test_a_bell_that_found_the_limit_reached_does_not_keep_its_run_waiting(
    start: Callable[..., Any], producer: Producer, limits: Limits
) -> None:
    limits.set("tenant", "acme", max_running=1)
    start(concurrency=20, ring_again_after=60)

    finish(producer, [producer.enqueue(**request) for request in requests("acme", 10)])


def test_priority_goes_first_and_waiting_raises_it(start: Callable[..., Any], producer: Producer) -> None:
    now = datetime.datetime.now(datetime.UTC)
    # The first is rung for, and so it goes first: there is one bell for each worker that may be woken.
    rest = [("low", 0, 0), ("high", 5, 0), ("old", 0, 60), ("older", -1, 300)]
    for text, priority, age in [("first", 0, 0), *rest]:
        due = now - datetime.timedelta(seconds=age)
        producer.enqueue_many(requests("acme", 1, text, priority=priority, run_at=due))

    worker = start(concurrency=1)

    becomes(lambda: len(worker.graphs.started), 5)
    assert [text.split()[0] for text in worker.graphs.started] == ["first", "older", "old", "high", "low"]


def test_a_slot_that_goes_on_does_not_pass_over_what_is_urgent_for_long(
    start: Callable[..., Any], producer: Producer
) -> None:
    producer.enqueue_many(requests("acme", 400))  # of 0.02 s each and more
    worker = start(concurrency=1)
    becomes(lambda: len(worker.graphs.started) >= 5, True)

    producer.enqueue_many(requests("acme", 1, "urgent", priority=100))

    assert becomes(lambda: "urgent acme" in worker.graphs.started, True) < 2
    assert len(worker.graphs.started) < 400


def test_what_is_set_is_kept_and_what_allows_all_is_not(limits: Limits, admin: Any) -> None:
    limits.set("tenant", "acme", weight=2, rate=5)
    assert limits.set("tenant", "acme", max_running=3) == Limit("tenant", "acme", 2, 3, 5)
    assert limits.set("tenant", "acme") == Limit("tenant", "acme", 2, 3, 5)
    assert limits.of("tenant") == [Limit("tenant", "acme", 2, 3, 5)]
    assert limits.of("graph") == []
    (row,) = limits.tenants()
    assert (row["name"], row["weight"], row["pending"], row["running"]) == ("acme", 2, 0, 0)

    limits.set("tenant", "acme", weight=1, rate=None, max_running=None)

    assert admin.execute("select count(*) from limits").fetchone() == (0,)
    assert limits.set("tenant", "acme") == Limit("tenant", "acme")


@pytest.mark.parametrize(
    ("kind", "name", "changes"),
    [
        ("tenant", "acme", {"weight": 0}),
        ("tenant", "acme", {"weight": float("nan")}),
        ("tenant", "acme", {"rate": -1}),
        ("tenant", "acme", {"rate": float("inf")}),
        ("tenant", "acme", {"max_running": -1}),
        ("tenant", "acme", {"max_running": 2**31}),
        ("tenant", "acme", {"max_pending": 1.5}),
        ("tenant", "acme", {"max_pending": True}),
        ("tenant", "acme", {"paused": None}),
        ("tenant", "acme", {"spent_until": None}),
        ("graph", "work", {"weight": 2}),
        ("graph", "work", {"max_pending": 2}),
        ("graph", "", {"paused": True}),
        ("graph", "a\0b", {"paused": True}),
        ("queue", "work", {"paused": True}),
    ],
)
def test_a_limit_that_is_none_is_refused(
    kind: Any, name: str, changes: dict[str, Any], limits: Limits, admin: Any
) -> None:
    with pytest.raises(InvalidRequest):
        limits.set(kind, name, **changes)
    assert admin.execute("select count(*) from limits").fetchone() == (0,)


def test_a_tenant_that_cannot_be_one_is_refused(limits: Limits) -> None:
    with pytest.raises(InvalidTenant):
        limits.set("tenant", "a:b", paused=True)


@pytest.mark.usefixtures("start")
def test_tenants_are_listed_by_name_in_pages(producer: Producer, limits: Limits) -> None:
    producer.enqueue_many([*requests("a", 2), *requests("c", 1)])
    limits.set("tenant", "b", paused=True)

    pages = [limits.tenants(limit=2), limits.tenants(after="b")]

    assert [[row["name"] for row in page] for page in pages] == [["a", "b"], ["c"]]
    assert [row["pending"] for page in pages for row in page] == [2, 0, 1]
    assert [row["paused"] for page in pages for row in page] == [False, True, False]
