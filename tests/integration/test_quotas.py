"""Bounds on pending runs: who is over them is told so, with the time to wait, and nothing is written."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from threadmill.core.database import connection_info
from threadmill.core.errors import QuotaExceeded, TenantQuotaExceeded
from threadmill.core.settings import Settings
from threadmill.producers import AsyncProducer, Producer, Run, quotas
from threadmill.producers.enqueue import AT_ONCE

GRAPHS = """
    from typing import TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        text: str

    talk = StateGraph(State).add_node("say", lambda state: {"text": "said"}).add_edge(START, "say")
"""
LIMIT = 5


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    serve(GRAPHS, talk={})
    return start_local()


@pytest.fixture
def served(worker: Any) -> None:
    """The graph is known, and no worker takes any run."""
    worker.stop()


@pytest.fixture
def bounded(served: None, settings: Settings) -> Iterator[Producer]:
    """A producer whose tenants may have LIMIT pending runs."""
    with Producer(settings.model_copy(update={"max_pending_per_tenant": LIMIT})) as producer:
        yield producer


def request(number: int = 0, tenant: str = "acme", **options: Any) -> dict[str, Any]:
    values = {"graph": "talk", "input": {"text": "a"}, "tenant": tenant, "thread_id": f"t{number}"}
    return {**values, **options}


def fill(producer: Producer, tenant: str = "acme", count: int = LIMIT) -> list[Run]:
    return producer.enqueue_many([request(number, tenant) for number in range(count)])


def written(admin: Any) -> list[Any]:
    return [
        admin.execute(f"select t.* from {table} t order by t::text").fetchall()
        for table in ("threads", "runs", "attempts", "dead_letters")
    ]


def test_a_tenant_over_its_bound_is_refused_and_others_are_not(bounded: Producer, admin: Any) -> None:
    fill(bounded)
    before = written(admin)

    with pytest.raises(TenantQuotaExceeded) as raised:
        bounded.enqueue(**request(99))

    error = raised.value
    assert (error.tenant, error.pending, error.limit) == ("acme", LIMIT, LIMIT)
    assert 1 <= error.retry_after <= 60
    assert str(error) == "tenant acme has 5 pending runs and may have 5; try again in 60 s"
    assert written(admin) == before
    fill(bounded, "globex")


def test_there_is_room_again_as_soon_as_a_run_has_started(
    bounded: Producer, start_local: Callable[..., Any]
) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    first, *_ = bounded.enqueue_many(
        [request(0), *(request(number, run_at=later) for number in range(1, LIMIT))]
    )
    with pytest.raises(TenantQuotaExceeded):
        bounded.enqueue(**request(99))
    worker = start_local()

    worker.answer(first).result(20)
    worker.stop()

    bounded.enqueue(**request(99))
    with pytest.raises(TenantQuotaExceeded):
        bounded.enqueue(**request(100))


def test_many_are_counted_together_all_or_none(bounded: Producer, admin: Any) -> None:
    fill(bounded, count=3)
    before = written(admin)

    with pytest.raises(TenantQuotaExceeded) as raised:
        bounded.enqueue_many([request(90), request(91, "globex"), request(92), request(93)])

    assert raised.value.pending == 3
    assert written(admin) == before
    bounded.enqueue_many([request(90), request(91, "globex"), request(92)])


def test_another_producers_runs_are_counted_too(bounded: Producer, settings: Settings) -> None:
    with Producer(settings.model_copy(update={"max_pending_per_tenant": LIMIT})) as other:
        bounded.enqueue(**request(0))
        fill(other, count=LIMIT - 1)
        with pytest.raises(TenantQuotaExceeded):
            bounded.enqueue(**request(99))


def test_the_tenants_own_bound_goes_before_the_setting(bounded: Producer, admin: Any) -> None:
    admin.execute(
        "insert into limits (kind, name, max_pending) values"
        " ('tenant', 'small', 2), ('tenant', 'large', 7), ('tenant', 'bare', null)"
    )
    for tenant, limit in (("small", 2), ("large", 7), ("bare", LIMIT)):
        fill(bounded, tenant, limit)
        with pytest.raises(TenantQuotaExceeded) as raised:
            bounded.enqueue(**request(99, tenant))
        assert raised.value.limit == limit


def test_without_any_bound_nobody_is_refused(served: None, settings: Settings) -> None:
    with Producer(settings.model_copy(update={"max_pending_per_tenant": None})) as producer:
        fill(producer, count=20)


def test_the_fleets_bound_counts_all_tenants(served: None, settings: Settings, admin: Any) -> None:
    with Producer(settings.model_copy(update={"max_pending": LIMIT})) as producer:
        fill(producer, "acme", 3)
        fill(producer, "globex", 2)
        before = written(admin)
        with pytest.raises(QuotaExceeded) as raised:
            producer.enqueue(**request(0, "initech"))
        assert not isinstance(raised.value, TenantQuotaExceeded)
        assert (raised.value.pending, raised.value.limit) == (LIMIT, LIMIT)
        assert written(admin) == before


def test_a_repeated_idempotency_key_is_answered_at_the_bound_too(bounded: Producer) -> None:
    first = bounded.enqueue(**request(0, idempotency_key="k"))
    fill(bounded, count=LIMIT - 1)

    assert bounded.enqueue(**request(0, idempotency_key="k")).id == first.id
    with pytest.raises(TenantQuotaExceeded):
        bounded.enqueue(**request(0, idempotency_key="new"))


def test_a_run_that_takes_the_place_of_another_is_let_in(bounded: Producer) -> None:
    fill(bounded)

    bounded.enqueue(**request(0, multitask_strategy="interrupt"))
    bounded.enqueue(**request(1, multitask_strategy="rollback"))

    with pytest.raises(TenantQuotaExceeded):
        bounded.enqueue(**request(99, multitask_strategy="interrupt"))


def test_the_time_to_wait_is_the_tenants_pace_of_late(bounded: Producer, admin: Any) -> None:
    fill(bounded)
    # In the last ten seconds two of the tenant's runs have ended, and eighteen of another.
    admin.execute(
        """
        insert into threads (tenant, thread_id) values ('acme', 'past'), ('globex', 'past');
        insert into runs (id, tenant, thread_id, seq, graph, status, finished_at)
            select uuidv7(), case when n <= 2 then 'acme' else 'globex' end, 'past', n, 'talk', 'success',
                clock_timestamp() - make_interval(secs => case when n = 1 then 9.5 else 4 end)
            from generate_series(1, 20) n;
        """
    )
    with pytest.raises(TenantQuotaExceeded) as raised:
        bounded.enqueue(**request(99))
    assert raised.value.retry_after in (5, 6)  # one more than there is room for, at 2 in about 10 s

    with pytest.raises(TenantQuotaExceeded) as raised:
        bounded.enqueue_many([request(number) for number in range(100, 103)])
    assert 14 <= raised.value.retry_after <= 17


def test_callers_at_once_pass_it_by_no_more_than_they_are(bounded: Producer, admin: Any) -> None:
    callers = 8
    barrier = threading.Barrier(callers)

    def flood(caller: int) -> int:
        barrier.wait(10)
        taken = 0
        for number in range(LIMIT):
            try:
                bounded.enqueue(**request(100 * caller + number))
            except TenantQuotaExceeded:
                break
            taken += 1
        return taken

    with ThreadPoolExecutor(callers) as pool:
        taken = sum(pool.map(flood, range(callers)))

    assert LIMIT <= taken <= LIMIT + callers - 1
    assert admin.execute("select count(*) from runs").fetchone() == (taken,)


@pytest.mark.parametrize("by", ["sqlalchemy", "psycopg"])
def test_in_a_callers_transaction_only_the_enqueue_is_undone(
    bounded: Producer, settings: Settings, admin: Any, by: str
) -> None:
    fill(bounded, count=LIMIT - 1)
    admin.execute("create table notes (note text); grant all on notes to threadmill_fleet")
    url = connection_info(settings)

    def transact(session: Any, execute: Callable[[str], object]) -> None:
        execute("insert into threadmill.notes values ('kept')")
        bounded.enqueue(**request(90), session=session)
        with pytest.raises(TenantQuotaExceeded):
            bounded.enqueue(**request(91), session=session)
        session.commit()

    if by == "psycopg":
        with psycopg.connect(url) as connection:
            transact(connection, connection.execute)
    else:
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
        with Session(engine) as session:
            transact(session, lambda sql: session.connection().exec_driver_sql(sql))
        engine.dispose()

    assert admin.execute("select count(*) from runs").fetchone() == (LIMIT,)
    assert admin.execute("select count(*) from notes").fetchone() == (1,)


async def test_the_asyncio_producer_is_refused_too(served: None, settings: Settings) -> None:
    async with AsyncProducer(settings.model_copy(update={"max_pending_per_tenant": 1})) as producer:
        await producer.enqueue(**request(0))
        with pytest.raises(TenantQuotaExceeded):
            await producer.enqueue(**request(1))


async def test_a_refusal_that_comes_while_statements_are_still_sent_is_one(
    served: None, settings: Settings, admin: Any
) -> None:
    many = settings.model_copy(update={"max_pending_per_tenant": 5 * AT_ONCE})
    requests = [request(number) for number in range(5 * AT_ONCE + 1)]
    with Producer(many) as producer:
        with pytest.raises(TenantQuotaExceeded):
            producer.enqueue_many(requests)
        assert len(producer.enqueue_many(requests[: AT_ONCE + 1])) == AT_ONCE + 1
    async with AsyncProducer(many) as asyncio_producer:
        with pytest.raises(TenantQuotaExceeded):
            await asyncio_producer.enqueue_many(requests)
        assert len(await asyncio_producer.enqueue_many(requests[: AT_ONCE + 1])) == AT_ONCE + 1

    assert admin.execute("select count(*) from runs").fetchone() == (2 * (AT_ONCE + 1),)


# ---------------------------------------------------------------------------------------------------
# What is remembered, so that not everything is counted each time

DEEP = """
    insert into threads (tenant, thread_id) select 'acme', 'd' || n from generate_series(1, {count}) n;
    insert into runs (id, tenant, thread_id, seq, graph)
        select uuidv7(), 'acme', 'd' || n, 1, 'talk' from generate_series(1, {count}) n;
    set default_statistics_target = 1000;
    analyze;
"""


@pytest.fixture
def deep(served: None, settings: Settings, admin: Any) -> Iterator[Producer]:
    """A producer whose tenant has 500 pending runs and may have 520."""
    admin.execute(DEEP.format(count=500))
    with Producer(settings.model_copy(update={"max_pending_per_tenant": 520})) as producer:
        yield producer


def counts_of(producer: Producer) -> Any:
    return producer._shards.of("acme").quotas._counts


def test_what_is_remembered_lets_nobody_pass(deep: Producer, settings: Settings) -> None:
    with Producer(settings.model_copy(update={"max_pending_per_tenant": 520})) as other:
        taken, remembered = 0, False
        for number in range(40):
            try:
                (deep if number % 2 else other).enqueue(**request(number))
            except TenantQuotaExceeded as refusal:
                assert refusal.pending == 520
            else:
                taken += 1
                remembered |= bool(counts_of(deep) and counts_of(other))
    assert remembered
    assert taken == 20


def test_what_is_remembered_refuses_nobody_for_whom_there_is_room(deep: Producer, admin: Any) -> None:
    deep.enqueue(**request(0))
    assert counts_of(deep)["acme"].known == 500
    admin.execute("update runs set status = 'success', finished_at = now() where thread_id like 'd%'")

    for number in range(1, 60):
        deep.enqueue(**request(number))


def test_what_is_remembered_is_counted_anew_after_a_while(
    deep: Producer, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.execute("update runs set status = 'success', finished_at = now() where thread_id in ('d1', 'd2')")
    deep.enqueue(**request(0))
    monkeypatch.setattr(quotas, "_KNOWN_FOR", 0.0)
    # Runs that come back are not seen by those who count only what is younger.
    admin.execute("update runs set status = 'pending', finished_at = null where thread_id in ('d1', 'd2')")

    with pytest.raises(TenantQuotaExceeded):
        deep.enqueue_many([request(number) for number in range(1, 21)])


def test_whoever_was_refused_at_a_great_depth_is_not_counted_again_at_once(
    deep: Producer, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_MANY", 500)
    monkeypatch.setattr(quotas, "_REFUSED_FOR", 0.5)
    with pytest.raises(TenantQuotaExceeded) as raised:
        deep.enqueue_many([request(number) for number in range(21)])
    admin.execute("delete from runs")

    with pytest.raises(TenantQuotaExceeded) as again:
        deep.enqueue(**request(0))
    assert again.value.args == raised.value.args
    deep.enqueue(**request(0, "globex"))
    time.sleep(0.5)
    deep.enqueue(**request(0))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Of each enqueue how many it has counted; None where it relied upon what was known."""
    counted = []
    learn = quotas.Quotas.learn

    def noting(self: quotas.Quotas, step: Any, row: Any) -> None:
        counted.append(row["tenant_pending"][1])
        learn(self, step, row)

    monkeypatch.setattr(quotas.Quotas, "learn", noting)
    return counted


def test_a_great_depth_is_not_counted_by_each_enqueue(
    served: None, settings: Settings, admin: Any, counted: list[int | None]
) -> None:
    admin.execute(DEEP.format(count=20_000))
    with Producer(settings) as producer:
        for number in range(450):
            producer.enqueue(**request(number))

    # All of them by the first, and again when counting the younger ones each time has cost as much.
    assert [(index, known) for index, known in enumerate(counted) if known is not None] == [
        (0, 20_000),
        (202, 20_202),
        (405, 20_405),
    ]


def test_a_great_depth_is_counted_more_rarely_by_those_who_add_many(
    served: None, settings: Settings, admin: Any, counted: list[int | None]
) -> None:
    admin.execute(DEEP.format(count=20_000))
    with Producer(settings) as producer:
        for number in range(30):
            producer.enqueue_many(request(100 * number + each) for each in range(100))

    assert [(index, known) for index, known in enumerate(counted) if known is not None] == [
        (0, 20_000),
        (22, 22_200),
    ]


def test_few_are_not_counted_by_each_enqueue_either(
    served: None, settings: Settings, counted: list[int | None]
) -> None:
    with Producer(settings) as producer:
        for number in range(80):
            producer.enqueue(**request(number))

    assert [(index, known) for index, known in enumerate(counted) if known is not None] == [(0, 0), (65, 65)]


def test_few_are_counted_where_all_that_may_come_back_meanwhile_would_not_fit(
    served: None, settings: Settings, admin: Any, counted: list[int | None]
) -> None:
    with Producer(settings.model_copy(update={"max_pending_per_tenant": 10_001})) as producer:
        for number in range(3):
            producer.enqueue(**request(number))

    assert counted == [0, 1, 2]
