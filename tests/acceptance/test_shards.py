"""Two ledgers in one fleet: each tenant's runs are in one of them, and what is down there harms no other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from tests.conftest import WorkerProcess, database_copied
from typer.testing import CliRunner, Result

from threadmill.cli.checkup import Checkup
from threadmill.cli.main import app
from threadmill.core.errors import DatabaseUnavailable, RunNotFound, ShardsApart
from threadmill.core.settings import Settings, Shard
from threadmill.producers import AsyncProducer, Producer, Run

# acme is on the shard eu, globex on the main one.
QUICK = {
    "heartbeat_interval": 0.2,
    "heartbeat_timeout": 1.5,
    "sweep_interval": 0.2,
    "ring_again_after": 1.0,
    "connect_timeout": 2.0,
}
GRAPHS = """
    import asyncio, operator
    from typing import Annotated, TypedDict
    from langgraph.graph import START, StateGraph

    class State(TypedDict):
        said: Annotated[list[str], operator.add]

    async def answer(state):
        if state["said"][-1] == "wait":
            await asyncio.sleep(60)
        if state["said"][-1] == "rest":
            await asyncio.sleep(1)
        if state["said"][-1] == "fail":
            raise ValueError("no")
        return {"said": [state["said"][-1] + "!"]}

    parrot = StateGraph(State).add_node("answer", answer).add_edge(START, "answer")
"""


@pytest.fixture
def fleet(services: tuple[str, str], settings: Settings, serve: Callable[..., None]) -> Iterator[Settings]:
    serve(GRAPHS, parrot={})
    with database_copied(services[0]) as url:
        shard = Shard(name="eu", database_url=url, tenants=("acme",))
        yield settings.model_copy(update={"shards": (shard,), **QUICK})


@pytest.fixture
def start(fleet: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], WorkerProcess]]:
    """Starts a worker of a shard, with the whole fleet's settings in its environment."""
    monkeypatch.setenv("THREADMILL_SHARDS", fleet.model_dump_json(include={"shards"})[len('{"shards":') : -1])
    workers: list[WorkerProcess] = []

    def start(shard: str) -> WorkerProcess:
        workers.append(WorkerProcess(fleet.for_shard(shard).located(), "asyncio"))
        workers[-1].wait_for("worker.ready")
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


@pytest.fixture
def producer(fleet: Settings) -> Iterator[Producer]:
    with Producer(fleet) as producer:
        yield producer


@pytest.fixture
def command(fleet: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command line with the fleet's settings, and returns its JSON document."""
    values = fleet.model_dump(mode="json")
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, list) else str(value)
        monkeypatch.setenv(f"THREADMILL_{name.upper()}", text)
    monkeypatch.chdir(fleet.graphs_file.parent)

    def command(*arguments: str, ends: int = 0) -> Any:
        result: Result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == ends, result.output
        return json.loads(result.stderr.splitlines()[-1] if ends else result.stdout)

    return command


def say(producer: Producer, tenant: str, word: str = "hello", thread: str = "t") -> Run:
    return producer.enqueue("parrot", {"said": [word]}, tenant=tenant, thread_id=thread)


def served(producer: Producer, run: Run) -> None:
    assert producer.wait(run.id, tenant=run.tenant, timeout=30).status == "success"


def patiently(ask: Callable[[], object]) -> None:
    """Asks until there is an answer: of a producer's connections each has to find out that it is gone."""
    for _ in range(20):
        with suppress(DatabaseUnavailable):
            ask()
            return
        time.sleep(0.1)
    raise AssertionError("the shard is not found to be back")


def tenants_in(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("select distinct tenant from threadmill.runs")}


def shut(url: str, *, admitting: bool) -> None:
    """Has the database refuse everybody, as one that is down, or lets them in again."""
    name = str(conninfo_to_dict(url)["dbname"])
    other = psycopg.connect(psycopg.conninfo.make_conninfo(url, dbname="postgres"), autocommit=True)
    with other as connection:
        connection.execute(
            sql.SQL("alter database {} allow_connections {}").format(sql.Identifier(name), admitting)
        )
        if not admitting:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name]
            )


def test_each_tenant_is_served_from_its_own_ledger(
    fleet: Settings, start: Callable[[str], WorkerProcess], producer: Producer
) -> None:
    start("")
    start("eu")

    runs = [say(producer, tenant, word) for word in ("one", "two") for tenant in ("acme", "globex")]
    for run in runs:
        served(producer, run)

    assert tenants_in(fleet.database_url) == {"globex"}
    assert tenants_in(fleet.shards[0].database_url) == {"acme"}
    for tenant in ("acme", "globex"):
        assert producer.state(tenant, "t").values == {"said": ["one", "one!", "two", "two!"]}
        assert [run.tenant for run in producer.list(tenant=tenant)] == [tenant, tenant]
        assert len(producer.history(tenant, "t")) > 2
    waiting = say(producer, "acme", "wait")
    while producer.get(waiting.id, tenant="acme").status == "pending":
        time.sleep(0.02)
    assert producer.cancel(waiting.id, tenant="acme").status == "interrupted"
    with pytest.raises(RunNotFound):
        producer.get(waiting.id, tenant="globex")


def test_the_asyncio_producer_goes_by_the_tenant_too(
    fleet: Settings, start: Callable[[str], WorkerProcess]
) -> None:
    start("eu")

    async def talk() -> list[str]:
        async with AsyncProducer(fleet) as producer:
            run = await producer.enqueue(
                "parrot", {"said": ["hi"]}, tenant="acme", thread_id="t", stream_mode="updates"
            )
            heard = [event.mode async for event in producer.stream(run.id, tenant="acme")]
            assert (await producer.wait(run.id, tenant="acme", timeout=30)).status == "success"
            return heard

    assert asyncio.run(talk()) == ["updates"]


def test_a_shard_that_is_down_stops_its_tenants_only(
    fleet: Settings, start: Callable[[str], WorkerProcess], producer: Producer
) -> None:
    start("")
    start("eu")
    for tenant in ("acme", "globex"):
        served(producer, say(producer, tenant))
    url = fleet.shards[0].database_url
    under_way = say(producer, "acme", "rest")
    while producer.get(under_way.id, tenant="acme").status == "pending":
        time.sleep(0.02)

    shut(url, admitting=False)
    with pytest.raises(DatabaseUnavailable):
        say(producer, "acme", "in vain")
    began = time.monotonic()
    for number in range(5):
        served(producer, say(producer, "globex", f"{number}"))
    took = time.monotonic() - began
    shut(url, admitting=True)

    patiently(lambda: producer.get(under_way.id, tenant="acme"))
    served(producer, under_way)
    served(producer, say(producer, "acme", "after"))
    assert took < fleet.connect_timeout  # nobody waited for the shard that was down
    assert producer.state("acme", "t").values["said"] == [
        "hello", "hello!", "rest", "rest!", "after", "after!",
    ]  # fmt: skip


def test_one_call_is_for_one_ledger(producer: Producer) -> None:
    with pytest.raises(ShardsApart, match="globex and acme are of different shards"):
        producer.enqueue_many(
            {"graph": "parrot", "input": {"said": ["x"]}, "tenant": tenant, "thread_id": "t"}
            for tenant in ("globex", "acme")
        )

    assert [producer.list(tenant=tenant) for tenant in ("acme", "globex")] == [[], []]


def test_the_command_line_goes_by_the_tenant_or_by_its_option(
    start: Callable[[str], WorkerProcess], producer: Producer, command: Callable[..., Any]
) -> None:
    start("eu")
    run = say(producer, "acme", "fail")
    assert producer.wait(run.id, tenant="acme", timeout=30).status == "error"

    def ids(*arguments: str) -> list[str]:
        return [found["id"] for found in command(*arguments)]

    assert ids("runs", "list", "--tenant", "acme") == ids("--shard", "eu", "runs", "list") == [run.id]
    assert ids("runs", "list") == []
    assert len(ids("dlq", "list", "--tenant", "acme")) == len(ids("--shard", "eu", "dlq", "list")) == 1
    assert ids("dlq", "list") == []
    command("tenants", "set", "acme", "--weight", "3")
    assert [row["weight"] for row in command("--shard", "eu", "tenants", "list")] == [3]
    assert command("tenants", "list") == []
    assert command("threads", "show", "t", "--tenant", "acme")["tenant"] == "acme"
    assert "asia is none of the shards: eu" in json.dumps(command("--shard", "asia", "runs", "list", ends=1))


def test_the_doctor_knows_whose_ledger_it_looks_into(fleet: Settings, producer: Producer) -> None:
    def finding(settings: Settings) -> tuple[str, str]:
        found = {f.name: f for f in Checkup(settings, embedded=False).findings()}["shard"]
        return found.status, found.detail

    for url, tenants in ((fleet.database_url, "globex hooli"), (fleet.shards[0].database_url, "acme")):
        for tenant in tenants.split():
            with psycopg.connect(url) as connection:
                connection.execute("insert into threadmill.threads values (%s, 't')", [tenant])
    assert finding(fleet) == ("ok", "the main one of 2; 2 tenants have threads here")
    assert finding(fleet.for_shard("eu")) == ("ok", "eu of 2; 1 tenants have threads here")

    moved = fleet.model_copy(
        update={"shards": (fleet.shards[0].model_copy(update={"tenants": ("globex",)}),)}
    )
    status, detail = finding(moved)
    assert (status, "globex (eu)" in detail, "hooli" in detail) == ("warn", True, False)
    status, detail = finding(moved.for_shard("eu"))
    assert (status, "acme (the main one)" in detail) == ("warn", True)
