"""While a graph or what it depends on is down, its runs are not started, cost nothing, and are not lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from threadmill.core.transitions.terms import BREAKER_TRIALS
from threadmill.producers import Producer, Run
from threadmill.workers.executor import RunFailed, RunPostponed

GRAPHS = """
    import asyncio, threading
    from typing import TypedDict
    from langgraph.graph import StateGraph, START
    from threadmill.core.errors import DependencyUnavailable
    from threadmill.graphs import dependency

    class State(TypedDict, total=False):
        text: str

    down = {}  # by graph or dependency: what it raises
    begun = threading.Semaphore(0)
    gate = threading.Event()  # for those that are slow

    def single(node):
        return StateGraph(State).add_node("node", node).add_edge(START, "node")

    def fail(what):
        if what in down:
            raise down[what]

    async def work(state):
        if state["text"] == "slow":
            begun.release()
            assert await asyncio.to_thread(gate.wait, 20)
        fail(state["text"])

    work = patient = single(work)

    async def search(state):
        async with dependency("search"):
            fail("search")

    @dependency("search")
    def ask():
        fail("search")

    left, right = single(search), single(lambda state: ask())

    def manage(state):
        try:
            ask()
        except DependencyUnavailable:
            return {"text": "without"}

    managing = single(manage)
"""
POLICY = {"breaker_threshold": 3, "breaker_cooldown": 600, "retry_delay": 0, "retry_delay_max": 0}
Enqueue = Callable[..., Run]


@pytest.fixture
def start(serve: Callable[..., None], start_local: Callable[..., Any]) -> Callable[[], Any]:
    """Starts a worker that executes what it is told to, and nothing else."""
    graphs = ("work", "left", "right", "managing")
    serve(GRAPHS, patient={"breaker_threshold": None}, **dict.fromkeys(graphs, POLICY))
    return lambda: start_local(sweep_interval=60, heartbeat_interval=0.05)


@pytest.fixture
def worker(start: Callable[[], Any]) -> Any:
    return start()


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    """Enqueues a run on a thread of its own."""
    numbers = iter(range(100))

    def enqueue(graph: str = "work", text: str = "", **options: Any) -> Run:
        thread_id = f"t{next(numbers)}"
        return producer.enqueue(graph, {"text": text}, tenant="acme", thread_id=thread_id, **options)

    return enqueue


@pytest.fixture
def fail(worker: Any, enqueue: Enqueue) -> Callable[..., None]:
    """Lets runs of a graph fail for good, one after the other."""

    def fail(graph: str, times: int, what: str, error: Exception | None = None) -> None:
        worker.graphs.down[what] = error or ConnectionError("refused")
        for _ in range(times):
            answer = worker.answer(enqueue(graph, what, max_attempts=1))
            assert isinstance(answer.exception(20), RunFailed)

    return fail


@pytest.fixture
def half_open(admin: Any) -> Callable[[], None]:
    """Lets every breaker's cooldown be over."""
    return lambda: admin.execute("update breakers set open_until = now() where open_until is not null")


def breakers(admin: Any) -> list[tuple[Any, ...]]:
    """kind, name, graphs, failures in a row, whether it is open."""
    return admin.execute(
        "select kind, name, graphs, failures, coalesce(open_until > now(), false) from breakers order by 1, 2"
    ).fetchall()


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    ends_at = time.monotonic() + 10
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


# ---------------------------------------------------------------------------------------------------
# A graph's own


def test_at_the_threshold_it_opens_and_holds_back_its_graph_at_no_cost(
    worker: Any, fail: Callable[..., None], enqueue: Enqueue, producer: Producer, admin: Any
) -> None:
    fail("work", 2, "down")
    assert breakers(admin) == [("graph", "work", ["work"], 2, False)]
    with structlog.testing.capture_logs() as logs:
        fail("work", 1, "down")

    assert breakers(admin) == [("graph", "work", ["work"], 3, True)]
    (opened,) = [line for line in logs if line["event"] == "breaker.opened"]
    assert (opened["kind"], opened["name"], opened["reason"]) == ("graph", "work", "ConnectionError")
    waiting = enqueue("work")
    assert worker.drops(waiting)
    found = producer.get(waiting.id, tenant="acme")
    assert (found.status, found.attempt, found.started_at) == ("pending", 0, None)
    assert worker.answer(enqueue("left")).result(20) == "success", "other graphs go on"


def test_a_run_that_waits_for_its_retry_spends_nothing_while_it_is_open(
    worker: Any, fail: Callable[..., None], enqueue: Enqueue, half_open: Callable[[], None], admin: Any
) -> None:
    worker.graphs.down["down"] = ConnectionError("refused")
    retried = enqueue("work", "down", max_attempts=2)
    assert isinstance(worker.answer(retried).exception(20), RunPostponed)
    fail("work", 2, "down")

    assert worker.drops(retried)
    assert admin.execute("select attempt, failures from runs where id = %s", [retried.id]).fetchone() == (
        1,
        1,
    )

    worker.graphs.down.clear()
    half_open()
    assert worker.answer(retried).result(20) == "success"
    assert breakers(admin) == []


def test_another_worker_knows_of_it(
    worker: Any, fail: Callable[..., None], start: Callable[[], Any], enqueue: Enqueue
) -> None:
    fail("work", 3, "down")
    worker.stop()

    assert start().drops(enqueue("work"))


def test_half_open_it_lets_a_few_through_and_a_success_closes_it(
    worker: Any, fail: Callable[..., None], enqueue: Enqueue, half_open: Callable[[], None], admin: Any
) -> None:
    fail("work", 3, "down")
    half_open()

    trials = [worker.answer(enqueue("work", "slow")) for _ in range(BREAKER_TRIALS)]
    for _ in trials:
        assert worker.graphs.begun.acquire(timeout=20)
    one_more = enqueue("work")
    assert worker.drops(one_more)

    worker.graphs.gate.set()
    assert [trial.result(20) for trial in trials] == ["success"] * BREAKER_TRIALS
    assert breakers(admin) == []
    assert worker.answer(one_more).result(20) == "success"


def test_half_open_a_failure_opens_it_again(
    worker: Any, fail: Callable[..., None], enqueue: Enqueue, half_open: Callable[[], None], admin: Any
) -> None:
    fail("work", 3, "down")
    half_open()
    slow = worker.answer(enqueue("work", "slow"))
    assert worker.graphs.begun.acquire(timeout=20)

    fail("work", 1, "down")

    opened_again = [("graph", "work", ["work"], 4, True)]
    assert breakers(admin) == opened_again
    assert worker.drops(enqueue("work"))
    worker.graphs.gate.set()
    assert slow.result(20) == "success"
    assert breakers(admin) == opened_again, "what began before that closes nothing"


def test_a_success_between_them_has_failures_counted_anew(
    worker: Any, fail: Callable[..., None], enqueue: Enqueue, admin: Any
) -> None:
    fail("work", 2, "down")
    assert worker.answer(enqueue("work")).result(20) == "success"
    fail("work", 2, "down")

    assert breakers(admin) == [("graph", "work", ["work"], 2, False)]


def test_only_what_is_transient_counts_and_only_where_there_is_a_threshold(
    worker: Any, fail: Callable[..., None], admin: Any
) -> None:
    fail("work", 4, "down", ValueError("no"))
    fail("patient", 4, "down")

    assert breakers(admin) == []


# ---------------------------------------------------------------------------------------------------
# A dependency's


def test_a_dependency_holds_back_each_graph_that_has_met_it_at_no_cost(
    worker: Any, fail: Callable[..., None], enqueue: Enqueue, half_open: Callable[[], None], admin: Any
) -> None:
    fail("left", 3, "search")
    assert breakers(admin) == [("dependency", "search", ["left"], 3, True)], "it counts for no graph"
    assert worker.drops(enqueue("left"))
    assert eventually(lambda: worker.runtime._heartbeat.open_for("search") is not None)

    met = enqueue("right", max_attempts=1)  # which nobody knows to need it
    assert isinstance(worker.answer(met).exception(20), RunPostponed)

    assert breakers(admin) == [("dependency", "search", ["left", "right"], 3, True)]
    assert worker.drops(enqueue("right"))
    assert worker.answer(enqueue("work")).result(20) == "success"
    assert admin.execute(
        "select failures, worker_losses, throttled, round(extract(epoch from run_at - now()), -2)::int"
        " from runs where id = %s",
        [met.id],
    ).fetchone() == (0, 0, 0, 600)
    assert admin.execute(
        "select outcome, cause, node from attempts where run_id = %s", [met.id]
    ).fetchall() == [("failed", "infrastructure: DependencyUnavailable", "node")]

    worker.graphs.down.clear()
    half_open()
    assert eventually(lambda: worker.runtime._heartbeat.open_for("search") is None)
    admin.execute("update runs set run_at = now(), rank = now() where status = 'pending'")
    assert worker.answer(met).result(20) == "success"
    assert breakers(admin) == []
    assert worker.answer(enqueue("left")).result(20) == "success"


def test_the_failures_of_several_graphs_in_one_dependency_count_together(
    worker: Any, fail: Callable[..., None], admin: Any
) -> None:
    fail("left", 1, "search")
    fail("right", 2, "search")

    assert breakers(admin) == [("dependency", "search", ["left", "right"], 3, True)]


def test_a_node_that_does_without_goes_on_and_closes_nothing(
    worker: Any, fail: Callable[..., None], enqueue: Enqueue, half_open: Callable[[], None], admin: Any
) -> None:
    fail("left", 3, "search")
    assert eventually(lambda: worker.runtime._heartbeat.open_for("search") is not None)

    run = enqueue("managing")
    assert worker.answer(run).result(20) == "success"

    assert admin.execute("select output from runs where id = %s", [run.id]).fetchone() == (
        {"text": "without"},
    )
    assert breakers(admin) == [("dependency", "search", ["left"], 3, True)]


# ---------------------------------------------------------------------------------------------------
# The budget


def test_opened_anew_by_a_trial_it_has_been_open_since_the_first_time(
    worker: Any, fail: Callable[..., None], half_open: Callable[[], None], admin: Any
) -> None:
    since = "select opened_at, open_until > now() from breakers"
    fail("work", 3, "down")
    opened_at, _ = admin.execute(since).fetchone()
    half_open()
    with structlog.testing.capture_logs() as logs:
        fail("work", 1, "down")
    assert admin.execute(since).fetchone() == (opened_at, True)
    assert [line for line in logs if line["event"] == "breaker.opened"]


def test_a_run_that_waits_for_longer_than_the_budget_is_a_dead_letter_and_the_others_wait_on(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    enqueue: Enqueue,
    admin: Any,
) -> None:
    limited = {**POLICY, "breaker_budget": 60}
    serve(GRAPHS, work=limited, patient=POLICY)
    start_local(sweep_interval=60).stop()  # announces its graphs
    late, follower, early = (
        producer.enqueue("work", {"text": ""}, tenant="acme", thread_id=thread) for thread in "ttu"
    )
    unlimited, apart = enqueue("patient"), enqueue("work")
    admin.execute("update runs set run_at = now() - interval '5 min' where id <> %s", [early.id])
    admin.execute("update runs set run_at = now() + interval '5 min' where id = %s", [apart.id])
    admin.execute(
        "insert into breakers (kind, name, graphs, failures, open_until, opened_at, reason)"
        " select 'dependency', 'search', array['work', 'patient'], 3, now() + interval '1 h', now(), 'x'"
    )
    start_local(sweep_interval=0.05)
    time.sleep(0.5)
    assert admin.execute("select count(*) from dead_letters").fetchone() == (0,), "it has just opened"

    admin.execute("update breakers set opened_at = now() - interval '2 min'")
    assert eventually(
        lambda: all(producer.get(run.id, tenant="acme").status == "error" for run in (late, follower))
    )

    message = "the breaker of 'search' stayed open for longer than the graph's breaker_budget"
    found = admin.execute("select run_id::text from dead_letters order by created_at").fetchall()
    assert found == [(late.id,), (follower.id,)], "in the order of the thread"
    rows = admin.execute(
        "select reason, status, error ->> 'message', next_replay_at is null from dead_letters"
    )
    assert set(rows.fetchall()) == {("breaker", "waiting", message, False)}
    for run in (early, unlimited, apart):
        assert producer.get(run.id, tenant="acme").status == "pending", run.graph
