"""Runs are begun although no bell arrives: one was lost, or Redis is away or says nothing."""

from __future__ import annotations

import asyncio
import datetime
import functools
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text
from tests.chaos.proxy import Proxies, Proxy
from tests.chaos.servers import Redis
from tests.conftest import WorkerProcess

from threadmill.core.floors import FROM_THE_FIRST, Looks
from threadmill.core.settings import Settings
from threadmill.core.statement import Step
from threadmill.producers import Producer, Run
from threadmill.workers import claims
from threadmill.workers.cancellations import AWAY_SECONDS
from threadmill.workers.claims import Claimed, Claims
from threadmill.workers.heads import UNREAD, Head
from threadmill.workers.slots import Slots
from threadmill.workers.taker import Taker

# A proxy that is stopped leaves the collecting of a connection's transport to Python.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict, total=False):
        text: str

    begun, gate = threading.Semaphore(0), threading.Event()
    calls = []

    async def work(state):
        calls.append(state["text"])
        if state["text"] == "slow":
            begun.release()
            assert await asyncio.to_thread(gate.wait, 20)

    class Said(TypedDict):
        said: Annotated[list[str], operator.add]

    work = StateGraph(State).add_node("work", work).add_edge(START, "work")
    talk = StateGraph(Said).add_node("say", lambda state: {"said": ["said"]}).add_edge(START, "say")
"""
MOMENT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
Enqueue = Callable[..., Run]


@pytest.fixture
def redis() -> Iterator[Redis]:
    """A Redis of the test's own, not started."""
    folder = Path(tempfile.mkdtemp(prefix="taker-", dir="/tmp"))  # a socket's path is short
    server = Redis(folder, folder)
    yield server
    if server._process is not None:
        server._process.kill()
        server._process.wait(10)
    shutil.rmtree(folder)


@pytest.fixture
def proxy(redis: Redis) -> Iterator[Proxy]:
    """In front of that Redis."""
    proxies = Proxies()
    yield proxies.to(redis.socket)
    proxies.close()


@pytest.fixture
def through(proxy: Proxy) -> dict[str, str]:
    """The setting of a worker that knows this Redis only."""
    return {"broker_url": f"redis://127.0.0.1:{proxy.port}/0"}


@pytest.fixture
def start(serve: Callable[..., None], start_local: Callable[..., Any]) -> Callable[..., Any]:
    serve(GRAPHS, work={}, talk={})
    return functools.partial(start_local, takes=True)


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    """Enqueues a run on a thread of its own."""
    numbers = iter(range(100))

    def enqueue(text: str = "quick") -> Run:
        return producer.enqueue("work", {"text": text}, tenant="acme", thread_id=f"t{next(numbers)}")

    return enqueue


def finishes(producer: Producer, *runs: Run) -> list[Run]:
    done = [producer.wait(run.id, tenant="acme", timeout=20) for run in runs]
    assert {(run.status, run.attempt) for run in done} == {("success", 1)}
    return done


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    ends_at = time.monotonic() + 10
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


# ---------------------------------------------------------------------------------------------------
# While Redis is well


def test_a_run_whose_bell_was_lost_begins_within_five_seconds(
    start: Callable[..., Any], enqueue: Enqueue, producer: Producer, settings: Settings
) -> None:
    defaults = {name: getattr(settings, name) for name in ("sweep_interval", "ring_again_after")}
    start(**defaults)  # nobody answers the queue

    (done,) = finishes(producer, enqueue())

    assert done.started_at is not None
    assert done.started_at - done.created_at < datetime.timedelta(seconds=5)


def test_a_run_whose_bell_may_still_arrive_is_left_alone(
    start: Callable[..., Any], enqueue: Enqueue, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, take = threading.Semaphore(0), Taker._take

    async def looking(taker: Taker) -> bool:
        took = await take(taker)
        looks.release()
        return took

    monkeypatch.setattr(Taker, "_take", looking)
    start(ring_again_after=60)
    run = enqueue()
    for _ in range(4):
        assert looks.acquire(timeout=20)

    assert producer.get(run.id, tenant="acme").status == "pending"


def test_no_more_are_taken_than_there_are_free_slots(
    start: Callable[..., Any], enqueue: Enqueue, producer: Producer, admin: Any
) -> None:
    worker = start(concurrency=2)
    admin.execute("alter table runs alter dispatched_at set default null")
    runs = [enqueue("slow") for _ in range(5)]
    for _ in range(2):
        assert worker.graphs.begun.acquire(timeout=20)

    assert not worker.graphs.begun.acquire(timeout=1)
    assert admin.execute("select count(*) from runs where status = 'running'").fetchone() == (2,)
    worker.graphs.gate.set()
    finishes(producer, *runs)


def test_a_look_that_fails_is_not_the_last(
    start: Callable[..., Any], enqueue: Enqueue, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, take = threading.Event(), Taker._take

    async def failing(taker: Taker) -> bool:
        if not failed.is_set():
            failed.set()
            raise ValueError("whatever it is")
        return await take(taker)

    monkeypatch.setattr(Taker, "_take", failing)
    start()
    run = enqueue()

    finishes(producer, run)
    assert failed.is_set()


# What a look from the beginning takes, in seconds, and one that does not begin there.
DEAR, CHEAP = 0.1, 0.0001


@pytest.mark.parametrize(
    ("finds", "first", "later", "rare"),
    [(0, DEAR, DEAR, True), (0, DEAR, CHEAP, False), (0, CHEAP, CHEAP, False), (1, DEAR, DEAR, False)],
    ids=["dear and in vain", "only the first dear", "cheap and in vain", "dear, but it finds some"],
)
async def test_looks_that_are_dear_and_in_vain_are_rare(
    settings: Settings, finds: int, first: float, later: float, rare: bool
) -> None:
    began: list[Mapping[str, Any]] = []
    slots = Slots(1)

    class Looking:
        looks = Looks()

        async def take(self, limit: int) -> list[Any]:
            began.append(self.looks.begin())
            took = first if began[-1] == FROM_THE_FIRST else later
            self.looks.learn(began[-1], {"saw_all": True, "floor": MOMENT, "since": MOMENT, "took": took})
            return [None] * finds

    def execute(_: Claimed) -> None:
        asyncio.get_running_loop().call_later(0.005, slots.give_back)

    taker = Taker(
        settings, cast(Any, None), slots, cast(Any, Looking()),
        redis_is_away=lambda: False, execute=execute, answer=cast(Any, None),
    )  # fmt: skip
    taking = asyncio.create_task(taker.take_on())
    for _ in range(100):
        taker.look()
        await asyncio.sleep(0.01)

    assert len(began) == 2 if rare else len(began) > 10
    # A dear look from the beginning is one in two seconds, and this has been one.
    assert began.count(FROM_THE_FIRST) == 1 or first == CHEAP
    taker.stop()
    await asyncio.wait_for(taking, 0.5)  # though it rests


@pytest.mark.parametrize("read", [True, False])
def test_what_is_taken_together_goes_on_from_where_each_thread_stands(
    start: Callable[..., Any], producer: Producer, monkeypatch: pytest.MonkeyPatch, read: bool
) -> None:
    """read: whether that can be read for all at once."""
    heads: list[Head] = []
    take, read_heads = Claims.take, claims.read_heads

    async def taking(self: Claims, limit: int) -> list[Claimed]:
        taken = await take(self, limit)
        heads.extend(claimed.head for claimed in taken)
        return taken

    def reading(tenant: str, keys: Sequence[str]) -> list[Step]:
        return read_heads(tenant, keys) if read else [Step(text("select 1 / 0"), {})]

    monkeypatch.setattr(Claims, "take", taking)
    monkeypatch.setattr(claims, "read_heads", reading)
    threads = [(tenant, f"t{number}") for tenant in ("acme", "globex") for number in range(3)]
    worker = start(concurrency=20)
    for turn in range(2):
        heads.clear()
        runs = producer.enqueue_many(
            {
                "graph": "talk",
                "input": {"said": [f"{tenant} {thread} {turn}"]},
                "tenant": tenant,
                "thread_id": thread,
            }
            for tenant, thread in threads
        )
        for run in runs:
            assert producer.wait(run.id, tenant=run.tenant, timeout=20).status == "success"
        assert any(head is not UNREAD for head in heads) == read
        assert not read or any(head is None for head in heads) == (turn == 0)

    for tenant, thread in threads:
        said = [word for turn in range(2) for word in (f"{tenant} {thread} {turn}", "said")]
        assert producer.state(tenant, thread).values == {"said": said}
    worker.stop()


# ---------------------------------------------------------------------------------------------------
# While it is not


def test_while_redis_is_silent_runs_are_taken_at_once_and_each_by_one_worker(
    start: Callable[..., Any],
    enqueue: Enqueue,
    producer: Producer,
    redis: Redis,
    proxy: Proxy,
    through: dict[str, str],
) -> None:
    redis.start()
    workers = [start(**through, ring_again_after=60) for _ in range(2)]
    assert not any(worker.runtime._cancellations.redis_is_away for worker in workers)

    proxy.silence()

    began = time.monotonic()
    assert eventually(lambda: all(worker.runtime._cancellations.redis_is_away for worker in workers))
    assert time.monotonic() - began < AWAY_SECONDS + 2
    runs = [enqueue(str(n)) for n in range(20)]
    began = time.monotonic()
    finishes(producer, *runs)
    assert time.monotonic() - began < 5
    assert sorted(workers[0].graphs.calls) == sorted(str(n) for n in range(20))
    proxy.heal()
    assert eventually(lambda: not any(worker.runtime._cancellations.redis_is_away for worker in workers))


@pytest.fixture
def run_worker(
    serve: Callable[..., None], settings: Settings, through: dict[str, str]
) -> Iterator[Callable[[], WorkerProcess]]:
    """Starts a worker process, and does not wait until it hears bells."""
    serve(GRAPHS, work={})
    started: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        started.append(
            WorkerProcess(settings, "asyncio", sweep_interval=0.2, ring_again_after=0.5, **through)
        )
        started[-1].wait_for("graph.served")
        return started[-1]

    yield start
    for worker in started:
        worker.stop(signal.SIGKILL)


def test_a_worker_that_never_had_a_redis_serves_all_the_same_and_can_be_stopped(
    run_worker: Callable[[], WorkerProcess], enqueue: Enqueue, producer: Producer
) -> None:
    worker = run_worker()

    finishes(producer, enqueue(), enqueue())

    assert worker.process.poll() is None
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 10


def test_a_worker_whose_redis_says_nothing_serves_all_the_same_and_hears_it_when_it_does(
    run_worker: Callable[[], WorkerProcess], enqueue: Enqueue, producer: Producer, redis: Redis, proxy: Proxy
) -> None:
    redis.start()
    proxy.silence()
    worker = run_worker()

    finishes(producer, enqueue(), enqueue())

    assert not any("worker.ready" in line for line in worker.lines)
    proxy.heal()
    worker.wait_for("worker.ready")
    assert worker.stop() == 0
