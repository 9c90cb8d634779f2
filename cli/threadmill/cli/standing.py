"""How an unfinished run stands: what its attempts have cost so far, and what it waits for."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, and_, any_, case, cast, func, or_, select

from threadmill.cli.output import moment, span
from threadmill.core.statement import Row
from threadmill.core.transitions import QUARANTINE_LOSSES
from threadmill.core.transitions.terms import (
    BREAKERS,
    HELD,
    RUNS,
    another_running,
    earlier_unfinished,
    has_its_fill,
    held_back_by_breaker,
    is_paused,
    word,
)
from threadmill.producers.run import timestamp

_pending = RUNS.c.status == word("pending")
# By the database's clock, as the claim judges it.
_waits = and_(_pending, RUNS.c.run_at > func.now())

# What the ledger knows of each run of a list.
STANDING_COLUMNS = (
    RUNS.c.max_attempts,
    RUNS.c.failures,
    RUNS.c.worker_losses,
    RUNS.c.throttled,
    RUNS.c.replays,
    RUNS.c.replay_mode,
    case((_waits, RUNS.c.run_at)).label("waits_until"),
    case((_waits, cast(func.extract("epoch", RUNS.c.run_at - func.now()), Float))).label("waits_for"),
)

# The first that has to let go: a thread may be held by several.
_held_by = (
    select(HELD.c.letter_id)
    .where(
        HELD.c.tenant == RUNS.c.tenant,
        HELD.c.thread_id == RUNS.c.thread_id,
        HELD.c.seq < RUNS.c.seq,
    )
    .order_by(HELD.c.seq)
    .limit(1)
)
_breakers = select(func.array_agg(BREAKERS.c.kind + " " + BREAKERS.c.name)).where(
    RUNS.c.graph == any_(BREAKERS.c.graphs), BREAKERS.c.open_until.is_not(None)
)

# The claim's own conditions, for one run that is looked at closely.
OBSTACLE_COLUMNS = (
    and_(_pending, or_(earlier_unfinished(RUNS), another_running(RUNS))).label("is_behind"),
    case((_pending, _held_by.correlate(RUNS).scalar_subquery())).label("held_by"),
    and_(_pending, is_paused("tenant", RUNS.c.tenant)).label("is_tenant_paused"),
    and_(_pending, is_paused("graph", RUNS.c.graph)).label("is_graph_paused"),
    and_(_pending, has_its_fill("tenant", RUNS.c.tenant)).label("has_tenant_its_fill"),
    and_(_pending, has_its_fill("graph", RUNS.c.graph)).label("has_graph_its_fill"),
    case((and_(_pending, held_back_by_breaker()), _breakers.correlate(RUNS).scalar_subquery())).label(
        "breakers"
    ),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """One run's, at one moment.

    failures: the attempts that were spent, out of max_attempts. worker_losses: those whose worker was lost.
    throttled: how many seconds it has waited because it was told to. replays: how often it was replayed, at
    last in replay_mode. waits_until: when it may run, where
    that is to come, and waits_for the seconds until then. retries: whether it has run before. obstacles:
    what else it waits for, in words; known only of one run that is looked at closely.
    """

    failures: int
    max_attempts: int
    worker_losses: int
    throttled: float
    replays: int
    replay_mode: str | None
    waits_until: datetime.datetime | None
    waits_for: float | None
    retries: bool
    obstacles: tuple[str, ...] = ()

    @property
    def is_alone(self) -> bool:
        """Whether it runs in quarantine: one loss more, and it is a dead letter."""
        return self.worker_losses >= QUARANTINE_LOSSES

    @property
    def wait(self) -> str:
        """What the time is that it waits for, in words; empty where it waits for none."""
        if self.waits_for is None:
            return ""
        return f"{'retry ' if self.retries else ''}in {span(self.waits_for)}"

    def waits(self) -> list[str]:
        """All that keeps a pending run from being started, one thing a line."""
        lines = [f"for {obstacle}" for obstacle in self.obstacles]
        if self.waits_until is not None:
            lines.insert(0, f"for its {'retry' if self.retries else 'time'}, {moment(self.waits_until)}")
        return lines or ["for a place to run alone" if self.is_alone else "for a worker that is free"]

    def to_dict(self) -> dict[str, Any]:
        """The standing as JSON values."""
        return {
            "failures": self.failures,
            "max_attempts": self.max_attempts,
            "worker_losses": self.worker_losses,
            "throttled": self.throttled,
            "replays": self.replays,
            "replay_mode": self.replay_mode,
            "waits_until": timestamp(self.waits_until),
        }


def standing_of(row: Row) -> Standing:
    """The standing of a row with STANDING_COLUMNS, and perhaps OBSTACLE_COLUMNS, beside the run's own."""
    return Standing(
        failures=row["failures"],
        max_attempts=row["max_attempts"],
        worker_losses=row["worker_losses"],
        throttled=row["throttled"],
        replays=row["replays"],
        replay_mode=row["replay_mode"],
        waits_until=row["waits_until"],
        waits_for=row["waits_for"],
        retries=row["attempt"] > 0,
        obstacles=tuple(_obstacles(row)),
    )


def _obstacles(row: Row) -> Iterator[str]:
    if row.get("is_behind"):
        yield "another run of its thread, which goes first"
    if row.get("held_by"):
        yield f"dead letter {row['held_by']}, which holds its thread"
    for kind in ("tenant", "graph"):
        if row.get(f"is_{kind}_paused"):
            yield f"its {kind}, which is paused"
        elif row.get(f"has_{kind}_its_fill"):
            yield f"another run of its {kind} to end, which has as many as it may"
    for breaker in row.get("breakers") or ():
        yield f"the breaker of {breaker}"
