"""What the hot statements cost inside Postgres: time without the way there and back, and pages looked at.

The pages are the same however busy the machine is.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import psycopg
from psycopg import sql

from bench.load import GRAPH
from threadmill.core.database import connect
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST
from threadmill.core.settings import Settings
from threadmill.core.statement import compiled
from threadmill.core.transitions import (
    claim_taken,
    lock_and_bind,
    pick_many,
    pick_next,
    ring,
    succeed,
)
from threadmill.workers.claims import LOOK_BACK_AFTER

REPEATS = 25
PATIENCE = 1.5

# A look that comes soon after another one.
AGAIN = ", again"


@dataclass(frozen=True)
class Cost:
    """Of a statement: the median of its milliseconds and of the pages that it looked at."""

    name: str
    ms: float
    pages: float


def costs(settings: Settings, tenant: str) -> list[Cost]:
    """Of a tenant's run, from its picking to its end, and of what looks for runs; nothing of it remains."""
    found: dict[str, list[tuple[float, int]]] = {}
    with connect(settings, role=None) as owner, connect(settings) as connection:
        row = owner.execute("select id from workers").fetchone()
        assert row is not None
        for number in range(REPEATS):
            with connection.transaction(force_rollback=True):
                for name, cost in _lived_through(connection, tenant, f"costs-{number}", row["id"]).items():
                    found.setdefault(name, []).append(cost)
    return [
        Cost(name, median(ms for ms, _ in each), median(pages for _, pages in each))
        for name, each in found.items()
    ]


def _lived_through(
    connection: psycopg.Connection[Any], tenant: str, thread: str, worker: uuid.UUID
) -> dict[str, tuple[float, int]]:
    run = uuid.uuid4()
    lane = {"tenant": tenant, "thread_id": thread}
    connection.execute(
        "insert into threads (tenant, thread_id, last_seq) values (%s, %s, 1)", [tenant, thread]
    )
    connection.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, input, rank)"
        " values (%s, %s, %s, 1, %s, '{}', now())",
        [run, tenant, thread, GRAPH],
    )
    claimant = {"worker_id": worker, "versions": "{}", "alone": False}
    end = {
        **{"run_id": run, "attempt": 1, "checkpoint_id": "c", "next_nodes": [], "output": {}},
        **{"thread_status": "idle", "interrupts": None, "dependencies": []},
    }
    a_moment_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=LOOK_BACK_AFTER / 2)
    next_one = {**lane, "graphs": [GRAPH], "patience": PATIENCE}
    again = {"floor": a_moment_ago, "since": a_moment_ago}
    rung = {"patience": PATIENCE, **FROM_THE_FIRST, "limit": 50}
    picked = {**rung, "graphs": [GRAPH], "limit": 16}
    statements: dict[str, tuple[Any, Mapping[str, Any]]] = {
        "lock_and_bind": (lock_and_bind(), lane),
        "ring": (ring(), rung),
        f"ring{AGAIN}": (ring(), {**rung, **again}),
        "pick_many": (pick_many(), picked),
        f"pick_many{AGAIN}": (pick_many(), {**picked, **again}),
        "pick_next": (pick_next(), {**next_one, "floor": BEGINNING}),
        f"pick_next{AGAIN}": (pick_next(), {**next_one, "floor": a_moment_ago}),
        "claim_taken": (claim_taken(), claimant),
        "succeed": (succeed(), end),
    }
    costs = {}
    for name, (statement, parameters) in statements.items():
        costs[name] = _cost(connection, statement, parameters)
        if name.startswith("ring"):  # it marks the run as rung, for which nobody else looks then
            connection.execute("update runs set dispatched_at = null where id = %s", [run])
    return costs


def _cost(
    connection: psycopg.Connection[Any], statement: Any, parameters: Mapping[str, Any]
) -> tuple[float, int]:
    query = compiled(statement)
    explain = sql.SQL("explain (analyze, buffers, format json) ") + sql.SQL(query.sql)
    row: Any = connection.execute(explain, query.bind(parameters)).fetchone()
    told = row["QUERY PLAN"][0]
    plan = told["Plan"]
    return told["Execution Time"], plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
