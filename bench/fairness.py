"""One tenant floods the fleet while ten others come by now and then; and three weights under saturation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import mean, quantiles
from typing import Any, LiteralString

import psycopg
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.arena import Arena
from bench.mill import MillFleet, fleet_of
from threadmill.core.limits import Limits

SLOTS = 32  # of the whole fleet
SERVICE = 0.2  # seconds of a run
FLOOD = 10_000
OTHERS = 10
WEIGHTS = {"one": 1, "two": 2, "four": 4}
_WAITS = "select extract(epoch from started_at - created_at)::float from runs where tenant like %s"
_RUNNING = "select tenant, count(*) from runs where status = 'running' group by 1"


@dataclass(frozen=True)
class Fairness:
    """idle, flooded: the waits of the small tenants' runs, in seconds, alone and beside the flood. flood: of
    the flood's own that had begun. busy: the share of the slots that had a run, in the mean. shares: of the
    slots, by weight."""

    idle: list[float]
    flooded: list[float]
    flood: list[float]
    busy: float
    shares: dict[str, float]


def measure(arena: Arena, seconds: int, flood: int = FLOOD) -> Fairness:
    """seconds: for how long the small tenants come by, a run of each every second."""
    with fleet_of(arena, 2, concurrency=SLOTS // 2) as (fleet, settings):
        _drip(fleet, "idle", min(seconds, 10))
        began = time.perf_counter()
        for start in range(0, flood, 1_000):
            fleet.producer.enqueue_many(_request("flood", start + number) for number in range(1_000))
        time.sleep(max(0, 2 - (time.perf_counter() - began)))
        busy = _drip(fleet, "late", seconds)
        with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
            idle, late, own = (_column(connection, _WAITS, name) for name in ("idle%", "late%", "flood"))
        with Limits(settings) as limits:
            limits.set("tenant", "flood", paused=True)
            for tenant, weight in WEIGHTS.items():
                limits.set("tenant", tenant, weight=weight)
        for tenant in WEIGHTS:
            fleet.producer.enqueue_many(_request(tenant, number) for number in range(1_000))
        return Fairness(idle, late, own, mean(busy), _shares(fleet))


def _drip(fleet: MillFleet, name: str, seconds: int) -> list[float]:
    """A run of each small tenant every second. Returns the shares of the slots that had a run meanwhile."""
    busy = []
    with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
        for second in range(seconds):
            ends = time.perf_counter() + 1
            for tenant in range(OTHERS):
                fleet.producer.enqueue(**_request(f"{name}-{tenant}", second))
            while time.perf_counter() < ends:
                busy.append(sum(_standing(connection).values()) / SLOTS)
                time.sleep(0.05)
    return busy


def _shares(fleet: MillFleet) -> dict[str, float]:
    """The slots that each had, in the mean of a while in which all have something to do."""
    time.sleep(4)
    had: dict[str, list[int]] = {tenant: [] for tenant in WEIGHTS}
    with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
        for _ in range(60):
            standing = _standing(connection)
            for tenant, counts in had.items():
                counts.append(standing.get(tenant, 0))
            time.sleep(0.05)
    total = sum(mean(counts) for counts in had.values())
    return {tenant: mean(counts) / total for tenant, counts in had.items()}


def _standing(connection: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(connection.execute(_RUNNING).fetchall())


def _column(connection: psycopg.Connection[Any], query: LiteralString, name: str) -> list[float]:
    return [row[0] for row in connection.execute(query, [name]) if row[0] is not None]


def _request(tenant: str, number: int) -> dict[str, Any]:
    return {
        "graph": "waiting",
        "input": {"seconds": SERVICE},
        "tenant": tenant,
        "thread_id": f"thread-{number}",
    }


def table(found: Fairness) -> RenderableType:
    """The waits, and the shares."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    made.add_column("wait from enqueue to start, ms")
    for column in ("runs", "p50", "p99", "max"):
        made.add_column(column, justify="right")
    for name, waits in (
        ("ten tenants, alone", found.idle),
        ("ten tenants, beside the flood", found.flooded),
        ("the flood, of its own that began", found.flood),
    ):
        cuts = quantiles(waits, n=100, method="inclusive")
        figures = (cuts[49], cuts[98], max(waits))
        made.add_row(name, f"{len(waits):,}", *(f"{figure * 1e3:,.0f}" for figure in figures))
    total = sum(WEIGHTS.values())
    shares = ", ".join(
        f"{tenant} {share:.3f} (of {WEIGHTS[tenant] / total:.3f})" for tenant, share in found.shares.items()
    )
    return Group(
        made,
        Text(f"{SLOTS} slots, {SERVICE:g} s a run; beside the flood {found.busy:.1%} of the slots had a run"),
        Text(f"shares of the slots by weight 1 : 2 : 4, saturated: {shares}"),
    )
