"""What the replay worker asks all the time finds its rows by an index, however many letters there are."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy.sql import Executable

from threadmill.core.database import connect
from threadmill.core.settings import Settings
from threadmill.core.statement import compiled
from threadmill.core.transitions import (
    groups_due,
    lease_groups,
    letters_due,
    lock_threads,
    outcomes,
    park_group,
    renew_groups,
    settle_group,
    under_way,
)

ME = uuid.UUID(int=7)
# 60,000 letters: 40 groups, of which the first is half of them; 300 tenants; few are being replayed.
FILL = """
    alter table dead_letters disable trigger all;
    insert into threads (tenant, thread_id, last_seq)
        select 't' || n % 300, 'th' || n, 2 from generate_series(0, 59999) n;
    insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, reason, error, fingerprint, status,
            next_replay_at)
        select lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 't' || n % 300, 'th' || n, 1,
            'g', 'exhausted', '{}',
            case when n % 2 = 0 then 'f00' else 'f' || lpad((n % 40)::text, 2, '0') end,
            case n % 1000 when 0 then 'replaying' when 3 then 'resolved' else 'waiting' end,
            case when n % 1000 in (0, 3) then null else now() + make_interval(secs => n % 60 - 30) end
        from generate_series(0, 59999) n;
    alter table dead_letters enable trigger all;
    insert into replay_groups (fingerprint, graph, "window")
        select distinct fingerprint, 'g', 1000 from dead_letters;
    update replay_groups set drainer = lpad('7', 32, '0')::uuid, drainer_until = now() + interval '1 h'
        where fingerprint = 'f00';
    set default_statistics_target = 1000;  -- all rows are looked at: plans are no matter of chance
    analyze;
"""
LOOK = {"fingerprint": "f00", "drainer": ME, "most": 1000, "after": "t150", "tenants": 200}
LARGE = {"dead_letters", "threads", "runs"}


@pytest.fixture
def explain(settings: Settings, admin: Any) -> Iterator[Callable[..., Any]]:
    """The nodes of a statement's plan, as (kind of node, index or table, its condition)."""
    admin.execute(FILL)
    with connect(settings) as connection:

        def explain(statement: Executable, parameters: Mapping[str, Any]) -> list[tuple[str, str, str]]:
            query = compiled(statement)
            with connection.transaction(force_rollback=True):
                row = connection.execute(
                    f"explain (format json) {query.sql}", query.bind(parameters)
                ).fetchone()
            assert row is not None
            return list(nodes(row["QUERY PLAN"][0]["Plan"]))

        yield explain


def nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    name = plan.get("Index Name") or plan.get("Relation Name") or ""
    yield plan["Node Type"], name, plan.get("Index Cond", "")
    for part in plan.get("Plans", []):
        yield from nodes(part)


def test_the_drains_statements_use_their_indexes(explain: Any) -> None:
    statements: dict[str, tuple[Executable, dict[str, Any], set[str]]] = {
        "groups_due": (
            groups_due(),
            {"fingerprint": "", "tenant": "", "limit": 1000},
            {"dead_letters_due_idx"},
        ),
        "lease_groups": (
            lease_groups(),
            {"fingerprints": ["f00"], "drainer": ME, "lease": 10.0, "stale": 10.0},
            {"replay_groups_pkey"},
        ),
        "settle_group": (
            settle_group(),
            {"fingerprint": "f00", "drainer": ME, "window": 1, "backoffs": 1, "strays": 0, "rest": 1.0},
            {"replay_groups_pkey"},
        ),
        "under_way": (under_way(), {"fingerprints": ["f00"]}, {"dead_letters_group_idx"}),
        "outcomes": (outcomes(), {"letter_ids": [ME]}, {"dead_letters_pkey"}),
        "letters_due": (
            letters_due(),
            LOOK,
            {
                "dead_letters_due_idx",
                "dead_letters_lane_idx",
                "dead_letters_pkey",
                "held_lanes_pkey",
            },
        ),
        "lock_threads": (lock_threads(), {"tenants": ["t1"], "thread_ids": ["th1"]}, {"threads_pkey"}),
        "park_group": (
            park_group(),
            {"fingerprint": "f00", "limit": 1000, "by": "drain", "reason": "x"},
            {"dead_letters_due_idx"},
        ),
        "renew_groups": (renew_groups(), {"letter_ids": [ME]}, {"dead_letters_pkey"}),
    }

    for name, (statement, parameters, expected) in statements.items():
        plan = explain(statement, parameters)
        scanned = {table for kind, table, _ in plan if kind == "Seq Scan"} & LARGE
        assert scanned == set(), f"{name} reads a whole table: {plan}"
        assert expected <= {index for kind, index, _ in plan if "Index" in kind}, f"{name}: {plan}"
        unbounded = [
            index for _, index, condition in plan if index == "dead_letters_due_idx" and not condition
        ]
        assert not unbounded, f"{name} reads the whole of an index: {plan}"


def test_a_look_at_a_large_group_takes_moments(settings: Settings, explain: Any) -> None:
    took = {}
    with connect(settings) as connection:
        for name, statement, parameters in (
            ("groups", groups_due(), {"fingerprint": "", "tenant": "", "limit": 1000}),
            ("letters", letters_due(), {**LOOK, "most": 94}),
        ):
            query = compiled(statement)
            times = []
            for _ in range(7):
                began = time.perf_counter()
                rows = connection.execute(query.sql, query.bind(parameters), prepare=True).fetchall()
                times.append(time.perf_counter() - began)
            took[name] = min(times)
            assert rows
    assert len({row["id"] for row in rows}) == 34, "60 of 94 are under way"
    assert len({row["tenant"] for row in rows}) == 34, "one of each tenant"
    assert took["groups"] < 0.1, took
    assert took["letters"] < 0.1, took


# 12,000 letters of two tenants, two of each thread; all are due, those of a thread one after the other.
FEW_TENANTS = """
    alter table dead_letters disable trigger all;
    insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, reason, error, fingerprint, status,
            next_replay_at)
        select lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 't' || n % 2,
            'th' || n % 6000, 1 + n / 6000, 'g' || n / 2 % 2, 'exhausted', '{}', 'f', 'waiting',
            now() - interval '1 h' + make_interval(secs => n)
        from generate_series(0, 11999) n;
    alter table dead_letters enable trigger all;
    insert into replay_groups (fingerprint, "window", drainer, drainer_until)
        values ('f', 1000, lpad('7', 32, '0')::uuid, now() + interval '1 h');
    set default_statistics_target = 1000;
    analyze;
"""


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
def test_a_look_at_few_tenants_reads_no_more_of_their_letters_than_there_is_room_for(
    settings: Settings, admin: Any, plan: str
) -> None:
    admin.execute(FEW_TENANTS)
    query = compiled(letters_due())
    look = query.bind({**LOOK, "fingerprint": "f", "most": 20, "after": ""})
    with connect(settings) as connection:
        connection.execute("select set_config('plan_cache_mode', %s, false)", [plan])
        for _ in range(2):
            row = connection.execute(
                f"explain (analyze, buffers, format json) {query.sql}", look, prepare=True
            ).fetchone()
    assert row is not None
    found = row["QUERY PLAN"][0]["Plan"]

    assert found["Actual Rows"] == 20
    assert found["Shared Hit Blocks"] + found["Shared Read Blocks"] < 1000, row
