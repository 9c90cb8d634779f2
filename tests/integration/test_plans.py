"""The statements that run all the time find their rows by an index, however many finished runs there are."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy.sql import Executable

from threadmill.core.database import connect
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST
from threadmill.core.settings import Settings
from threadmill.core.statement import compiled
from threadmill.core.transitions import (
    bind_tenant,
    borrow_tenant,
    bury,
    cancel,
    claim,
    claim_taken,
    expire,
    expire_outputs,
    expired_runs,
    find_by_idempotency_key,
    finished_threads,
    forget_question,
    hold_thread,
    insert_runs,
    keep_newest,
    lock_and_bind,
    lock_thread,
    open_breakers,
    pick_many,
    pick_next,
    prune_thread,
    remove_runs,
    requeue,
    ring,
    roll_back,
    runs_of_worker,
    runs_without_worker,
    set_aside,
    succeed,
    supersede,
    trip,
)
from threadmill.core.transitions.terms import KEEP_PLANS
from threadmill.producers import queries

RUN = uuid.UUID(int=25_001)
LANE = {"tenant": "t1", "thread_id": "th1"}
# 25,000 threads of two runs; of the newer, some are running and some pending. One lane has 300 pending runs.
FILL = """
    insert into threads (tenant, thread_id, last_seq)
        select 't' || n % 500, 'th' || n, 2 from generate_series(0, 24999) n;
    insert into threads (tenant, thread_id, last_seq) values ('deep', 'deep', 300);
    insert into runs (id, tenant, thread_id, seq, graph, input, status, run_at, finished_at, idempotency_key)
        select lpad(to_hex(n), 32, '0')::uuid, 't' || n % 500, 'th' || n % 25000, n / 25000 + 1, 'g',
            to_json(repeat('x', 400)),
            case when n < 25000 then 'success' when n % 250 = 1 then 'pending'
                when n % 250 = 11 then 'running' else 'success' end,
            now() - interval '1 h', now() - interval '1 h', 'k' || n
        from generate_series(0, 49999) n;
    insert into runs (id, tenant, thread_id, seq, graph)
        select gen_random_uuid(), 'deep', 'deep', n, 'g' from generate_series(1, 300) n;
    update runs set rank = run_at where seq = (
            select min(seq) from runs as first
            where (first.tenant, first.thread_id) = (runs.tenant, runs.thread_id) and first.status = 'pending'
        ) and status = 'pending';
    update runs set deadline = now() + interval '1 h' where id > lpad(to_hex(40000), 32, '0')::uuid
        and status = 'pending';
    insert into workers (id, host, pid, queues, concurrency, versions)
        select lpad(to_hex(n), 32, '0')::uuid, 'h', n, '{}', 100, '{}' from generate_series(1, 20) n;
    update runs set worker_id = lpad(to_hex(seq % 20 + 1), 32, '0')::uuid where status = 'running';
    insert into breakers (kind, name, graphs, failures)
        select 'dependency', 'd' || n, array['g'], 1 from generate_series(1, 20) n;
    insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
        select 't' || n % 500 || ':th' || n % 5000, lpad(n::text, 8, '0'), '{"v": 4, "channel_versions": {}}',
            jsonb_build_object('run_id', lpad(to_hex(n), 32, '0')::uuid)
        from generate_series(0, 49999) n;
    insert into checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob)
        select thread_id, checkpoint_id, 't', 0, 'c', '' from checkpoints;
    insert into checkpoint_blobs (thread_id, channel, version, type)
        select thread_id, 'c', checkpoint_id, 'null' from checkpoints;
    insert into dead_letters (id, run_id, tenant, thread_id, graph, reason, error, fingerprint, status,
            next_replay_at)
        select id, id, tenant, thread_id, 'g', 'exhausted', '{}', 'f',
            case substr(thread_id, 4) when '77' then 'waiting' else 'resolved' end, now() + interval '1 h'
        from runs where seq = 1;
    set default_statistics_target = 1000;  -- all rows are looked at: plans are no matter of chance
    analyze;
"""


@pytest.fixture
def plan_of(settings: Settings, admin: Any) -> Iterator[Any]:
    """A statement's plan, as Postgres tells it."""
    admin.execute(FILL)
    with connect(settings) as connection:

        def plan_of(
            statement: Executable, parameters: Mapping[str, Any], tenant: str | None = None
        ) -> dict[str, Any]:
            query = compiled(statement)
            values = {
                name: Jsonb(value) if isinstance(value, dict) else value
                for name, value in query.bind(parameters).items()
            }
            with connection.transaction(force_rollback=True):
                if tenant is not None:
                    bind = compiled(bind_tenant())
                    connection.execute(bind.sql, bind.bind({"tenant": tenant}))
                row = connection.execute(f"explain (format json) {query.sql}", values).fetchone()
            assert row is not None
            plan: dict[str, Any] = row["QUERY PLAN"][0]["Plan"]
            return plan

        yield plan_of


@pytest.fixture
def explain(plan_of: Any) -> Any:
    """The nodes of a statement's plan, as (kind of node, index or table)."""
    return lambda *args: list(nodes(plan_of(*args)))


def nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kind, name = plan["Node Type"], plan.get("Index Name") or plan.get("Relation Name") or ""
    if name.startswith("checkpoint") and "Index" in kind and "thread_id" not in plan.get("Index Cond", ""):
        kind = "Index Scan of all threads"
    yield kind, name
    for part in plan.get("Plans", []):
        yield from nodes(part)


def conditions(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each scan of an index: its name, and by what it looks."""
    if "Index Name" in plan:
        yield plan["Index Name"], plan.get("Index Cond", "")
    for part in plan.get("Plans", []):
        yield from conditions(part)


def of_batch(plan: Any) -> Executable:
    """The statement that a plan sends after it has bound the transaction to a tenant."""
    step = next(plan).steps[1]
    assert isinstance(step.statement, Executable)
    return step.statement


def page(**options: Any) -> Executable:
    everything = {"thread_id": None, "status": None, "graph": None, "limit": 100, "after": None}
    return of_batch(queries.list_runs("t1", **{**everything, **options}))


LARGE = {"threads", "runs", "dead_letters", "checkpoints", "checkpoint_blobs", "checkpoint_writes"}
END = {"run_id": RUN, "attempt": 1, "checkpoint_id": "c", "next_nodes": []}
RECORD = {
    **dict.fromkeys(("cause", "node", "exception_type", "message", "traceback"), "x"),
    "error": {},
    "spent": 1,
    "lost": 0,
}
FAILURE = {
    **RECORD,
    **dict.fromkeys(("reason", "fingerprint", "task"), "x"),
    "letter_id": RUN,
    "exceptions": [],
    "versions": {},
    "replay_in": 1.0,
    "parked": False,
    "hold": False,
    "hold_timeout": None,
}
CLAIMANT = {"worker_id": RUN, "versions": "{}", "alone": False}
READY = """
    insert into runs (id, tenant, thread_id, seq, graph, input, rank)
        select gen_random_uuid(), 't1', 'th' || n, 1, 'g', '{}', now() - random() * interval '1 s'
        from generate_series(1, 500) n
"""
LOOK = {"limit": 50, "patience": 5.0, **FROM_THE_FIRST}
THREAD = {**LANE, "key": "t1:th1"}


def test_the_hot_statements_use_their_indexes(explain: Any) -> None:
    pending = {"runs_unfinished_idx"}
    statements: dict[str, tuple[Executable, dict[str, Any], str | None, set[str]]] = {
        "insert_runs": (
            insert_runs(),
            {"the_tenant": "t1", "runs": "[]", "uncertain": [], "floor": BEGINNING},
            "t1",
            {"threads_pkey", *pending},
        ),
        "lock_thread": (lock_thread(), LANE, None, {"threads_pkey"}),
        "claim": (
            claim(),
            {**LANE, "run_id": RUN, **CLAIMANT},
            None,
            {"runs_unfinished_idx", "threads_pkey", "runs_one_running_per_thread", "workers_pkey"},
        ),
        "claim_taken": (claim_taken(), CLAIMANT, None, {"runs_pkey", "threads_pkey", *pending}),
        "pick_next": (
            pick_next(),
            {**NEXT, "graphs": ["g"]},
            None,
            {"runs_ready_idx", "threads_pkey", "runs_unfinished_idx"},
        ),
        "pick_many": (
            pick_many(),
            {**LOOK, "graphs": ["g"]},
            None,
            {"runs_ready_idx", "threads_pkey", "runs_running_idx"},
        ),
        "succeed": (
            succeed(),
            {**END, "output": {}, "thread_status": "idle", "interrupts": None, "dependencies": ["d1"]},
            None,
            {"runs_pkey", "dead_letters_run_id_key", "threads_pkey", *pending},
        ),
        "requeue": (
            requeue("failed"),
            {**END, **RECORD, "delay": 1.0, "waits": 0.0},
            None,
            {"runs_pkey"},
        ),
        "set_aside": (
            set_aside(),
            {**THREAD, "run_id": RUN, "attempt": 1},
            None,
            {"checkpoints_pkey", "threads_pkey", "dead_letters_run_id_key"},
        ),
        "expire": (expire(), {**END, **FAILURE}, None, {"runs_pkey", "threads_pkey", *pending}),
        "bury": (bury(), {**END, **FAILURE}, None, {"runs_pkey", "threads_pkey", *pending}),
        "cancel": (
            cancel(),
            {"run_id": RUN, "action": "rollback", "error": {}, "cause": "x"},
            "t1",
            {
                "runs_pkey",
                "threads_pkey",
                "runs_tenant_thread_id_seq_key",
                "dead_letters_run_id_key",
                *pending,
            },
        ),
        "supersede": (
            supersede(),
            {
                "the_tenant": "t1",
                "thread_ids": ["th1"],
                "actions": ["rollback"],
                "keys": ["k"],
                "errors": ["{}"],
                "causes": ["x"],
            },
            "t1",
            {"runs_pkey", "runs_idempotency_key", "threads_pkey", "dead_letters_run_id_key", *pending},
        ),
        "roll_back": (
            roll_back(),
            THREAD,
            "t1",
            {"checkpoints_pkey", "checkpoint_writes_pkey", "checkpoint_blobs_pkey"},
        ),
        "forget_question": (
            forget_question(),
            THREAD,
            "t1",
            {"checkpoints_pkey", "checkpoint_writes_pkey", "threads_pkey"},
        ),
        "ring": (ring(), LOOK, None, {"runs_ready_idx", "runs_running_idx", "runs_rung_idx", "runs_pkey"}),
        "get": (of_batch(queries.get(RUN, "t1")), {"run_id": RUN}, "t1", {"runs_pkey"}),
        "list": (page(), {}, "t1", {"runs_tenant_id_idx"}),
        "list, next page": (page(after=str(RUN)), {}, "t1", {"runs_tenant_id_idx"}),
        "list of a thread": (page(thread_id="th1"), {}, "t1", {"runs_tenant_thread_id_seq_key"}),
        "find_by_idempotency_key": (
            find_by_idempotency_key(),
            {"tenant": "t1", "idempotency_key": "k1"},
            "t1",
            {"runs_idempotency_key"},
        ),
        "runs_of_worker": (
            runs_of_worker(),
            {"worker_id": RUN, "since": BEGINNING},
            None,
            {"runs_worker_idx"},
        ),
        "runs_without_worker": (runs_without_worker(), {"limit": 500}, None, {"runs_worker_idx"}),
        "expired_runs": (expired_runs(), {"limit": 500}, None, {"runs_deadline_idx"}),
        "trip": (
            trip(),
            {"kind": "graph", "name": "g", "graph": "g", "threshold": 3, "cooldown": 1.0, "reason": "x"},
            None,
            set(),
        ),
        "open_breakers": (open_breakers(), {}, None, set()),
        "expire_outputs": (expire_outputs(), {"ttl": 86400.0, "limit": 1000}, None, {"runs_pkey"}),
        "remove_runs": (
            remove_runs(),
            {"after": None, "ttl": 60.0, "limit": 200},
            None,
            {"runs_finished_idx", "runs_pkey", "dead_letters_run_id_key"},
        ),
        "finished_threads": (
            finished_threads(),
            {"graph": "g", "after": None, "ttl": 60.0, "limit": 200},
            None,
            {"runs_finished_idx"},
        ),
        "hold_thread": (hold_thread(), LANE, None, {"threads_pkey"}),
        "prune_thread": (
            prune_thread(),
            {**THREAD, "ttl": 0.0},
            None,
            {
                "runs_tenant_thread_id_seq_key",
                "dead_letters_run_id_key",
                "checkpoints_pkey",
                "checkpoint_writes_pkey",
                "checkpoint_blobs_pkey",
            },
        ),
        "keep_newest": (
            keep_newest(),
            {**THREAD, "run_id": RUN, "attempt": 1, "keep": 1},
            None,
            {
                "runs_pkey",
                "runs_tenant_thread_id_seq_key",
                "dead_letters_lane_idx",
                "dead_letters_run_id_key",
                "checkpoints_pkey",
                "checkpoint_writes_pkey",
                "checkpoint_blobs_pkey",
                *pending,
            },
        ),
    }

    for name, (statement, parameters, tenant, expected) in statements.items():
        plan = explain(statement, parameters, tenant)
        indexes = {index for kind, index in plan if "Index" in kind}
        scanned = {table for kind, table in plan if kind == "Seq Scan"} & LARGE
        assert scanned == set(), f"{name} reads a whole table: {plan}"
        assert "Index Scan of all threads" not in {kind for kind, _ in plan}, f"{name}: {plan}"
        assert expected <= indexes, f"{name}: {plan}"


def test_a_claim_looks_at_its_own_thread_alone_though_all_was_quiet_when_it_was_analysed(
    plan_of: Any, admin: Any
) -> None:
    admin.execute("delete from runs where id > lpad(to_hex(500), 32, '0')::uuid")
    admin.execute("update runs set status = 'success', rank = null")
    admin.execute("vacuum analyze")
    admin.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, rank)"
        " select gen_random_uuid(), tenant, thread_id, last_seq + 1, 'g', now() from threads limit 5000"
    )

    statements: dict[str, tuple[Executable, dict[str, Any]]] = {
        "claim": (claim(), {**LANE, "run_id": RUN, **CLAIMANT}),
        "claim_taken": (claim_taken(), CLAIMANT),
        "requeue": (requeue("failed"), {**END, **RECORD, "delay": 1.0, "waits": 0.0}),
    }
    for name, (statement, parameters) in statements.items():
        looked = [
            (index, condition)
            for index, condition in conditions(plan_of(statement, parameters))
            if index in ("runs_unfinished_idx", "held_lanes_pkey")
        ]
        assert looked, f"{name}: {looked}"
        assert all("thread_id" in condition for _, condition in looked), f"{name}: {looked}"


def test_a_claim_does_not_look_at_all_that_is_running(plan_of: Any, admin: Any) -> None:
    # The planner takes the index of what is running that it believes to be smallest: here there is one.
    admin.execute("drop index runs_one_running_per_thread")

    for statement, parameters in ((claim(), {**LANE, "run_id": RUN, **CLAIMANT}), (claim_taken(), CLAIMANT)):
        found = list(conditions(plan_of(statement, parameters)))
        assert ("runs_unfinished_idx", "((tenant = runs.tenant) AND (thread_id = runs.thread_id))") in found
        assert "runs_worker_idx" not in {index for index, _ in found}


END = {"run_id": RUN, "attempt": 1, "output": {}, "checkpoint_id": "c", "thread_status": "idle"} | {
    "interrupts": None, "next_nodes": [], "dependencies": []
}  # fmt: skip
NEXT = {**LANE, "graphs": ["g", "h"], "floor": BEGINNING, "patience": 5.0}


def test_what_a_run_costs_is_planned_once_however_the_tables_grow(settings: Settings, admin: Any) -> None:
    admin.execute("insert into threads (tenant, thread_id) values ('t1', 'own')")
    lane = {"tenant": "t1", "thread_id": "own"}
    take = (claim_taken(), CLAIMANT)
    transactions: list[list[tuple[Executable, dict[str, Any]]]] = [
        [(lock_and_bind(), lane), (claim(), {**lane, "run_id": RUN, **CLAIMANT})],
        [(lock_and_bind(), lane), (succeed(), END), (pick_next(), NEXT), take],
        [(pick_many(), {**LOOK, "graphs": ["g", "h"]}), take],
    ]
    with connect(settings) as connection:

        def live() -> None:
            for steps in transactions * 20:
                with connection.transaction():
                    for statement, parameters in steps:
                        query = compiled(statement)
                        connection.execute(query.sql, query.bind(parameters), prepare=True)

        live()
        admin.execute(FILL)
        live()
        found = connection.execute("select statement, custom_plans from pg_prepared_statements").fetchall()

    def custom_plans(mark: str) -> list[int]:
        return [row["custom_plans"] for row in found if mark in row["statement"]]

    assert custom_plans("SET graph_version") == [0, 0], "claim and claim_taken"
    assert custom_plans("SET status='success'") == [0]
    assert custom_plans("as served(graph)") == [0], "pick_next"


YOUNG = """
    insert into threads (tenant, thread_id, last_seq)
        select 't1', 'th' || n, 1 from generate_series(1, 50) n;
    insert into runs (id, tenant, thread_id, seq, graph, input, rank)
        select gen_random_uuid(), 't1', 'th' || n, 1, 'g', '{}', now() from generate_series(1, 50) n;
"""


@pytest.mark.parametrize("ledger", ["new", "young", "filled", "quiet"])
def test_the_plans_that_are_kept_find_their_rows_by_keys(admin: Any, ledger: str) -> None:
    admin.execute(FILL if ledger in ("filled", "quiet") else YOUNG)
    if ledger == "new":  # one has been rung for
        admin.execute("update runs set dispatched_at = now() where thread_id = 'th1'")
    admin.execute(f"select {KEEP_PLANS}".replace("true", "false").encode())  # for the session
    if ledger == "young":
        admin.execute("analyze")
    if ledger == "quiet":
        admin.execute("update runs set status = 'success', rank = null")
        admin.execute("vacuum analyze runs")
    for statement in (
        claim(),
        claim_taken(),
        succeed(),
        pick_next(),
        insert_runs(),
        keep_newest(),
        supersede(),
    ):
        query = compiled(statement)
        row = admin.execute(f"explain (generic_plan, format json) {query.numbered}".encode()).fetchone()
        plan = row[0][0]["Plan"]
        read_whole = {name for kind, name in nodes(plan) if kind == "Seq Scan"}
        assert read_whole <= {"limits", "breakers", "workers", "held_lanes", "dead_letters"}
        ready = [condition for index, condition in conditions(plan) if index == "runs_ready_idx"]
        assert all("tenant" in condition and "graph" in condition for condition in ready)
        unfinished = [condition for index, condition in conditions(plan) if index == "runs_unfinished_idx"]
        assert all("thread_id" in condition for condition in unfinished), (
            f"of the whole tenant: {query.sql[:300]}"
        )
        of_tenant = {
            index
            for index, condition in conditions(plan)
            if condition.startswith("(tenant = ") and " AND " not in condition
        }
        # What ends a thread's runs for a newer one reads these of a tenant while a ledger is small, and until
        # its tables are analysed again.
        small = ledger in ("new", "young") and statement is supersede()
        allowed = {"runs_tenant_id_idx", "runs_idempotency_key"} if small else set()
        assert {index for index in of_tenant if index.startswith("runs_")} <= allowed, "of the whole tenant"


@pytest.mark.parametrize(
    ("statement", "parameters", "began", "few"),
    [
        (pick_next(), NEXT, ("floor",), 30),
        (pick_many(), {**LOOK, "graphs": ["g"]}, ("floor", "since"), 60),
        (ring(), LOOK, ("floor", "since"), 120),
        (runs_of_worker(), {"worker_id": RUN}, ("since",), 10),
    ],
    ids=["pick_next", "pick_many", "ring", "runs_of_worker"],
)
def test_a_look_that_goes_on_does_not_read_what_was_started_since_a_transaction_is_held_open(
    settings: Settings,
    admin: Any,
    statement: Executable,
    parameters: dict[str, Any],
    began: Sequence[str],
    few: int,
) -> None:
    """began: the parameters that say from when on it looks. few: no more pages are read then."""

    def pages(moment: datetime.datetime) -> int:
        query = compiled(statement)
        look = query.bind({**parameters, **dict.fromkeys(began, moment)})
        explain = f"explain (analyze, buffers, format json) {query.sql}".encode()
        with connect(settings) as connection, connection.transaction(force_rollback=True):
            # As on a ledger that is larger than this one.
            connection.execute("set local enable_seqscan = off; set local enable_bitmapscan = off")
            row: Any = connection.execute(explain, look).fetchone()
        return int(row["QUERY PLAN"][0]["Plan"]["Shared Hit Blocks"])

    with connect(settings) as held, held.transaction():
        held.execute("set transaction isolation level repeatable read")
        held.execute("select 1")
        admin.execute(
            "insert into threads (tenant, thread_id) select 't1', 'th' || n from generate_series(1, 500) n"
        )
        admin.execute(READY)
        for change in ("status = 'pending'", "status = 'running', worker_id = %s"):
            moment = "dispatched_at = now() - random() * interval '1 s'"
            admin.execute(f"update runs set {change}, {moment}".encode(), [RUN] if "%s" in change else [])
        admin.execute("update runs set status = 'success', rank = null")
        admin.execute("insert into threads (tenant, thread_id) values ('t1', 'next'), ('t2', 'next')")
        admin.execute(
            "insert into runs (id, tenant, thread_id, seq, graph, rank)"
            " select gen_random_uuid(), tenant, 'next', 1, 'g', now() from threads where thread_id = 'next'"
        )
        (now,) = admin.execute("select min(rank) from runs").fetchone()

        assert pages(BEGINNING) > 300 + few
        assert pages(now) < few


def test_a_deep_lane_costs_a_sweep_no_more_than_a_glance(
    settings: Settings, explain: Any, admin: Any
) -> None:
    sweep = compiled(ring())
    with connect(settings) as connection, connection.transaction(force_rollback=True):
        connection.execute(  # so many that the bells of a tenant suffice for all that it has
            "insert into workers (id, host, pid, queues, concurrency, versions)"
            " select gen_random_uuid(), 'h', 1, '{}', 100, '{}' from generate_series(1, 100)"
        )
        rung = connection.execute(sweep.sql, sweep.bind({**LOOK, "limit": 1000})).fetchall()

    assert len(rung) == 101  # one of each pending thread, and the head of the deep one
    assert [row["thread_id"] for row in rung].count("deep") == 1


@pytest.mark.usefixtures("explain")
def test_keeping_a_thread_short_reads_what_is_the_threads_own(settings: Settings) -> None:
    """By the generic plan, as a connection has it prepared."""
    where = {"tenant": "t2", "thread_id": "th2", "key": "t2:th2"}
    parameters = {**where, "run_id": uuid.UUID(int=25_002), "attempt": 1, "keep": 2}
    bind = compiled(borrow_tenant())
    query = compiled(keep_newest()).sql.replace("%%", "%")
    for number, name in enumerate(parameters, start=1):
        query = query.replace(f"%({name})s", f"${number}")
    values = sql.SQL(", ").join(map(sql.Literal, parameters.values()))
    with connect(settings) as connection, connection.transaction(force_rollback=True):
        connection.execute(bind.sql, bind.bind({"tenant": "t2"}))
        connection.execute(
            "update runs set finished_at = now(), attempt = 1 where id = %s", (parameters["run_id"],)
        )
        connection.execute("set local plan_cache_mode = force_generic_plan")
        connection.execute(f"prepare keep as {query}".encode())
        row: Any = connection.execute(
            sql.SQL("explain (analyze, format json) execute keep({})").format(values)
        ).fetchone()
        left: Any = connection.execute(
            "select count(*) as number from checkpoints where thread_id = 't2:th2'"
        ).fetchone()

    assert left["number"] == 2
    most = {"checkpoints": 10, "checkpoint_writes": 10, "checkpoint_blobs": 10, "runs": 2, "dead_letters": 1}
    for node in scans(row["QUERY PLAN"][0]["Plan"]):
        table = node["Relation Name"]
        assert node["Node Type"] != "Seq Scan" or table not in LARGE, node
        if table in most:
            removed = sum(number for key, number in node.items() if key.startswith("Rows Removed by"))
            # What a nested loop looks up by its key it looks up once for each row that goes.
            read = node["Actual Rows"] + removed
            assert read <= most[table], node
            assert node["Actual Loops"] <= 10, node


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Relation Name" in plan and "Scan" in plan["Node Type"] and plan["Actual Loops"]:
        yield plan
    for part in plan.get("Plans", []):
        yield from scans(part)
