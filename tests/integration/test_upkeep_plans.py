"""What looks after dead letters all the time reads little of them, however many there are."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

import pytest

from threadmill.core.database import connect
from threadmill.core.settings import Settings
from threadmill.core.statement import compiled
from threadmill.core.transitions import empty_groups, rejected_runs, remove_groups, remove_letters
from threadmill.dlq import action_tail, lookout
from threadmill.dlq.filter import first_id
from threadmill.dlq.watch import Watch

LETTERS = 100_000
# A thousand groups of a hundred letters, most of them closed lately; each was parked once.
FILL = f"""
    insert into replay_groups (fingerprint) select 'f' || n from generate_series(0, 999) n;
    insert into dead_letters (
            id, tenant, thread_id, seq, graph, reason, error, fingerprint, status, updated_at
        )
        select (lpad(to_hex(1600000000000 + n), 12, '0') || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
            't', n, 1, 'g', 'exhausted', '{{}}', 'f' || n % 1000,
            case when n % 10 = 0 then 'waiting' else 'resolved' end,
            now() - case when n < 50 then interval '60 d' else interval '1 d' end
        from generate_series(0, {LETTERS - 1}) n;
    insert into dead_letter_actions (letter_id, tenant, by, action)
        select id, 't', 'drain', 'park' from dead_letters order by id;
    insert into held_lanes (tenant, thread_id, seq, letter_id, since)
        select tenant, thread_id, seq, id, now() - interval '1 h' from dead_letters where status = 'waiting';
    set default_statistics_target = 1000;  -- all rows are looked at: plans are no matter of chance
    analyze;
"""


@pytest.fixture
def filled(admin: Any) -> None:
    admin.execute(FILL)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", []) for node in nodes(part))]


def test_each_look_reads_by_an_index_and_little(filled: None, settings: Settings) -> None:
    recent = first_id(datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=10))
    statements: dict[str, tuple[Any, Mapping[str, Any], str, int]] = {
        "remove_letters": (
            remove_letters(),
            {"ttl": 30 * 86400, "limit": 200},
            "dead_letters_closed_idx",
            50,
        ),
        "empty_groups": (empty_groups(), {"after": "", "limit": 200}, "dead_letters_", 200),
        "remove_groups": (remove_groups(), {"fingerprints": ["f1", "f2"]}, "replay_groups_pkey", 2),
        "rejected_runs": (rejected_runs(), {"limit": 200}, "", 0),
        "groups": (
            lookout._GROUPS,
            {"from": recent, "most": 1000, "after": "", "page": 1000},
            "dead_letters_",
            1000,
        ),
        "newest": (lookout._NEWEST, {"fingerprints": ["f1", "f2"]}, "dead_letters_", 2),
        "lanes": (lookout._LANES, {"seconds": 60.0, "limit": 200}, "held_lanes_since_idx", 200),
        "actions": (
            action_tail._READ,
            {"lows": [7, LETTERS - 10], "highs": [7, action_tail.END], "after": -1, "page": 10_000},
            "dead_letter_actions_pkey",
            12,
        ),
        "actions back": (
            action_tail._LOOK_BACK,
            {"before": action_tail.END, "page": 10_000},
            "dead_letter_actions_pkey",
            10_000,
        ),
    }
    with connect(settings) as connection:
        for name, (statement, parameters, index, most) in statements.items():
            query = compiled(statement)
            with connection.transaction(force_rollback=True):
                row = connection.execute(
                    f"explain (analyze, format json) {query.sql}", query.bind(parameters)
                ).fetchone()
            assert row is not None
            found = nodes(row["QUERY PLAN"][0]["Plan"])
            for node in found:
                table = node.get("Relation Name", "")
                if node["Node Type"] == "Seq Scan" and table.startswith(("dead_letter", "held", "replay")):
                    raise AssertionError(f"{name} reads a whole table: {node}")
                if table in ("dead_letters", "dead_letter_actions", "held_lanes"):
                    read = node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0)
                    assert read <= most, f"{name}: {node}"
            indexes = {node["Index Name"] for node in found if "Index Name" in node}
            assert not index or any(used.startswith(index) for used in indexes), f"{name}: {indexes}"


def test_a_look_at_many_letters_takes_a_moment(filled: None, settings: Settings) -> None:
    watching = Watch(settings)
    watching.look()
    started = time.monotonic()
    assert watching.look() == []
    assert time.monotonic() - started < 1
    watching.close()
