"""What workers and the leader do besides: heartbeats, rescues, deadlines, bells rung again."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from tests.chaos.histories.model import Model
from tests.chaos.histories.move import LIMIT, SILENCE, Context, Move, OfGrip, bells_of, holds, policy_of
from tests.chaos.histories.state import CONCURRENCY, Ending, Outcome

from threadmill.core.doorbell import bells_of as rung_for
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import (
    beat,
    enlist,
    expired_runs,
    ring,
    runs_of_worker,
    runs_without_worker,
    strike_off,
    strike_off_silent,
)
from threadmill.workers.rescue import expire_run, give_back, rescue


@dataclass(frozen=True)
class Rescue(OfGrip):
    """What the leader does with an attempt whose worker was gone when it looked."""

    kind = "rescue"
    row: Row
    cause: str

    def plan(self, context: Context) -> Plan[Outcome]:
        done, bell = yield from rescue(context.settings, self.row, self.cause, policy_of(self.row["graph"]))
        return Outcome("ended" if done else "LeaseLost", bells_of(bell))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.rescue(
            self.run_id,
            self.attempt,
            self.cause,
            self.row["worker_losses"],
            hold=holds(self.row["graph"]),
            seen=seen,
        )


@dataclass(frozen=True)
class GiveBack(OfGrip):
    kind = "give back"
    row: Row

    def plan(self, context: Context) -> Plan[Outcome]:
        done, bell = yield from give_back(self.row, "claim unanswered")
        return Outcome("ended" if done else "LeaseLost", bells_of(bell))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        ending = Ending("lost", "claim unanswered", 0)
        return model.end(self.run_id, self.attempt, ending, hold=False, seen=seen)


@dataclass(frozen=True)
class Expire(OfGrip):
    kind = "expire"
    row: Row

    def plan(self, context: Context) -> Plan[Outcome]:
        done, bell = yield from expire_run(context.settings, self.row, policy_of(self.row["graph"]))
        return Outcome("ended" if done else "LeaseLost", bells_of(bell))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.expire(self.run_id, self.attempt, hold=holds(self.row["graph"]), seen=seen)

    def told(self, model: Model) -> str:
        return f"expire {model.runs[self.run_id].name} (attempt {self.attempt})"


@dataclass(frozen=True)
class Ring(Move):
    """What the leader does for tenants that have less than their share, and for bells that were lost."""

    kind = "ring"
    limit: int

    def plan(self, context: Context) -> Plan[Outcome]:
        (rows,) = yield Batch([Step(ring(), {"limit": self.limit, "patience": SILENCE, **FROM_THE_FIRST})])
        return Outcome("rang", bells_of(*rung_for(rows)))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.ring(self.limit, seen)

    def told(self, model: Model) -> str:
        return f"ring, {self.limit} at most"


@dataclass(frozen=True)
class Enlist(Move):
    kind = "enlist"
    worker: UUID

    def plan(self, context: Context) -> Plan[Outcome]:
        parameters = {
            "worker_id": self.worker,
            "host": "host",
            "pid": 1,
            "queues": ["queue"],
            "concurrency": CONCURRENCY,
            "versions": {},
        }
        yield Batch([Step(enlist(), parameters)])
        return Outcome("enlisted")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.enlist(self.worker)


@dataclass(frozen=True)
class Beat(Move):
    kind = "beat"
    worker: UUID

    def plan(self, context: Context) -> Plan[Outcome]:
        (rows,) = yield Batch([Step(beat(), {"worker_id": self.worker})])
        return Outcome("beaten" if rows else "struck off")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.beat(self.worker)


@dataclass(frozen=True)
class StrikeOff(Move):
    kind = "strike off"
    worker: UUID

    def plan(self, context: Context) -> Plan[Outcome]:
        (rows,) = yield Batch([Step(strike_off(), {"worker_id": self.worker})])
        return Outcome("struck off" if rows else "unknown")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.strike_off(self.worker)


@dataclass(frozen=True)
class StrikeOffSilent(Move):
    """The leader's look for lost workers. What it saw is told, and rescued one by one afterwards."""

    kind = "strike off the silent"

    def plan(self, context: Context) -> Plan[Outcome]:
        silent, runs = yield Batch(
            [
                Step(strike_off_silent(), {"silence": SILENCE}),
                Step(runs_without_worker(), {"limit": LIMIT}),
            ]
        )
        struck = tuple(sorted(row["id"] for row in silent))
        return Outcome("swept", (), (struck, tuple(sorted((row["id"], row["attempt"]) for row in runs))))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.strike_off_silent(seen)


@dataclass(frozen=True)
class LookForExpired(Move):
    kind = "look for expired"

    def plan(self, context: Context) -> Plan[Outcome]:
        (rows,) = yield Batch([Step(expired_runs(), {"limit": LIMIT})])
        return Outcome("looked", (), tuple(sorted((row["id"], row["attempt"]) for row in rows)))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.look_for_expired()


@dataclass(frozen=True)
class LookAtOwn(Move):
    """What a worker holds according to the ledger."""

    kind = "look at own"
    worker: UUID

    def plan(self, context: Context) -> Plan[Outcome]:
        (rows,) = yield Batch([Step(runs_of_worker(), {"worker_id": self.worker, "since": BEGINNING})])
        return Outcome("looked", (), tuple(sorted((row["id"], row["attempt"]) for row in rows)))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.look_at_own(self.worker)
