"""One process sweeps at a time; it rings for what should have started, and never without bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import structlog

from threadmill.core.database import connect
from threadmill.core.doorbell import Doorbell
from threadmill.core.settings import Settings
from threadmill.producers import Producer, Run
from threadmill.workers import sweeper as sweeper_module
from threadmill.workers.herald import Herald
from threadmill.workers.sweeper import Sweeper

GRAPHS = """
    import operator
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        said: Annotated[list[str], operator.add]

    talk = StateGraph(State).add_node("say", lambda state: {"said": ["said"]}).add_edge(START, "say")
"""
HOLDERS = "select pid from pg_locks where locktype = 'advisory' and granted and database = " + (
    "(select oid from pg_database where datname = current_database())"
)


@pytest.fixture
def enqueue(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer
) -> Callable[..., list[Run]]:
    """Enqueues runs, by default each on a thread of its own; no worker and no leader is left."""
    serve(GRAPHS, talk={})
    start_local().stop()

    def enqueue(number: int, **options: Any) -> list[Run]:
        return producer.enqueue_many(
            {
                "graph": "talk",
                "input": {"said": ["hi"]},
                "tenant": "acme",
                "thread_id": f"t{n}",
                **options,
            }
            for n in range(number)
        )

    return enqueue


def never_holds(graph: str) -> bool:
    return False


@pytest.fixture
def lead(settings: Settings) -> Iterator[Callable[..., Sweeper]]:
    """Starts sweepers as worker processes do; they are stopped at the end."""
    started: list[tuple[Sweeper, Herald, Doorbell]] = []

    def start(**overrides: Any) -> Sweeper:
        quick = {"sweep_interval": 0.05, "ring_again_after": 0.2, **overrides}
        bell = Doorbell(settings)
        herald = Herald(settings, bell)
        herald.start()
        started.append((Sweeper(settings.model_copy(update=quick), bell, herald, never_holds), herald, bell))
        started[-1][0].start()
        return started[-1][0]

    yield start
    for sweeper, herald, bell in started:
        sweeper.stop()
        herald.stop()
        bell.close()


@pytest.fixture
def sweep(settings: Settings, doorbell: Doorbell) -> Iterator[Callable[..., None]]:
    """One sweep of a leader, now."""
    with connect(settings) as connection:

        def once(doorbell: Doorbell = doorbell, **overrides: Any) -> None:
            sweeper = Sweeper(
                settings.model_copy(update=overrides), doorbell, Herald(settings, doorbell), never_holds
            )
            sweeper._sweep(connection)

        yield once


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    ends_at = time.monotonic() + 10
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


def holders(admin: psycopg.Connection[Any]) -> list[int]:
    return [pid for (pid,) in admin.execute(HOLDERS).fetchall()]


# ---------------------------------------------------------------------------------------------------
# Who leads


def test_of_several_sweepers_one_leads_and_rings_for_lost_bells(
    enqueue: Callable[..., list[Run]],
    lead: Callable[..., Sweeper],
    lose_bells: Callable[[], None],
    doorbell: Doorbell,
    admin: Any,
) -> None:
    enqueue(5)
    lose_bells()

    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            lead(ring_again_after=0.3)
        assert eventually(lambda: doorbell.waiting() >= 5)

    assert len(holders(admin)) == 1
    assert [line["event"] for line in logs if line["event"] == "sweeper.leads"] == ["sweeper.leads"]


def test_another_leads_when_the_leaders_connection_ends(
    enqueue: Callable[..., list[Run]],
    lead: Callable[..., Sweeper],
    lose_bells: Callable[[], None],
    doorbell: Doorbell,
    admin: Any,
) -> None:
    lead(), lead()
    assert eventually(lambda: len(holders(admin)) == 1)
    (first,) = holders(admin)

    admin.execute("select pg_terminate_backend(%s, 5000)", (first,))

    assert eventually(lambda: len(holders(admin)) == 1)
    assert holders(admin) != [first]
    enqueue(3)
    lose_bells()
    assert eventually(lambda: doorbell.waiting() >= 3)


def test_another_leads_when_the_leader_stops(lead: Callable[..., Sweeper], admin: Any) -> None:
    first = lead()
    assert eventually(lambda: len(holders(admin)) == 1)
    (before,) = holders(admin)
    lead()

    first.stop()

    assert eventually(lambda: len(holders(admin)) == 1 and holders(admin) != [before])


def test_a_notice_that_is_no_bell_does_not_end_the_leader(
    enqueue: Callable[..., list[Run]],
    lead: Callable[..., Sweeper],
    lose_bells: Callable[[], None],
    doorbell: Doorbell,
    admin: Any,
) -> None:
    sweeper = lead()
    assert eventually(lambda: len(holders(admin)) == 1)

    for payload in ("", "no bell", '["x"]', '["x", "a", "b", "c"]'):
        admin.execute("select pg_notify('threadmill_doorbell', %s)", (payload,))
    enqueue(3)
    lose_bells()

    assert eventually(lambda: doorbell.waiting() >= 3)
    assert sweeper._thread.is_alive()


# ---------------------------------------------------------------------------------------------------
# For whom it rings


def test_a_bell_counts_as_lost_after_a_while(
    enqueue: Callable[..., list[Run]],
    sweep: Callable[..., None],
    lose_bells: Callable[[], None],
    doorbell: Doorbell,
    admin: Any,
) -> None:
    enqueue(3)
    lose_bells()

    sweep()
    assert doorbell.waiting() == 0
    admin.execute("update runs set dispatched_at = now() - interval '6 s'")
    sweep()
    assert doorbell.waiting() == 3
    sweep()
    assert doorbell.waiting() == 3


def test_it_does_not_ring_for_what_could_not_start(
    enqueue: Callable[..., list[Run]],
    sweep: Callable[..., None],
    lose_bells: Callable[[], None],
    doorbell: Doorbell,
    admin: Any,
) -> None:
    head, *_ = enqueue(3, thread_id="lane")
    enqueue(1, thread_id="running")
    enqueue(1, thread_id="later")
    enqueue(1, thread_id="held")
    enqueue(1, tenant="paused")
    enqueue(1, thread_id="done")
    admin.execute("update runs set dispatched_at = null")
    for statement in (
        "insert into workers (id, host, pid, queues, concurrency, versions)"
        " values (gen_random_uuid(), 'h', 1, '{}', 100, '{}')",
        "update runs set status = 'running', worker_id = (select id from workers where host = 'h')"
        " where thread_id = 'running'",
        "update runs set run_at = now() + interval '1 h' where thread_id = 'later'",
        "insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, reason, error, fingerprint)"
        " select id, id, tenant, thread_id, 0, graph, 'permanent', '{}', 'f' from runs"
        " where thread_id = 'held'",
        "insert into held_lanes (tenant, thread_id, seq, letter_id)"
        " select tenant, thread_id, seq, id from dead_letters",
        "update runs set rank = null where thread_id = 'held'",
        "insert into limits (kind, name, paused) values ('tenant', 'paused', true)",
        "update runs set status = 'success' where thread_id = 'done'",
    ):
        admin.execute(statement)
    lose_bells()

    sweep()

    assert doorbell.waiting() == 1
    rung = admin.execute("select id::text from runs where dispatched_at is not null").fetchall()
    assert rung == [(head.id,)]


def test_a_backlog_is_rung_for_up_to_a_bound(
    enqueue: Callable[..., list[Run]],
    sweep: Callable[..., None],
    lose_bells: Callable[[], None],
    doorbell: Doorbell,
    monkeypatch: pytest.MonkeyPatch,
    admin: Any,
) -> None:
    monkeypatch.setattr(sweeper_module, "MAX_WAITING_BELLS", 10)
    admin.execute(
        "insert into workers (id, host, pid, queues, concurrency, versions)"
        " select gen_random_uuid(), 'h', 1, '{}', 100, '{}' from generate_series(1, 20)"
    )
    enqueue(40)
    lose_bells()

    for _ in range(10):
        sweep(ring_again_after=1e-9)
        assert doorbell.waiting() == 10
    lose_bells()
    sweep(ring_again_after=1e-9)
    assert doorbell.waiting() == 10


def test_while_the_broker_is_away_nothing_counts_as_rung(
    enqueue: Callable[..., list[Run]], sweep: Callable[..., None], settings: Settings, admin: Any
) -> None:
    enqueue(2)
    admin.execute("update runs set dispatched_at = null")
    away = Doorbell(settings.model_copy(update={"broker_url": "redis+socket:///nowhere/redis.sock"}))
    started = time.monotonic()

    sweep(away)

    away.close()
    assert time.monotonic() - started < 2
    assert admin.execute("select count(*) from runs where dispatched_at is null").fetchone() == (2,)


def test_outputs_are_forgotten_after_their_time(
    enqueue: Callable[..., list[Run]], sweep: Callable[..., None], producer: Producer, admin: Any
) -> None:
    old, fresh = enqueue(2)
    admin.execute("update runs set status = 'success', finished_at = now(), output = '{\"said\": []}'")
    admin.execute("update runs set finished_at = now() - interval '25 h' where id = %s", (old.id,))

    sweep()

    assert producer.get(old.id, tenant="acme").output is None
    assert producer.get(fresh.id, tenant="acme").output == {"said": []}


# ---------------------------------------------------------------------------------------------------
# Who is frozen in the midst of a transaction


@pytest.mark.parametrize("pipelined", [True, False])
def test_a_lane_that_a_frozen_worker_has_locked_is_freed_and_its_run_rescued(
    enqueue: Callable[..., list[Run]],
    lead: Callable[..., Sweeper],
    settings: Settings,
    admin: Any,
    pipelined: bool,
) -> None:
    runs = enqueue(2)
    admin.execute("update runs set status = 'running', attempt = 1, worker_id = gen_random_uuid()")
    with connect(settings) as frozen:
        if pipelined:  # a part of a transaction has come, and nothing follows
            frozen.pgconn.enter_pipeline_mode()
            frozen.pgconn.send_query_params(b"select from threads for update", None)
            frozen.pgconn.send_flush_request()
            frozen.pgconn.flush()
        else:
            frozen.execute("begin; select from threads for update")

        lead(heartbeat_interval=0.1, heartbeat_timeout=0.6)

        def rescued() -> bool:
            return all(
                admin.execute("select status, worker_losses from runs where id = %s", [run.id]).fetchone()
                == ("pending", 1)
                for run in runs
            )

        assert eventually(rescued)
        frozen.pgconn.finish()
