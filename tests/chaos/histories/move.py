"""A move: the real statements for one thing that somebody does, and the model's word for it.

A move knows runs and workers by their ids only, so that it may be tried on copies of the model. It is made
before anything of it is sent; what it is to write has been decided then, as in a worker that was frozen.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import psycopg
from tests.chaos.histories.model import Model
from tests.chaos.histories.picture import TICK
from tests.chaos.histories.state import Bell, LaneId, Outcome

from threadmill.core.doorbell import Bell as RealBell
from threadmill.core.doorbell import next_bell
from threadmill.core.errors import IdempotencyConflict, NotCancellable, NotReplayable, ThreadBusy
from threadmill.core.policy import GraphPolicy
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Rows, Step, carry_out, carry_out_within
from threadmill.core.transitions import (
    lock_thread,
)
from threadmill.producers.catalogue import Catalogue

SILENCE = TICK / 2
SKIPS, HOLDS = "skips", "holds"
GRAPHS = (SKIPS, HOLDS)
LIMIT = 500


def holds(graph: str) -> bool:
    """Whether the graph's dead letters hold their lanes."""
    return graph == HOLDS


def policy_of(graph: str) -> GraphPolicy:
    return GraphPolicy(on_dead_letter="hold" if holds(graph) else "skip")


class Grip(NamedTuple):
    """What a worker believes that it holds."""

    worker: UUID
    run_id: UUID
    attempt: int


class Context(NamedTuple):
    """What the statements are made with."""

    settings: Settings
    catalogue: Catalogue
    letter_ids: Mapping[UUID, UUID]  # by run


class Move:
    """One thing that somebody does. kind: as it is counted."""

    kind: ClassVar[str]

    def on(self, model: Model) -> LaneId | None:
        """The lane on which it is done; None where it is done on none or all."""
        return None

    def plan(self, context: Context) -> Plan[Outcome]:
        raise NotImplementedError

    def carry_out(self, connection: psycopg.Connection[Any], context: Context) -> Outcome:
        """Sends it: in a transaction of its own, or in the one that the connection is in."""
        plan = self.plan(context)
        try:
            return (
                carry_out(connection, plan) if connection.autocommit else carry_out_within(connection, plan)
            )
        except (ThreadBusy, IdempotencyConflict, NotCancellable, NotReplayable) as refusal:
            return Outcome(type(refusal).__name__)

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        """Does it to the model, and says what the mover is to be told. seen: what it was told."""
        raise NotImplementedError

    def told(self, model: Model) -> str:
        """In words, for the history."""
        return self.kind


@dataclass(frozen=True)
class OfRun(Move):
    run_id: UUID

    def on(self, model: Model) -> LaneId | None:
        return model.runs[self.run_id].lane

    def told(self, model: Model) -> str:
        return f"{self.kind} {model.runs[self.run_id].name}"


@dataclass(frozen=True)
class OfGrip(OfRun):
    """Of an attempt, which may have lost its lease long ago."""

    attempt: int

    def held(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "attempt": self.attempt}

    def told(self, model: Model) -> str:
        zombie = "" if model.holds_lease(self.run_id, self.attempt) else ", a zombie"
        return f"{self.kind} {model.runs[self.run_id].name} (attempt {self.attempt}{zombie})"


def locked(lane: LaneId, *steps: Step) -> Generator[Batch, list[Rows], list[Rows]]:
    tenant, thread_id = lane
    lock = Step(lock_thread(), {"tenant": tenant, "thread_id": thread_id})
    _, *results = yield Batch([lock, *steps])
    return results


def bells_of(*bells: RealBell | None) -> tuple[Bell, ...]:
    return tuple(sorted(Bell(bell.run_id, bell.alone) for bell in bells if bell is not None))


def ended(rows: Rows) -> Outcome:
    return Outcome("ended", bells_of(next_bell(rows[0]))) if rows else Outcome("LeaseLost")
