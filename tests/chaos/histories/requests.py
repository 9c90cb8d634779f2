"""What people ask for: cancel, replay, discard, park, schedule, pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from tests.chaos.histories.model import Model
from tests.chaos.histories.move import Context, Move, OfRun, bells_of
from tests.chaos.histories.picture import TICK
from tests.chaos.histories.state import Outcome

from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import (
    park,
    schedule_replay,
)
from threadmill.dlq.replaying import Act, discard_letter, replay_letter
from threadmill.producers.cancellation import CancelAction
from threadmill.producers.queries import cancel_run


def _act(context: Context, run_id: UUID) -> Act:
    return Act(str(context.letter_ids[run_id]), by="ada")


@dataclass(frozen=True)
class Cancel(OfRun):
    kind = "cancel"
    tenant: str
    action: CancelAction

    def plan(self, context: Context) -> Plan[Outcome]:
        _, bells = yield from cancel_run(self.run_id, self.tenant, self.action)
        return Outcome("cancelled", bells_of(*bells))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.cancel(self.run_id, self.action, seen)

    def told(self, model: Model) -> str:
        return f"{super().told(model)} ({self.action})"


@dataclass(frozen=True)
class Replay(OfRun):
    kind = "replay"

    def plan(self, context: Context) -> Plan[Outcome]:
        _, bells = yield from replay_letter(_act(context, self.run_id))
        return Outcome("replaying", bells_of(*bells))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.replay(self.run_id)


@dataclass(frozen=True)
class Discard(OfRun):
    kind = "discard"

    def plan(self, context: Context) -> Plan[Outcome]:
        _, bells = yield from discard_letter(_act(context, self.run_id))
        return Outcome("discarded", bells_of(*bells))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.discard(self.run_id, seen)


@dataclass(frozen=True)
class Park(OfRun):
    kind = "park"

    def plan(self, context: Context) -> Plan[Outcome]:
        parameters = {"letter_id": context.letter_ids[self.run_id], "by": "ada", "facts": {}}
        (rows,) = yield Batch([Step(park(), parameters)])
        return Outcome("parked" if rows else "stands")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.park(self.run_id)


@dataclass(frozen=True)
class Schedule(OfRun):
    kind = "schedule replay"
    delay: float

    def plan(self, context: Context) -> Plan[Outcome]:
        parameters = {"letter_id": context.letter_ids[self.run_id], "delay": self.delay * TICK}
        (rows,) = yield Batch([Step(schedule_replay(), parameters)])
        return Outcome("scheduled" if rows else "stands")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.schedule(self.run_id, self.delay)


_PAUSE = """
    insert into limits (kind, name, paused) values ('tenant', %s, %s)
    on conflict (kind, name) do update set paused = excluded.paused
"""


@dataclass(frozen=True)
class Pause(Move):
    kind = "pause"
    tenant: str
    paused: bool

    def carry_out(self, connection: psycopg.Connection[Any], context: Context) -> Outcome:
        connection.execute(_PAUSE, [self.tenant, self.paused])
        return Outcome("paused" if self.paused else "unpaused")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.pause(self.tenant, self.paused)

    def told(self, model: Model) -> str:
        return f"{'pause' if self.paused else 'unpause'} tenant {self.tenant}"
