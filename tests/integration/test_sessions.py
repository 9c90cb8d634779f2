"""A run that is enqueued in the caller's own transaction is there if, and only if, that commits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import IdempotencyConflict, RunNotFound, ThreadBusy, UnknownGraph
from threadmill.core.settings import Settings
from threadmill.producers import AsyncProducer, Producer

GRAPHS = """
    import operator
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        said: Annotated[list[str], operator.add]

    talk = StateGraph(State).add_node("say", lambda state: {"said": ["said"]}).add_edge(START, "say")
"""
TALK: dict[str, Any] = {"graph": "talk", "input": {"said": ["hi"]}, "tenant": "acme", "thread_id": "t"}
ORDER = "insert into public.orders (name) values ('a book')"
Opener = Callable[[str], AbstractContextManager[Any]]
AsyncOpener = Callable[[str], AbstractAsyncContextManager[Any]]


@contextmanager
def sqlalchemy_session(url: str) -> Iterator[Session]:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with Session(engine) as session:
        yield session
    engine.dispose()


@contextmanager
def sqlalchemy_connection(url: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def psycopg_connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url) as connection:
        yield connection


@asynccontextmanager
async def sqlalchemy_async_session(url: str) -> AsyncIterator[AsyncSession]:
    async with sqlalchemy_async_connection(url) as connection, AsyncSession(connection) as session:
        yield session


@asynccontextmanager
async def sqlalchemy_async_connection(url: str) -> AsyncIterator[Any]:
    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(url),
        poolclass=NullPool,
    )
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@asynccontextmanager
async def psycopg_async_connection(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield connection


BLOCKING = pytest.mark.parametrize(
    "opener", [sqlalchemy_session, sqlalchemy_connection, psycopg_connection], ids=lambda o: o.__name__
)
AWAITED = pytest.mark.parametrize(
    "opener",
    [sqlalchemy_async_session, sqlalchemy_async_connection, psycopg_async_connection],
    ids=lambda o: o.__name__,
)


def execute(caller: Any, statement: str) -> Any:
    return caller.execute(statement if isinstance(caller, psycopg.Connection) else text(statement))


async def execute_async(caller: Any, statement: str) -> Any:
    return await caller.execute(statement if isinstance(caller, psycopg.AsyncConnection) else text(statement))


@pytest.fixture
def caller_url(settings: Settings, admin: Any) -> Iterator[str]:
    """The URL of a service that has a role and a table of its own, and may use the ledger."""
    role = f"app_{settings.queue}"
    admin.execute(f"create role {role} login in role threadmill_fleet")
    admin.execute(
        f"create table public.orders (name text); grant all on public.orders to {role};"
        f" grant {role} to current_user"
    )
    separator = "&" if "?" in settings.database_url else "?"
    yield f"{settings.database_url}{separator}options=-c%20role%3D{role}"
    admin.execute(f"drop owned by {role}; drop role {role}")


@pytest.fixture
def counts(admin: Any) -> Callable[[], tuple[int, ...]]:
    """How many orders, threads and runs others see."""
    query = "select (select count(*) from public.orders), (select count(*) from threads),"
    return lambda: tuple(admin.execute(f"{query} (select count(*) from runs)").fetchone())


@pytest.fixture
def waiting(settings: Settings) -> Iterator[Callable[[], int]]:
    """How many bells wait."""
    doorbell = Doorbell(settings)
    yield doorbell.waiting
    doorbell.close()


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(GRAPHS, talk={})
    worker = start_local(ring_again_after=60)  # so that a bell was rung because of the commit
    assert worker.runtime._sweeper.leads.wait(20)
    return worker


@BLOCKING
def test_a_run_belongs_to_the_callers_transaction(
    opener: Opener,
    worker: Any,
    caller_url: str,
    producer: Producer,
    counts: Callable[[], tuple[int, ...]],
    waiting: Callable[[], int],
) -> None:
    with opener(caller_url) as caller:
        execute(caller, ORDER)
        lost = producer.enqueue(**TALK, session=caller)
        caller.rollback()
        assert counts() == (0, 0, 0)

        execute(caller, ORDER)
        role = execute(caller, "select current_user").fetchone()[0]
        run = producer.enqueue(**TALK, session=caller)
        assert (run.status, run.seq) == ("pending", 1)
        assert execute(caller, "select current_user").fetchone()[0] == role
        execute(caller, ORDER)
        with pytest.raises(RunNotFound):
            producer.get(run.id, tenant="acme")
        assert (counts(), waiting()) == ((0, 0, 0), 0)

        caller.commit()

    worker.listen()
    assert producer.wait(run.id, tenant="acme", timeout=20).status == "success"
    assert counts() == (2, 1, 1)
    with pytest.raises(RunNotFound):
        producer.get(lost.id, tenant="acme")


@AWAITED
async def test_a_run_belongs_to_the_transaction_of_an_asyncio_caller(
    opener: AsyncOpener,
    worker: Any,
    caller_url: str,
    settings: Settings,
    counts: Callable[[], tuple[int, ...]],
    waiting: Callable[[], int],
) -> None:
    async with AsyncProducer(settings) as producer, opener(caller_url) as caller:
        await execute_async(caller, ORDER)
        await producer.enqueue(**TALK, session=caller)
        await caller.rollback()
        assert counts() == (0, 0, 0)

        await execute_async(caller, ORDER)
        run = await producer.enqueue(**TALK, session=caller)
        assert (run.status, run.seq) == ("pending", 1)
        with pytest.raises(RunNotFound):
            await producer.get(run.id, tenant="acme")
        assert (counts(), waiting()) == ((0, 0, 0), 0)

        await caller.commit()

        worker.listen()
        assert (await producer.wait(run.id, tenant="acme", timeout=20)).status == "success"
    assert counts() == (1, 1, 1)


def test_many_runs_of_many_tenants_belong_to_one_transaction(
    worker: Any, caller_url: str, producer: Producer
) -> None:
    requests = [
        {**TALK, "tenant": tenant, "thread_id": f"t{n % 2}"} for n in range(4) for tenant in ("b", "a")
    ]
    with psycopg_connection(caller_url) as caller:
        runs = producer.enqueue_many(requests, session=caller)

    worker.listen()
    assert [(run.tenant, run.thread_id, run.seq) for run in runs] == [
        (request["tenant"], request["thread_id"], number // 4 + 1) for number, request in enumerate(requests)
    ]
    done = [producer.wait(run.id, tenant=run.tenant, timeout=20) for run in runs]
    assert {run.status for run in done} == {"success"}


@pytest.mark.parametrize("opener", [sqlalchemy_session, psycopg_connection], ids=lambda o: o.__name__)
def test_a_refusal_leaves_the_callers_transaction_as_it_was(
    opener: Opener,
    worker: Any,
    caller_url: str,
    producer: Producer,
    counts: Callable[[], tuple[int, ...]],
) -> None:
    producer.enqueue(**TALK, idempotency_key="k")
    fresh = {**TALK, "thread_id": "fresh"}

    with opener(caller_url) as caller:
        execute(caller, ORDER)
        for request, error in (
            ({**TALK, "graph": "tlak"}, UnknownGraph),
            ({**TALK, "multitask_strategy": "reject"}, ThreadBusy),
            ({**fresh, "idempotency_key": "k"}, IdempotencyConflict),
        ):
            with pytest.raises(error):
                producer.enqueue_many([fresh, request], session=caller)
        caller.commit()

    assert counts() == (1, 1, 1)


def test_the_same_key_in_the_callers_transaction_is_the_same_run(
    worker: Any, caller_url: str, producer: Producer, counts: Callable[[], tuple[int, ...]]
) -> None:
    with psycopg_connection(caller_url) as caller:
        first = producer.enqueue(**TALK, idempotency_key="k", session=caller)
        again = producer.enqueue(**TALK, idempotency_key="k", session=caller)

    assert first.id == again.id
    assert producer.enqueue(**TALK, idempotency_key="k").id == first.id
    assert counts() == (0, 1, 1)


def test_a_caller_without_a_transaction_commits_at_once(
    worker: Any, caller_url: str, producer: Producer
) -> None:
    worker.listen()
    with psycopg.connect(caller_url, autocommit=True) as caller:
        run = producer.enqueue(**TALK, session=caller)

        assert producer.wait(run.id, tenant="acme", timeout=20).status == "success"
