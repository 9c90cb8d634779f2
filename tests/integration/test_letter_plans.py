"""Each filter is read by the index that is made for it, however little the planner knows."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from threadmill.core.database import connect
from threadmill.core.settings import Settings
from threadmill.core.statement import Step, compiled
from threadmill.dlq import groups, stats, walk
from threadmill.dlq.detail import list_held_lanes, read_detail
from threadmill.dlq.filter import EVERYWHERE, NOWHERE
from threadmill.dlq.walk import Shape

# 30,000 letters in 30 spans of time: half of them of one tenant, which has no parked one.
FILL = """
    insert into dead_letters (id, tenant, thread_id, graph, node, exception_type, reason, error, fingerprint,
            status, next_replay_at)
        select (lpad(to_hex(n / 1000), 6, '0') || lpad(to_hex(n), 26, '0'))::uuid,
            't' || n % 2 * (n % 500), 'th' || n, 'g' || n % 5,
            case when n % 3 > 0 then 'n' || n % 7 end, 'E' || n % 4,
            case n % 3 when 0 then 'permanent' when 1 then 'timeout' else 'exhausted' end,
            json_build_object('message', 'order ' || n || ' refused'), 'f' || n % 300,
            case when n % 10 = 1 then 'parked' when n % 4 = 0 then 'waiting' else 'resolved' end, now()
        from generate_series(0, 29999) n;
    insert into replay_groups (fingerprint, graph)
        select 'f' || n, 'g' || n % 5 from generate_series(0, 299) n;
    insert into held_lanes (tenant, thread_id, seq, letter_id)
        select tenant, thread_id, 1, id from dead_letters where graph = 'g4' and status = 'waiting';
    set default_statistics_target = 1000;  -- all rows are looked at: plans are no matter of chance
    analyze replay_groups, held_lanes;
"""
VALUES: dict[str, Any] = {
    **dict.fromkeys(("tenant", "thread_id", "graph", "node", "exception_type", "fingerprint"), "t0"),
    "status": "parked",
    "reason": "timeout",
    "text": "refused",
    "low": NOWHERE,
    "high": EVERYWHERE,
    "start": EVERYWHERE,
    "limit": 20,
    "window": 2_000,
}


@pytest.fixture(params=["auto", "force_generic_plan"])
def explain(settings: Settings, admin: Any, request: Any) -> Iterator[Any]:
    """The nodes of a step's plan, as (kind of node, index or table)."""
    admin.execute(FILL)
    admin.execute("vacuum analyze dead_letters")
    with connect(settings) as connection:
        connection.prepare_threshold = 0
        connection.execute(f"set plan_cache_mode = {request.param}")

        def explain(step: Step) -> list[tuple[str, str]]:
            query = compiled(step.statement)
            row = connection.execute(
                f"explain (format json) {query.sql}", query.bind(step.parameters)
            ).fetchone()
            assert row is not None
            return list(nodes(row["QUERY PLAN"][0]["Plan"]))

        yield explain


def nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield plan["Node Type"], plan.get("Index Name") or plan.get("Relation Name") or ""
    for part in plan.get("Plans", []):
        yield from nodes(part)


def given(statement: Any, **more: Any) -> Step:
    """The step of a statement, with a value for each of its parameters."""
    values = {**VALUES, **more}
    names = {name for name in values if f"%({name})s" in compiled(statement).sql}
    return Step(statement, {name: values[name] for name in names})


def few(step: Step) -> Step:
    """The step with its bounds so low that, of 30,000 letters, it does not pay to fetch and sort all."""
    bounds = {name: 10 for name in ("most", "tenants_most") if name in step.parameters}
    return Step(step.statement, {**step.parameters, **bounds})


def used(plan: list[tuple[str, str]]) -> set[str]:
    return {name for _, name in plan if name.startswith("dead_letters_")}


COLUMNS = ("tenant", "thread_id", "graph", "node", "exception_type", "fingerprint", "status", "reason")
SHAPES = [
    Shape(frozenset(columns), searched, newest_first)
    for size in (0, 1, 2, 3)
    for columns in itertools.combinations(COLUMNS, size)
    for searched in (False, True)
    for newest_first in (True, False)
]


def test_a_span_is_asked_for_all_that_is_sought_at_once(explain: Any) -> None:
    """Guards dead_letters_marks_idx, and the jumps over what is empty by dead_letters_pkey."""
    for shape in SHAPES:
        for statement in (walk.page(shape), walk.count(shape)):
            plan = explain(given(statement, limit=20 if statement is walk.page(shape) else 10_000))
            scans = [(kind, name) for kind, name in plan if name.startswith("dead_letters")]
            assert sorted(scans) == [
                ("Bitmap Heap Scan", "dead_letters"),
                ("Bitmap Index Scan", "dead_letters_marks_idx"),
                ("Index Only Scan", "dead_letters_pkey"),
            ], (shape, plan)


ORDERLY = {"Limit", "Subquery Scan", "Index Scan", "Index Only Scan"}


def test_the_newest_are_looked_at_in_their_order(explain: Any) -> None:
    """Guards that no filter tempts the planner away from dead_letters_pkey."""
    for shape in SHAPES:
        plan = explain(given(walk.near(shape)))
        assert used(plan) == {"dead_letters_pkey"}, (shape, plan)
        assert {kind for kind, _ in plan} <= ORDERLY, (shape, plan)


def test_groups_figures_and_details_read_no_table_as_a_whole(explain: Any) -> None:
    first = next(read_detail(str(uuid.uuid4())))
    plans = {
        "groups": next(groups.list_groups()).steps,
        "groups of a tenant": next(groups.list_groups(tenant="t0")).steps,
        "figures": next(stats.read_stats()).steps,
        "held lanes": next(list_held_lanes()).steps,
        "held lanes of a tenant": next(list_held_lanes(tenant="t1", after=str(uuid.uuid4()))).steps,
        "detail": first.steps,
    }
    small = {"replay_jobs", "replay_pauses", "replay_groups"}
    for name, steps in plans.items():
        for step in steps:
            plan = explain(few(step))
            scanned = {table for kind, table in plan if kind in ("Seq Scan", "Bitmap Heap Scan")} - small
            assert scanned == set(), (name, plan)


def test_groups_are_found_by_their_own_indexes(explain: Any) -> None:
    """Guards dead_letters_fingerprint_idx and dead_letters_group_idx."""
    (near,) = next(groups.list_groups()).steps
    whole = Step(
        groups._ALL_GROUPS, {name: near.parameters[name] for name in near.parameters if name != "near"}
    )

    for step in (near, whole):
        indexes = used(explain(few(step)))
        assert {"dead_letters_fingerprint_idx", "dead_letters_group_idx"} <= indexes, indexes


def test_groups_of_a_tenant_are_found_among_its_own(explain: Any) -> None:
    """Guards dead_letters_tenant_id_idx."""
    (step,) = next(groups.list_groups(tenant="t0")).steps

    assert "dead_letters_tenant_id_idx" in used(
        explain(Step(step.statement, {**step.parameters, "letters": 10}))
    )


def test_figures_are_counted_in_their_own_index(explain: Any) -> None:
    """Guards dead_letters_status_idx."""
    kinds, _ = next(stats.read_stats()).steps

    assert used(explain(few(kinds))) == {"dead_letters_status_idx"}
