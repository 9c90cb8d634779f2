"""A worker believes in its lease no longer than the leader does. Postgres may come and go: no run is lost."""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import structlog
from tests.chaos.proxy import Proxies, Proxy
from tests.chaos.servers import Postgres
from tests.conftest import FAST, TEMPLATE, with_database

from threadmill.core import migrate
from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import LeaseLost
from threadmill.core.settings import Settings
from threadmill.producers import Producer, Run
from threadmill.workers.claims import BellDropped
from threadmill.workers.executor import RunFailed, RunPostponed
from threadmill.workers.herald import Herald
from threadmill.workers.sweeper import Sweeper
from threadmill.workers.tables import upgrade_langgraph_tables

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    calls = []
    started, gate, cancelled = threading.Event(), threading.Event(), threading.Event()

    async def first(state):
        calls.append("first")
        return {"texts": ["first"]}

    async def second(state, runtime):
        calls.append("second")
        if state["texts"][-2] == "slow" and not started.is_set():  # only the first time
            started.set()
            try:
                assert await asyncio.to_thread(gate.wait, 30)
            except asyncio.CancelledError:
                cancelled.set()
                raise
        if state["texts"][-2] == "flaky" and calls.count("second") == 1:
            raise ConnectionError("refused")
        if state["texts"][-2] == "wrong":
            raise ValueError("no")
        await runtime.store.aput(("notes",), "n", {"of": "second"})
        return {"texts": ["second"]}

    async def third(state):
        calls.append("third")
        return {"texts": ["third"]}

    work = (
        StateGraph(State).add_node("first", first).add_node("second", second).add_node("third", third)
        .add_edge(START, "first").add_edge("first", "second").add_edge("second", "third")
    )
"""
LEASE = 1.0
_numbers = itertools.count(1)
QUICK = {"heartbeat_interval": 0.1, "heartbeat_timeout": LEASE, "connect_timeout": 1.0, "drain_timeout": 0.3}
Enqueue = Callable[..., Run]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A Postgres of this module's own, which may be restarted."""
    sockets = Path(tempfile.mkdtemp(prefix="lease-", dir="/tmp"))  # a socket's path is short
    server = Postgres(tmp_path_factory.mktemp("postgres"), sockets, {"fsync": FAST["fsync"]})
    try:
        server.create()
        yield server
    finally:
        server.stop()
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def services(services: tuple[str, str], postgres: Postgres) -> tuple[str, str]:
    """The module's own Postgres, with a template, in the place of everybody's."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"create database {TEMPLATE}")
    template = Settings(database_url=with_database(postgres.url, TEMPLATE), broker_url=services[1])
    migrate.upgrade(template)
    upgrade_langgraph_tables(template)
    return postgres.url, services[1]


@pytest.fixture
def settings(services: tuple[str, str], tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database of the test's own, on a server that may have been restarted in the meantime."""
    database_url, broker_url = services
    name = f"lease_{next(_numbers)}"

    def administer(statement: str) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(statement.encode())

    administer(f"create database {name} template {TEMPLATE} strategy file_copy")
    yield Settings(
        database_url=with_database(database_url, name),
        broker_url=broker_url,
        queue=f"{name}_{tmp_path.name}",
        folder=tmp_path / ".threadmill",
        graphs_file=tmp_path / "langgraph.json",
        graphs_refresh=0.001,
    )
    administer(f"drop database {name} with (force)")


@pytest.fixture
def freeze(postgres: Postgres) -> Iterator[Callable[[int], None]]:
    """Sends every process of Postgres a signal; at the end of the test they go on."""

    def send(number: int) -> None:
        postmaster = psutil.Process(int((postgres._data / "postmaster.pid").read_text().split()[0]))
        for process in (postmaster, *postmaster.children()):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    yield send
    send(signal.SIGCONT)


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    """Between Postgres and those workers that are started with `through`."""
    proxies = Proxies()
    proxy = proxies.to(postgres.socket)
    yield proxy
    proxy.heal()
    proxies.close()


@pytest.fixture
def through(settings: Settings, proxy: Proxy) -> dict[str, str]:
    """The setting of a worker that reaches Postgres by the proxy only."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    return {"database_url": f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}"}


@pytest.fixture
def start(serve: Callable[..., None], proxy: Proxy, start_local: Callable[..., Any]) -> Callable[..., Any]:
    """Starts workers that are quick to notice. The proxy is closed after they have stopped."""
    serve(GRAPHS, work={"durability": "sync", "retry_delay": 0, "retry_delay_max": 0})
    return lambda *, takes=True, **overrides: start_local(takes=takes, **{**QUICK, **overrides})


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    return lambda text="slow", thread_id="t": producer.enqueue(
        "work", {"texts": [text]}, tenant="acme", thread_id=thread_id
    )


@pytest.fixture
def heal(proxy: Proxy) -> Iterator[None]:
    """Before anybody is stopped."""
    yield
    proxy.heal()


def attempts(admin: Any) -> list[tuple[Any, ...]]:
    return admin.execute("select attempt, outcome, cause from attempts order by run_id, attempt").fetchall()


def losses(admin: Any) -> int:
    return admin.execute("select sum(worker_losses) from runs").fetchone()[0]


def workers(admin: Any) -> list[Any]:
    return [worker for (worker,) in admin.execute("select id from workers").fetchall()]


def eventually(condition: Callable[[], bool], timeout: float = 15) -> bool:
    ends_at = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


def finishes(producer: Producer, run: Run) -> Run:
    done = producer.wait(run.id, tenant="acme", timeout=20)
    assert done.status == "success"
    assert producer.state("acme", run.thread_id).values["texts"][1:] == ["first", "second", "third"]
    return done


# ---------------------------------------------------------------------------------------------------
# Struck off


def test_a_worker_that_was_struck_off_stops_and_serves_on_under_a_new_id(
    start: Callable[..., Any], enqueue: Enqueue, producer: Producer, admin: Any
) -> None:
    worker = start()
    before = worker.runtime.worker_id
    run = enqueue()
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)

    admin.execute("delete from workers")

    assert worker.graphs.cancelled.wait(20)
    assert isinstance(answer.exception(20), LeaseLost)
    assert eventually(lambda: workers(admin) == [worker.runtime.worker_id])
    assert worker.runtime.worker_id != before
    assert finishes(producer, run).attempt == 2
    assert worker.graphs.calls == ["first", "second", "second", "third"]
    assert (attempts(admin), losses(admin)) == ([(1, "lost", "worker gone")], 1)
    assert worker.answer(enqueue("quick", "other")).result(20) == "success"


def test_a_worker_that_was_struck_off_begins_nothing_before_it_knows(
    start: Callable[..., Any], enqueue: Enqueue, admin: Any
) -> None:
    worker = start(heartbeat_interval=0.9, sweep_interval=60)
    admin.execute("delete from workers")

    assert worker.drops(enqueue("quick"))
    assert admin.execute("select status, attempt from runs").fetchone() == ("pending", 0)


def test_the_runs_of_a_worker_that_has_fallen_silent_are_rescued_and_the_loss_is_counted(
    start: Callable[..., Any], enqueue: Enqueue, producer: Producer, admin: Any
) -> None:
    start()  # leads
    silent = start(sweep_interval=60)
    run = enqueue()
    answer = silent.answer(run)
    assert silent.graphs.started.wait(20)

    silent.runtime._heartbeat._stopping.set()  # as good as dead, but that its node goes on

    assert finishes(producer, run).attempt == 2
    assert (attempts(admin), losses(admin)) == ([(1, "lost", "heartbeat stale")], 1)
    silent.graphs.gate.set()
    assert isinstance(answer.exception(20), LeaseLost)
    assert silent.graphs.calls == ["first", "second", "second", "third"]
    assert admin.execute("select fenced_writes > 0 from attempts").fetchone() == (True,)


# ---------------------------------------------------------------------------------------------------
# Cut off


@pytest.mark.parametrize("how", ["cut", "silence"])
def test_a_worker_that_was_cut_off_stops_its_runs_and_gives_them_back_at_no_cost(
    how: str,
    start: Callable[..., Any],
    through: dict[str, str],
    proxy: Proxy,
    heal: None,
    enqueue: Enqueue,
    producer: Producer,
    admin: Any,
) -> None:
    worker = start(**through)
    before = worker.runtime.worker_id
    run = enqueue()
    answer = worker.answer(run)
    assert worker.graphs.started.wait(20)
    # Long enough for this leader to judge others.
    assert eventually(lambda: time.monotonic() - worker.runtime._sweeper._answered_since > LEASE)

    getattr(proxy, how)()

    assert worker.graphs.cancelled.wait(20), "it does not wait for Postgres to tell it"
    assert isinstance(answer.exception(20), LeaseLost)
    other = enqueue("quick", "other")
    assert isinstance(worker.answer(other).exception(20), BellDropped)
    assert admin.execute("select status from runs order by id").fetchall() == [("running",), ("pending",)]
    proxy.heal()

    assert finishes(producer, run).attempt == 2
    assert finishes(producer, other).attempt == 1
    assert Counter(worker.graphs.calls) == Counter(first=2, second=3, third=2)
    assert (attempts(admin), losses(admin)) == ([(1, "lost", "cut off")], 0)
    assert (workers(admin), worker.runtime.worker_id) == ([before], before)


def test_what_a_worker_that_is_cut_off_leaves_behind_is_rescued_and_it_serves_on_afterwards(
    start: Callable[..., Any],
    through: dict[str, str],
    proxy: Proxy,
    heal: None,
    enqueue: Enqueue,
    producer: Producer,
    admin: Any,
) -> None:
    cut_off = start(**through)
    before = cut_off.runtime.worker_id
    run = enqueue()
    answer = cut_off.answer(run)
    assert cut_off.graphs.started.wait(20)
    rescuer = start()

    proxy.cut()

    assert finishes(producer, run).attempt == 2
    assert isinstance(answer.exception(20), LeaseLost)
    assert (attempts(admin), losses(admin)) == ([(1, "lost", "heartbeat stale")], 1)
    proxy.heal()
    assert eventually(lambda: cut_off.runtime.worker_id in workers(admin))
    assert cut_off.runtime.worker_id != before
    rescuer.stop()
    finishes(producer, enqueue("quick", "other"))


def test_a_worker_stops_in_time_although_postgres_says_nothing(
    start: Callable[..., Any],
    through: dict[str, str],
    proxy: Proxy,
    heal: None,
    enqueue: Enqueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("runtime.STOP_GRACE", "runtime.LAST_WORDS", "sweeper.LAST_WORDS", "heartbeat.LAST_WORDS"):
        monkeypatch.setattr(f"threadmill.workers.{name}", 0.5)
    worker = start(**through)
    answer = worker.answer(enqueue())
    assert worker.graphs.started.wait(20)
    proxy.silence()
    stopped = threading.Event()

    def stop() -> None:
        worker.runtime.drain()
        worker.runtime.stop()
        stopped.set()

    worker._stopped = True  # by this test
    thread = threading.Thread(target=stop)
    thread.start()

    in_time = stopped.wait(15)
    proxy.heal()
    thread.join(20)
    assert in_time
    assert answer.cancelled() or answer.exception(0) is not None


def test_a_signal_is_heard_while_the_worker_drains_whichever_thread_it_reaches(
    start: Callable[..., Any], enqueue: Enqueue
) -> None:
    """Python handles signals in the main thread, and one that reaches it otherwise does not wake it."""
    worker = start(drain_timeout=10)
    answer = worker.answer(enqueue())
    assert worker.graphs.started.wait(20)
    draining = threading.Event()

    def strike() -> None:
        assert eventually(lambda: not worker.runtime._executor.accepts)
        draining.wait(0.2)  # until the main thread waits for the end
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: worker.graphs.gate.set())
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        began = time.monotonic()
        worker.runtime.drain()
        assert time.monotonic() - began < 5
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        worker.graphs.gate.set()
    assert isinstance(answer.exception(20), RunPostponed)


# ---------------------------------------------------------------------------------------------------
# What Postgres did not answer


@pytest.fixture
def lose_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int], None]:
    """Has the worker's n-th transaction committed, and its answer lost."""

    def lose(worker: Any, number: int) -> None:
        carry_out, calls = worker.runtime._database.carry_out, iter(range(1, 1000))

        async def losing(plan: Any) -> Any:
            rows = await carry_out(plan)
            if next(calls) == number:
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            return rows

        monkeypatch.setattr(worker.runtime._database, "carry_out", losing)

    return lose


def test_a_claim_whose_answer_was_lost_is_given_back_at_no_cost(
    start: Callable[..., Any],
    lose_answer: Callable[[Any, int], None],
    enqueue: Enqueue,
    producer: Producer,
    admin: Any,
) -> None:
    worker = start()
    run = enqueue("quick")
    lose_answer(worker, 1)

    assert isinstance(worker.answer(run).exception(20), BellDropped)

    assert finishes(producer, run).attempt == 2
    assert worker.graphs.calls == ["first", "second", "third"]
    assert (attempts(admin), losses(admin)) == ([(1, "lost", "claim unanswered")], 0)


@pytest.mark.parametrize(
    ("text", "status", "raised", "records"),
    [
        ("quick", "success", None, []),
        ("flaky", "pending", RunPostponed, [(1, "failed", "transient: ConnectionError")]),
        ("wrong", "error", RunFailed, [(1, "failed", "permanent: ValueError")]),
    ],
)
def test_an_end_whose_answer_was_lost_takes_effect_once(
    text: str,
    status: str,
    raised: type[Exception] | None,
    records: list[Any],
    start: Callable[..., Any],
    lose_answer: Callable[[Any, int], None],
    enqueue: Enqueue,
    producer: Producer,
    admin: Any,
) -> None:
    worker = start(sweep_interval=60, takes=False)  # whoever takes would have transactions of its own
    run = enqueue(text)
    lose_answer(worker, 2)

    error = worker.answer(run).exception(20)

    assert error is None if raised is None else isinstance(error, raised)
    assert producer.get(run.id, tenant="acme").status == status
    assert attempts(admin) == records
    assert admin.execute("select count(*) from dead_letters").fetchone() == (int(status == "error"),)


def test_postgres_restarted_under_runs_costs_them_nothing(
    start: Callable[..., Any], postgres: Postgres, enqueue: Enqueue, producer: Producer, settings: Settings
) -> None:
    worker = start(heartbeat_timeout=10)
    before = worker.runtime.worker_id
    answer = worker.answer(enqueue())
    assert worker.graphs.started.wait(20)

    postgres.restart()
    worker.graphs.gate.set()  # the next thing that the node does is a write

    assert answer.result(20) == "success"
    with psycopg.connect(settings.database_url, autocommit=True) as admin:
        admin.execute("set search_path to threadmill")
        assert admin.execute("select status, attempt from runs").fetchall() == [("success", 1)]
        assert attempts(admin) == []
        assert workers(admin) == [worker.runtime.worker_id] == [before]
    assert worker.graphs.calls == ["first", "second", "third"]


# ---------------------------------------------------------------------------------------------------
# The leader


@pytest.fixture
def lead(settings: Settings) -> Iterator[Callable[[], Sweeper]]:
    """Starts sweepers as worker processes do; they are stopped at the end."""
    doorbell = Doorbell(settings)
    herald = Herald(settings, doorbell)
    herald.start()
    started: list[Sweeper] = []

    def start() -> Sweeper:
        quick = settings.model_copy(update={**QUICK, "sweep_interval": 0.1})
        started.append(Sweeper(quick, doorbell, herald, lambda graph: False))
        started[-1].start()
        return started[-1]

    yield start
    for sweeper in started:
        sweeper.stop()
    herald.stop()
    doorbell.close()


def test_a_leader_that_is_frozen_loses_the_lead(lead: Callable[[], Sweeper], admin: Any) -> None:
    frozen, thawed, sweeps = threading.Event(), threading.Event(), threading.Semaphore(0)
    first = lead()
    expire = first._expire

    def freeze(connection: Any) -> None:
        expire(connection)
        frozen.set()
        assert thawed.wait(20)

    first._expire = freeze  # type: ignore[method-assign]
    assert frozen.wait(20)
    second = lead()
    original = second._expire

    def sweep(connection: Any) -> None:
        original(connection)
        sweeps.release()

    second._expire = sweep  # type: ignore[method-assign]

    assert sweeps.acquire(timeout=20), "another leads"
    with structlog.testing.capture_logs() as logs:
        thawed.set()
        assert eventually(lambda: any(line["event"] == "sweeper.interrupted" for line in logs))
    assert sweeps.acquire(timeout=20)
    assert not any(line["event"] == "sweeper.leads" for line in logs), "and goes on leading"


def test_a_leader_judges_nobody_after_postgres_was_away_for_all(
    start: Callable[..., Any],
    freeze: Callable[[int], None],
    enqueue: Enqueue,
    producer: Producer,
    admin: Any,
) -> None:
    # Neither takes runs: a claim that is under way when Postgres freezes is done when it thaws, for nobody.
    one, other = start(takes=False), start(takes=False)
    run = enqueue()
    answer = one.answer(run)
    assert one.graphs.started.wait(20)
    # Either of them may lead afterwards, and has known Postgres for long enough to judge.
    sweepers = (one.runtime._sweeper, other.runtime._sweeper)
    assert eventually(lambda: all(time.monotonic() - s._answered_since > LEASE for s in sweepers))
    before = sorted(workers(admin))

    freeze(signal.SIGSTOP)
    assert isinstance(answer.exception(20), LeaseLost)
    time.sleep(LEASE)  # until every heartbeat is stale by the clock of Postgres
    freeze(signal.SIGCONT)

    assert eventually(lambda: not one.drops(run))  # it does, until it has given the run back and beats again
    assert finishes(producer, run).attempt == 2
    assert (attempts(admin), losses(admin)) == ([(1, "lost", "cut off")], 0)
    assert sorted(workers(admin)) == before
