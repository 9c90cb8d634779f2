"""What the pages of threads and tenants read is right, and little, however much the ledger holds."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy.sql import Executable

from threadmill.core.database import connect
from threadmill.core.errors import InvalidOption, ThreadNotFound
from threadmill.core.settings import Settings
from threadmill.core.statement import compiled
from threadmill.dlq.pages import queries
from threadmill.dlq.pages.queries import MOST, Reader

# A tenant with much behind it and nothing to do, and between its threads others that are busy.
LARGE = """
    insert into threads (tenant, thread_id, last_seq)
        select 'big', 'th' || n, 10 from generate_series(0, 1999) n;
    insert into runs (id, tenant, thread_id, seq, graph, status, created_at, finished_at)
        select lpad(to_hex(n), 32, '0')::uuid, 'big', 'th' || n % 2000, n / 2000, 'g' || n % 3, 'error',
            now(), now()
        from generate_series(0, 19999) n;
    insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, reason, error, fingerprint, status)
        select id, id, tenant, thread_id, seq, graph, 'permanent', '{}', 'f', 'resolved' from runs;
    insert into threads (tenant, thread_id, last_seq)
        select 'busy' || n % 40, 'th' || n, 60 from generate_series(0, 79) n;
    insert into runs (id, tenant, thread_id, seq, graph, status)
        select gen_random_uuid(), tenant, thread_id, seq, 'g',
            case seq when 1 then 'running' else 'pending' end
        from threads, generate_series(1, 60) as seq where tenant like 'busy%';
    set default_statistics_target = 1000;
    analyze;
"""
# Pages of Postgres that may be touched for a list of 25 threads with 60 runs each, or for one tenant.
FEW = 3_000
VERY_FEW = 500


@pytest.fixture
def reader(settings: Settings) -> Iterator[Reader]:
    reader = Reader(settings)
    yield reader
    reader.close()


@pytest.fixture
def add_run(admin: Any) -> Any:
    """Writes a run and its thread; returns its id."""

    def add(tenant: str, thread: str, seq: int, status: str, **more: Any) -> uuid.UUID:
        admin.execute("insert into threads values (%s, %s) on conflict do nothing", (tenant, thread))
        run = uuid.uuid4()
        columns = {"id": run, "tenant": tenant, "thread_id": thread, "seq": seq, "graph": "g", **more}
        names = ", ".join([*columns, "status"])
        places = ", ".join(["%s"] * (len(columns) + 1))
        admin.execute(f"insert into runs ({names}) values ({places})", [*columns.values(), status])
        return run

    return add


@pytest.fixture
def add_letter(admin: Any) -> Any:
    def add(run: uuid.UUID, status: str) -> uuid.UUID:
        admin.execute(
            "insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, reason, error, fingerprint,"
            " status) select id, id, tenant, thread_id, seq, graph, 'permanent', '{}', 'f', %s from runs"
            " where id = %s",
            (status, run),
        )
        return run

    return add


def blocks(settings: Settings, statement: Executable, parameters: Mapping[str, Any]) -> int:
    """How many of its pages Postgres looked at to answer."""
    query = compiled(statement)
    with connect(settings) as connection:
        row = connection.execute(
            f"explain (analyze, buffers, format json) {query.sql}", query.bind(parameters)
        ).fetchone()
    assert row is not None
    plan = row["QUERY PLAN"][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_busy_threads_are_paged_by_key_with_their_first_run(reader: Reader, add_run: Any) -> None:
    for tenant, thread in (("a", "1"), ("a", "2"), ("b", "1")):
        add_run(tenant, thread, 1, "success")
        add_run(tenant, thread, 2, "running")
        add_run(tenant, thread, 3, "pending")
    add_run("a", "idle", 1, "success")

    first = reader.busy_threads(limit=2)
    assert [(row["tenant"], row["thread_id"], row["status"], row["unfinished"]) for row in first] == [
        ("a", "1", "running", 2),
        ("a", "2", "running", 2),
    ]
    assert [row["tenant"] for row in reader.busy_threads(after=("a", "2"), limit=2)] == ["b"]
    assert [row["thread_id"] for row in reader.busy_threads(tenant="a")] == ["1", "2"]
    assert [row["thread_id"] for row in reader.busy_threads(tenant="a", after=("a", "1"))] == ["2"]
    assert reader.busy_threads(tenant="aa") == []
    assert reader.busy_threads(tenant="0") == []


def test_a_tenants_numbers_are_its_own(reader: Reader, add_run: Any, add_letter: Any, admin: Any) -> None:
    add_run("a", "1", 1, "running")
    add_run("a", "1", 2, "pending")
    add_run("a", "2", 1, "pending")
    for seq, status in enumerate(("waiting", "parked", "replaying", "resolved", "discarded")):
        add_letter(add_run("b", "1", seq, "error", graph=f"g{seq % 2}"), status)
    admin.execute("insert into limits (kind, name, paused) values ('tenant', 'b', true)")

    rows = {row["tenant"]: row for row in reader.tenants()}
    numbers = {
        tenant: (row["pending"], row["running"], row["failed"], row["is_paused"])
        for tenant, row in rows.items()
    }
    assert numbers == {"a": (2, 1, 0, False), "b": (0, 0, 3, True)}
    assert rows["a"]["oldest"] is not None
    assert rows["b"]["oldest"] is None
    assert [row["tenant"] for row in reader.tenants(after="a")] == ["b"]
    assert [row["tenant"] for row in reader.tenants(limit=1)] == ["a"]


def test_a_threads_runs_come_with_their_attempts_and_letters(
    reader: Reader, add_run: Any, add_letter: Any, admin: Any
) -> None:
    failed = add_letter(add_run("a", "1", 1, "error"), "waiting")
    done = add_run("a", "1", 2, "success")
    admin.execute(
        "insert into attempts (run_id, attempt, tenant, outcome) values (%s, 1, 'a', 'failed')", (failed,)
    )
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id) values ('a', '1', 1, %s)", (failed,)
    )

    thread, held = reader.thread("a", "1")
    assert (thread["thread_id"], [lane["letter_id"] for lane in held]) == ("1", [failed])
    runs, attempts = reader.runs("a", "1")
    assert [(run["id"], run["letter_status"]) for run in runs] == [(done, None), (failed, "waiting")]
    assert {run: [row["outcome"] for row in rows] for run, rows in attempts.items()} == {
        done: [],
        failed: ["failed"],
    }
    assert [run["seq"] for run in reader.runs("a", "1", after="2")[0]] == [1]
    with pytest.raises(ThreadNotFound):
        reader.thread("a", "2")
    with pytest.raises(InvalidOption):
        reader.runs("a", "1", after="x")


def test_a_page_costs_the_same_however_much_has_been_done(settings: Settings, admin: Any) -> None:
    admin.execute(LARGE)
    busy = {"tenant": "", "thread_id": "", "only": None, "limit": 25, "most": MOST}

    assert blocks(settings, queries._BUSY, busy) < FEW
    assert blocks(settings, queries._BUSY, {**busy, "tenant": "big", "only": "big"}) < VERY_FEW
    tenants = {"after": "", "limit": 1, "most": MOST, "graphs": 100}
    assert blocks(settings, queries._TENANTS, tenants) < VERY_FEW
    thread = {"tenant": "big", "thread_id": "th7", "after": None, "limit": 30}
    assert blocks(settings, queries._RUNS, thread) < VERY_FEW
