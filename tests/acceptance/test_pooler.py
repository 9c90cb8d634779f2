"""A fleet behind a real PgBouncer in transaction mode that has four sessions for all of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from tests.acceptance.pgbouncer import SIZE, Pooler, pgbouncer
from tests.conftest import with_database

from threadmill.cli import snapshot_check
from threadmill.cli.checkup import Checkup
from threadmill.cli.finding import Finding
from threadmill.core.database import AsyncDatabase, Database, connect
from threadmill.core.errors import PoolerInTheWay, SettingsInvalid
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Step, send, send_async
from threadmill.core.transitions import bind_tenant
from threadmill.dlq import Desk
from threadmill.producers import Producer, Run
from threadmill.workers.checkpointer import BoundSaver

TENANTS = ("acme", "globex", "initech")
THREADS, TURNS = 20, 5
QUICK = {
    "heartbeat_interval": 0.2,
    "heartbeat_timeout": 1.5,
    "sweep_interval": 0.2,
    "ring_again_after": 1.0,
    "pool_size": 4,
}
GRAPHS = """
    import asyncio, operator, sys
    from pathlib import Path
    from typing import Annotated, TypedDict
    from langgraph.graph import START, StateGraph

    class State(TypedDict):
        said: Annotated[list[str], operator.add]

    async def answer(state):
        return {"said": [state["said"][-1] + "!"]}

    async def stumble(state):
        if not Path("stumbled").exists():
            Path("stumbled").touch()
            raise ConnectionError("once")
        return {"said": ["up again"]}

    async def strict(state):
        if not Path("gate").exists():
            raise ValueError("the gate is shut")
        return {"said": ["through"]}

    async def dawdle(state):
        print("dawdle.begun", file=sys.stderr, flush=True)
        while not Path("enough").exists():
            await asyncio.sleep(0.05)
        return {"said": ["done"]}

    def graph(*nodes):
        made = StateGraph(State)
        for node in nodes:
            made.add_node(node.__name__, node)
        made.add_edge(START, nodes[0].__name__)
        for before, after in zip(nodes, nodes[1:]):
            made.add_edge(before.__name__, after.__name__)
        return made

    chat, gate = graph(answer), graph(strict)
    stumbler, dawdler = graph(answer, stumble), graph(answer, dawdle)
"""
DROP = text("drop table threadmill.runs")
LEADER = """
    select pid from pg_locks where locktype = 'advisory' and granted
        and database = (select oid from pg_database where datname = current_database())
"""


@pytest.fixture
def pooler(settings: Settings, admin: psycopg.Connection[Any], tmp_path: Path) -> Iterator[Pooler]:
    folder = tmp_path / "pooler"
    folder.mkdir()
    with pgbouncer(settings, admin, folder) as pooler:
        yield pooler


@pytest.fixture
def through(pooler: Pooler) -> Iterator[Producer]:
    with Producer(pooler.through) as producer:
        yield producer


@pytest.fixture
def fleet(pooler: Pooler, serve: Callable[..., None], start_worker: Callable[..., Any]) -> list[Any]:
    """Two workers."""
    serve(
        GRAPHS,
        chat={},
        stumbler={"retry_delay": 0, "retry_delay_max": 0},
        gate={"max_attempts": 1},
        dawdler={"durability": "sync"},
    )
    return [start_worker(**pooler.overrides(), **QUICK) for _ in range(2)]


def ask(graph: str, tenant: str, thread: str, text: str = "hi", **options: Any) -> dict[str, Any]:
    return {"graph": graph, "input": {"said": [text]}, "tenant": tenant, "thread_id": thread, **options}


def tenant_of(thread: int) -> str:
    return TENANTS[thread % len(TENANTS)]


@pytest.mark.timeout(150)
def test_a_fleet_works_through_a_pooler_with_four_sessions(
    fleet: list[Any], pooler: Pooler, through: Producer, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    victim = through.enqueue(**ask("dawdler", "acme", "slow"))
    doomed = next(worker for worker in fleet if said(fleet, "dawdle.begun") is worker)
    runs = through.enqueue_many(
        ask("chat", tenant_of(thread), f"t{thread}", f"{thread}.{turn}")
        for turn in range(TURNS)
        for thread in range(THREADS)
    )
    doomed.stop(signal.SIGKILL)
    stumbled = through.enqueue(**ask("stumbler", "globex", "unsteady"))
    streamed = through.enqueue(**ask("chat", "initech", "told", stream_mode=["updates"]))
    failed = through.enqueue(**ask("gate", "acme", "strict"))
    cancelled = through.enqueue(**ask("dawdler", "globex", "never"))

    def wait(run: Run) -> Run:
        return through.wait(run.id, tenant=run.tenant, timeout=60)

    assert [event.data for event in through.stream(streamed.id, tenant="initech")] == [
        {"answer": {"said": ["hi!"]}}
    ]
    through.cancel(cancelled.id, tenant="globex")
    assert wait(cancelled).status == "interrupted"
    assert {wait(run).status for run in runs} == {"success"}
    assert wait(failed).status == "error"
    assert (wait(stumbled).status, wait(stumbled).attempt) == ("success", 2)
    (tmp_path / "enough").touch()
    rescued = wait(victim)
    assert (rescued.status, rescued.attempt) == ("success", 2)
    (tmp_path / "gate").touch()
    with Desk(pooler.through) as desk:
        (letter,) = desk.list()
        desk.replay(letter.id)
    assert wait(failed).status == "success"

    for thread in range(THREADS):
        assert through.state(tenant_of(thread), f"t{thread}").values["said"] == [
            word for turn in range(TURNS) for word in (f"{thread}.{turn}", f"{thread}.{turn}!")
        ]
    assert through.state("acme", "slow").values["said"] == ["hi", "hi!", "done"]
    assert not through.list(tenant="acme", thread_id="t1")  # globex has that
    sessions = pooler.sessions()
    assert len({session["pid"] for session in sessions}) == SIZE
    assert [(s["role"], s["search_path"], s["enable_seqscan"]) for s in sessions] == [
        ("threadmill_fleet", "threadmill, public", "off")
    ] * SIZE
    assert [(s["tenant"] or "", s["statement_timeout"], s["lock_timeout"]) for s in sessions] == [
        ("", "0", "0")
    ] * SIZE
    assert [s["prepared"] for s in sessions] == [0] * SIZE
    leaders = [pid for (pid,) in admin.execute(LEADER)]
    assert len(leaders) == 1
    assert not {s["pid"] for s in sessions} & set(leaders)


def said(workers: list[Any], text: str) -> Any:
    """The worker that says so first."""
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        for worker in workers:
            if any(text in line for line in worker.lines):
                return worker
        time.sleep(0.01)
    pytest.fail(f"nobody says {text}")


def test_a_pipeline_that_is_over_borrows_no_session(pooler: Pooler, tmp_path: Path) -> None:
    steps = [Step(bind_tenant(), {"tenant": "acme"})] * 2
    with connect(pooler.through) as connection, (tmp_path / "trace").open("w") as trace:
        connection.pgconn.trace(trace.fileno())
        send(connection, Batch(steps))
        connection.pgconn.untrace()

    assert sent(tmp_path / "trace")[-3:] == ["Describe", "Execute", "Sync"]


async def test_nor_does_an_asyncio_pipeline(pooler: Pooler, tmp_path: Path) -> None:
    steps = [Step(bind_tenant(), {"tenant": "acme"})] * 2
    database = AsyncDatabase(pooler.through)
    async with database.connection() as connection:
        with (tmp_path / "trace").open("w") as trace:
            connection.pgconn.trace(trace.fileno())
            await send_async(connection, Batch(steps))
            connection.pgconn.untrace()
    await database.close()

    assert sent(tmp_path / "trace")[-3:] == ["Describe", "Execute", "Sync"]


def sent(trace: Path) -> list[str]:
    """The messages to Postgres, of libpq's trace."""
    lines = [line.split("\t") for line in trace.read_text().splitlines()]
    return [line[3] for line in lines if line[1] == "F"]


def test_a_batch_that_fails_leaves_nothing_in_its_session(pooler: Pooler) -> None:
    steps = [Step(bind_tenant(), {"tenant": "acme"}), Step(DROP, {}), Step(bind_tenant(), {"tenant": "acme"})]
    with connect(pooler.through) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            send(connection, Batch(steps))

        assert pooler.lent() == 0
    assert [(s["role"], s["tenant"] or "") for s in pooler.sessions()] == [("threadmill_fleet", "")] * SIZE


def test_a_login_without_the_defaults_is_refused_by_name(
    pooler: Pooler, admin: psycopg.Connection[Any]
) -> None:
    admin.execute(f'alter role "{pooler.login}" in database "{admin.info.dbname}" reset role')
    database = Database(pooler.through)

    with pytest.raises(PoolerInTheWay, match="set role = threadmill_fleet"), database.connection():
        pass


def test_a_pooler_that_the_settings_do_not_name_is_noticed(pooler: Pooler) -> None:
    undeclared = pooler.through.model_copy(update={"database_pooler": "none"})

    with pytest.raises(PoolerInTheWay, match="THREADMILL_DATABASE_POOLER=transaction"):
        connect(undeclared)


def test_what_it_prepares_where_the_settings_name_no_pooler_is_noticed(
    settings: Settings, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    with pgbouncer(settings, admin, tmp_path, "ignore_startup_parameters = options") as pooler:
        undeclared = pooler.through.model_copy(update={"database_pooler": "none"})
        with ExitStack() as stack:
            two = [stack.enter_context(Producer(undeclared)) for _ in range(2)]
            with pytest.raises(PoolerInTheWay, match="prepared statement"):
                for producer in two:
                    producer.list(tenant="acme")


def test_what_needs_a_session_refuses_the_pooler(pooler: Pooler) -> None:
    with pytest.raises(SettingsInvalid, match="session_database_url"):
        pooler.through.model_copy(update={"session_database_url": ""}).for_sessions()


async def test_pruning_leaves_no_tenant_in_a_session(pooler: Pooler) -> None:
    database = AsyncDatabase(pooler.through)
    saver = BoundSaver(await database.pool(), "acme")
    for strategy in ("delete", "keep_latest"):
        await saver.aprune(["t"], strategy=strategy)
    await database.close()

    assert [session["tenant"] or "" for session in pooler.sessions()] == [""] * SIZE


def look(settings: Settings) -> dict[str, Finding]:
    return {finding.name: finding for finding in Checkup(settings, embedded=False).findings()}


def test_the_doctor_is_content_with_a_pooler_that_is_declared(pooler: Pooler) -> None:
    found = look(pooler.through)

    checked = ("database", "roles", "migrations", "pooler", "clock", "breakers", "quarantine", "dead letters")
    assert [(name, found[name].status) for name in checked] == [(name, "ok") for name in checked]


def test_the_doctor_sees_behind_a_pooler_since_when_a_snapshot_is_held(
    pooler: Pooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_check, "OLD", 0)
    with psycopg.connect(pooler.through.database_url, prepare_threshold=None) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select from threadmill.runs")
        found = look(pooler.through)["snapshots"]

    assert found.status == "warn"
    assert f"of {pooler.login}, idle in transaction) since " in found.detail


def test_the_doctor_finds_what_is_wrong_with_a_pooler(
    pooler: Pooler, settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    def with_sessions_at(url: str) -> Finding:
        return look(pooler.through.model_copy(update={"session_database_url": url}))["pooler"]

    unset = with_sessions_at("")
    itself = with_sessions_at(pooler.through.database_url)
    elsewhere = with_sessions_at(with_database(settings.database_url, "postgres"))
    nowhere = with_sessions_at("postgresql://nobody@127.0.0.1:1/none")

    assert unset.status == "warn"
    assert "past the pooler" in unset.detail
    assert [finding.status for finding in (itself, elsewhere, nowhere)] == ["fail"] * 3
    assert "another database" in elsewhere.detail
    assert "does not answer" in nowhere.detail


def test_the_doctor_notices_a_pooler_that_is_not_declared(
    settings: Settings, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    with pgbouncer(settings, admin, tmp_path) as pooler:
        refused = look(pooler.through.model_copy(update={"database_pooler": "none"}))
    with pgbouncer(settings, admin, tmp_path, "ignore_startup_parameters = options") as pooler:
        ignored = look(pooler.through.model_copy(update={"database_pooler": "none"}))

    assert refused["database"].status == "fail"
    assert "THREADMILL_DATABASE_POOLER" in str(refused["database"].advice)
    assert ignored["pooler"].status == "fail"
    assert "transaction mode" in ignored["pooler"].detail
