"""On one thread runs take effect in the order of their seqs, one at a time, whoever enqueues and rings."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from threadmill.core.database import connect
from threadmill.core.doorbell import Bell, Doorbell
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Rows, Step, carry_out_within
from threadmill.core.transitions import claim, lock_thread
from threadmill.core.transitions.enqueue import BELL_LASTS
from threadmill.producers import Producer

GRAPHS = """
    import asyncio, operator, os, threading, time
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]
        spans: Annotated[list[tuple], operator.add]

    async def work(state):
        began = time.monotonic()
        await asyncio.sleep(0.005)
        return {"spans": [(state["texts"][-1], os.getpid(), began, time.monotonic())]}

    started, gate = threading.Event(), threading.Event()

    def hold(state):
        if state["texts"][-1] == "wait":
            started.set()
            assert gate.wait(20)

    work = (
        StateGraph(State).add_node("work", work).add_node("hold", hold)
        .add_edge(START, "work").add_edge("work", "hold")
    )
"""

# Enqueues a list of calls to enqueue_many, as soon as it is told to, and prints the seqs of each.
CALLER = """
import json, sys
from threadmill.core.settings import Settings
from threadmill.producers import Producer

settings, calls = Settings(**json.loads(sys.argv[1])), json.loads(sys.argv[2])
with Producer(settings) as producer:
    producer.list(tenant="acme")
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps([[run.seq for run in producer.enqueue_many(call)] for call in calls]))
"""


def request(text: str, *, tenant: str = "acme", thread_id: str = "t") -> dict[str, Any]:
    return {"graph": "work", "input": {"texts": [text]}, "tenant": tenant, "thread_id": thread_id}


def enqueue_at_once(settings: Settings, *callers: list[list[dict[str, Any]]]) -> list[list[list[int]]]:
    """The seqs that each of several processes got for each of its calls; all begin at the same moment."""
    values = settings.model_dump_json()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CALLER, values, json.dumps(calls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for calls in callers
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        with ThreadPoolExecutor(len(processes)) as pool:
            answers = list(pool.map(lambda process: process.communicate(timeout=30)[0], processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads(answer) for answer in answers]


@pytest.fixture
def doorbell(settings: Settings) -> Iterator[Doorbell]:
    doorbell = Doorbell(settings)
    yield doorbell
    doorbell.close()


@contextmanager
def ringing_in_disorder(doorbell: Doorbell, settings: Settings) -> Iterator[None]:
    """Bells for all runs that wait, the last first, again and again."""
    ended = threading.Event()

    def ring() -> None:
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            while not ended.wait(0.005):
                waiting = connection.execute(
                    "select id, tenant, thread_id, graph from threadmill.runs where status = 'pending'"
                    " order by seq desc"
                ).fetchall()
                doorbell.ring([Bell(*row) for row in waiting])

    with ThreadPoolExecutor(1) as pool:
        ringing = pool.submit(ring)
        try:
            yield
        finally:
            ended.set()
        ringing.result()


def test_twenty_runs_of_four_processes_take_effect_in_order_on_two_workers(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    settings: Settings,
    producer: Producer,
    admin: Any,
    doorbell: Doorbell,
) -> None:
    serve(GRAPHS, work={})
    with ThreadPoolExecutor(2) as pool:
        workers = list(pool.map(lambda _: start_worker(), range(2)))

    with ringing_in_disorder(doorbell, settings):
        seqs = enqueue_at_once(
            settings, *([[request(f"{caller}.{number}")] for number in range(5)] for caller in range(4))
        )
        runs = admin.execute("select id, input from runs order by seq").fetchall()
        done = [producer.wait(run_id, tenant="acme", timeout=40) for run_id, _ in runs]

    assert sorted(seq for caller in seqs for (seq,) in caller) == list(range(1, 21))
    assert [(run.status, run.attempt) for run in done] == [("success", 1)] * 20
    values = producer.state("acme", "t").values
    spans = values["spans"]
    assert values["texts"] == [value["texts"][0] for _, value in runs]
    assert [text for text, *_ in spans] == values["texts"]
    for (_, _, _, ended), (_, _, began, _) in itertools.pairwise(spans):
        assert ended <= began
    assert {pid for _, pid, _, _ in spans} <= {worker.process.pid for worker in workers}
    for caller in seqs:
        assert caller == sorted(caller)


def test_many_threads_and_tenants_from_four_processes_get_dense_seqs_and_no_deadlock(
    serve: Callable[..., None], start_local: Callable[..., Any], settings: Settings, admin: Any
) -> None:
    serve(GRAPHS, work={})
    start_local().stop()
    lanes = [(tenant, f"t{number}") for tenant in ("b", "a", "c") for number in (3, 1, 2, 0)]
    # Every caller names the lanes in an order of its own, some of them twice.
    callers = [
        [
            [
                request(f"{caller}.{call}.{index}", tenant=tenant, thread_id=thread)
                for index, (tenant, thread) in enumerate(
                    [*lanes[caller * 3 + call :], *lanes[: caller * 2 + 4], *reversed(lanes)]
                )
            ]
            for call in range(4)
        ]
        for caller in range(4)
    ]

    answers = enqueue_at_once(settings, *callers)

    given: dict[tuple[str, str], list[int]] = defaultdict(list)
    for calls, seqs in zip(callers, answers, strict=True):
        own: dict[tuple[str, str], list[int]] = defaultdict(list)
        for call, numbers in zip(calls, seqs, strict=True):
            for asked, seq in zip(call, numbers, strict=True):
                own[asked["tenant"], asked["thread_id"]].append(seq)
        for lane, numbers in own.items():
            assert numbers == sorted(numbers), "a caller's runs are in the order in which it asked for them"
            given[lane] += numbers
    for numbers in given.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    stored = admin.execute(
        "select tenant, thread_id, last_seq, (select count(*) from runs r"
        " where (r.tenant, r.thread_id) = (t.tenant, t.thread_id)) from threads t"
    ).fetchall()
    assert {(tenant, thread): (last, count) for tenant, thread, last, count in stored} == {
        lane: (len(numbers), len(numbers)) for lane, numbers in given.items()
    }


WORKERS = """
    insert into workers (id, host, pid, queues, concurrency, versions)
    select gen_random_uuid(), 'h', n, '{}', 100, '{}' from generate_series(1, %s) n
"""


@pytest.fixture
def enlist(serve: Callable[..., None], start_local: Callable[..., Any], admin: Any) -> Callable[[int], None]:
    """Writes down so many workers, none of which hears a bell."""
    serve(GRAPHS, work={})
    start_local().stop()
    return lambda count: admin.execute(WORKERS, [count])


def test_only_the_first_of_a_threads_runs_is_rung_for(
    enlist: Callable[[int], None], producer: Producer, doorbell: Doorbell
) -> None:
    enlist(5)

    producer.enqueue_many([request(str(n), thread_id=thread) for n in range(5) for thread in ("t", "u")])
    producer.enqueue(**request("later"))

    assert doorbell.waiting() == 2


def test_a_tenant_has_no_more_bells_on_their_way_than_there_are_workers(
    enlist: Callable[[int], None], producer: Producer, doorbell: Doorbell
) -> None:
    enlist(3)

    producer.enqueue_many([request("flood", thread_id=f"t{n}") for n in range(20)])
    assert doorbell.waiting() == 3
    producer.enqueue(**request("one more", thread_id="u"))
    assert doorbell.waiting() == 3
    producer.enqueue(**request("another's", tenant="other"))
    assert doorbell.waiting() == 4, "another tenant is not behind them"


def test_bells_that_nobody_has_answered_for_long_keep_no_later_one_from_ringing(
    enlist: Callable[[int], None], producer: Producer, doorbell: Doorbell, admin: Any
) -> None:
    enlist(3)
    producer.enqueue_many([request("lost", thread_id=f"t{n}") for n in range(3)])
    rang = "update runs set dispatched_at = now() - make_interval(secs => %s)"

    admin.execute(rang, [BELL_LASTS - 2])
    producer.enqueue(**request("early", thread_id="u"))
    assert doorbell.waiting() == 3
    admin.execute("delete from runs where thread_id = 'u'")
    admin.execute(rang, [BELL_LASTS + 1])
    producer.enqueue(**request("later", thread_id="v"))
    assert doorbell.waiting() == 4


def test_who_has_others_ready_that_are_not_rung_for_rings_for_no_later_one(
    enlist: Callable[[int], None], producer: Producer, doorbell: Doorbell, admin: Any
) -> None:
    enlist(3)
    producer.enqueue_many([request("flood", thread_id=f"t{n}") for n in range(20)])
    admin.execute("update runs set status = 'running' where dispatched_at is not null")

    producer.enqueue(**request("one more", thread_id="u"))

    assert doorbell.waiting() == 3


def test_a_bell_for_a_run_that_is_not_at_its_threads_head_is_dropped(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer
) -> None:
    serve(GRAPHS, work={})
    worker = start_local()
    first, second = producer.enqueue_many([request("1"), request("2")])

    assert worker.drops(second)
    assert worker.answer(first).result(20) == "success"
    assert worker.drops(first), "it is finished"
    assert worker.answer(second).result(20) == "success"


def test_a_bell_that_names_another_tenant_or_thread_is_dropped(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer
) -> None:
    serve(GRAPHS, work={})
    worker = start_local()
    run = producer.enqueue(**request("1"))
    other = producer.enqueue(**request("1", tenant="globex", thread_id="u"))

    for tenant, thread in (("globex", "t"), ("acme", "u"), ("globex", "u")):
        assert worker.drops(dataclasses.replace(run, tenant=tenant, thread_id=thread))

    assert producer.get(run.id, tenant="acme").status == "pending"
    assert producer.get(other.id, tenant="globex").status == "pending"


def test_a_run_that_ends_while_the_next_is_enqueued_rings_for_it(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    settings: Settings,
    producer: Producer,
    admin: Any,
) -> None:
    serve(GRAPHS, work={})
    worker = start_local(sweep_interval=3600)  # nobody else rings
    worker.listen()
    run = producer.enqueue(**request("wait"))
    assert worker.graphs.started.wait(20)

    with psycopg.connect(settings.database_url) as caller:
        following = producer.enqueue(**request("next"), session=caller)  # it sees that the thread is busy
        worker.graphs.gate.set()
        while not admin.execute("select from pg_locks where not granted").fetchall():
            assert producer.get(run.id, tenant="acme").status == "running", "its end must wait"

    assert producer.wait(following.id, tenant="acme", timeout=10).status == "success"


def test_an_attempt_begins_after_the_run_before_has_ended_by_the_clock_too(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    settings: Settings,
    admin: Any,
) -> None:
    """Where the claim's transaction has begun earlier, as that of who looks for several runs may have."""
    serve(GRAPHS, work={})
    worker = start_local()
    first, second = producer.enqueue_many([request("one"), request("two")])
    with connect(settings) as connection:
        connection.autocommit = False
        connection.execute("select now()")
        assert worker.answer(first).result(20) == "success"
        claimed = {
            "run_id": uuid.UUID(second.id),
            "tenant": "acme",
            "thread_id": "t",
            "worker_id": worker.runtime.worker_id,
            "versions": "{}",
            "alone": False,
        }

        def claims() -> Plan[Rows]:
            lock = Step(lock_thread(), {"tenant": "acme", "thread_id": "t"})
            _, rows = yield Batch([lock, Step(claim(), claimed)])
            return rows

        assert len(carry_out_within(connection, claims())) == 1
        connection.commit()

    query = "select f.finished_at < s.started_at from runs f, runs s where f.id = %s and s.id = %s"
    assert admin.execute(query, [first.id, second.id]).fetchone() == (True,)
