"""One tenant floods the fleet while ten others come by; three weights; and a worker is lost meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, quantiles
from typing import Any, LiteralString

import psycopg

from bench import loss
from bench.arena import Arena
from bench.load import BATCH, Load
from bench.loss import SLOTS, Loss
from bench.mill import MillFleet, fleet_of
from bench.row import Row, at_least, at_most, compared
from threadmill.core.limits import Limits

SECTION = "fairness"
SERVICE = 0.2  # seconds of a run
OTHERS = 10
WEIGHTS = {"one": 1, "two": 2, "four": 4}
_WAITS = "select extract(epoch from started_at - created_at)::float from runs where tenant like %s"
_RUNNING = "select tenant, count(*) from runs where status = 'running' group by 1"


@dataclass(frozen=True)
class Fairness:
    """idle, flooded: the waits of the small tenants' runs, in seconds, alone and beside the flood. flood: of
    the flood's own that had begun. busy: the share of the slots that had a run, in the mean. shares: of the
    slots, by weight. loss: what
    came of a worker that was killed while the flood and the weights went on."""

    idle: list[float]
    flooded: list[float]
    flood: list[float]
    busy: float
    shares: dict[str, float]
    loss: Loss


def measure(arena: Arena, load: Load, tell: Callable[[str], None]) -> Fairness:
    """Raises Stalled and ChildFailed."""
    tell("fairness: a flood")
    with fleet_of(arena, 2, concurrency=SLOTS // 2) as (fleet, settings):
        _drip(fleet, "idle", load.idle)
        began = time.perf_counter()
        for start in range(0, load.flood, BATCH):
            fleet.producer.enqueue_many(_request("flood", start + number) for number in range(BATCH))
        time.sleep(max(0, 2 - (time.perf_counter() - began)))
        busy = _drip(fleet, "late", load.flooded)
        with psycopg.connect(fleet.saver_url, autocommit=True) as connection:
            idle, late, own = (_column(connection, _WAITS, name) for name in ("idle%", "late%", "flood"))
        with Limits(settings) as limits:
            limits.set("tenant", "flood", paused=True)
            for tenant, weight in WEIGHTS.items():
                limits.set("tenant", tenant, weight=weight)
        for tenant in WEIGHTS:
            fleet.producer.enqueue_many(_request(tenant, number) for number in range(load.weighted))
        shares = _shares(fleet)
        with Limits(settings) as limits:
            limits.set("tenant", "flood", paused=False)
        tell("fairness: a worker is lost")
        return Fairness(idle, late, own, mean(busy), shares, loss.measure(fleet))


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


def rows(found: Fairness) -> list[Row]:
    idle, flooded = (quantiles(waits, n=100, method="inclusive") for waits in (found.idle, found.flooded))
    wanted = sum(WEIGHTS.values())
    off = max(abs(share * wanted / WEIGHTS[tenant] - 1) for tenant, share in found.shares.items())
    shares = " : ".join(f"{found.shares[tenant]:.3f}" for tenant in WEIGHTS)
    bound = round((2 * idle[98] + SERVICE) * 1e3)
    alone = "the ten, alone"
    return [
        compared(
            SECTION, "ten tenants beside a flood, wait until started: p50", flooded[49] * 1e3, "ms",
            alone, idle[49] * 1e3,
        ),
        compared(SECTION, "  p99", flooded[98] * 1e3, "ms", alone, idle[98] * 1e3, at_most(bound)),
        Row(SECTION, "slots with a run, beside the flood", found.busy * 100, "%", aim=at_least(95)),
        Row(SECTION, f"weights 1 : 2 : 4 had {shares}, off by", off * 100, "%", aim=at_most(10)),
        *loss.rows(SECTION, found.loss),
    ]  # fmt: skip
