"""What may be done to the ledger, each as the real statements that do it and as the model's word for it.

A move knows runs and workers by their ids only, so that it may be tried on copies of the model. It is made
before anything of it is sent; what it is to write has been decided then, as in a worker that was frozen.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from tests.chaos.histories.model import Bell, Ending, LaneId, Model, Outcome, Request
from tests.chaos.histories.picture import TICK

from threadmill.core.doorbell import Bell as RealBell
from threadmill.core.doorbell import bell_of, next_bell
from threadmill.core.errors import IdempotencyConflict, NotCancellable, NotReplayable, ThreadBusy
from threadmill.core.keys import thread_key
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, Step, carry_out, carry_out_within
from threadmill.core.transitions import (
    beat,
    bury,
    claim,
    count_fenced,
    enlist,
    expired_runs,
    lock_thread,
    park,
    requeue,
    ring_again,
    runs_of_worker,
    runs_without_worker,
    schedule_replay,
    strike_off,
    strike_off_silent,
    succeed,
    trip,
)
from threadmill.dlq.desk import discard_letter, note, replay_letter
from threadmill.producers.cancellation import CancelAction
from threadmill.producers.catalogue import Catalogue
from threadmill.producers.enqueue import enqueue
from threadmill.producers.queries import cancel_run
from threadmill.producers.quotas import Quotas
from threadmill.producers.request import check_request
from threadmill.workers.checkpoint_writes import checkpoint_write, pending_writes
from threadmill.workers.ending import Retry, requeue_parameters
from threadmill.workers.lease import FENCED
from threadmill.workers.rescue import expire_run, give_back, rescue

SILENCE = TICK / 2
SKIPS, HOLDS = "skips", "holds"
GRAPHS = (SKIPS, HOLDS)
LIMIT = 500


def holds(graph: str) -> bool:
    """Whether the graph's dead letters hold their lanes."""
    return graph == HOLDS


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


def _locked(lane: LaneId, *steps: Step) -> Generator[Batch, list[Rows], list[Rows]]:
    tenant, thread_id = lane
    lock = Step(lock_thread(), {"tenant": tenant, "thread_id": thread_id})
    _, *results = yield Batch([lock, *steps])
    return results


def _bells(*bells: RealBell | None) -> tuple[Bell, ...]:
    return tuple(sorted(Bell(bell.run_id, bell.alone) for bell in bells if bell is not None))


def _ended(rows: Rows) -> Outcome:
    return Outcome("ended", _bells(next_bell(rows[0]))) if rows else Outcome("LeaseLost")


@dataclass(frozen=True)
class Enqueue(Move):
    kind = "enqueue"
    requests: tuple[Request, ...]

    def on(self, model: Model) -> LaneId | None:
        return self.requests[0].lane

    def plan(self, context: Context) -> Plan[Outcome]:
        enqueued = yield from enqueue(
            [self._request(request, context.settings) for request in self.requests],
            context.catalogue,
            Quotas(context.settings),
        )
        told = (tuple(UUID(run.id) for run in enqueued.runs), tuple(sorted(enqueued.cancelled)))
        return Outcome("enqueued", _bells(*enqueued.bells), told)

    def _request(self, request: Request, settings: Settings) -> Any:
        now = datetime.datetime.now(datetime.UTC)

        def at(ticks: float | None) -> datetime.datetime | None:
            return now + datetime.timedelta(seconds=ticks * TICK) if ticks else None

        tenant, thread_id = request.lane
        checked = check_request(
            settings,
            graph=request.graph,
            input={},
            tenant=tenant,
            thread_id=thread_id,
            max_attempts=request.max_attempts,
            run_at=at(request.delay),
            deadline=at(request.deadline),
            idempotency_key=request.key,
            multitask_strategy=request.strategy,  # type: ignore[arg-type]
        )
        return replace(checked, id=request.id)

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.enqueue(self.requests)

    def told(self, model: Model) -> str:
        return "enqueue " + ", ".join(_wish(request) for request in self.requests)


def _wish(request: Request) -> str:
    details = [f"graph {request.graph}"]
    if request.delay:
        details.append(f"in {request.delay:g} ticks")
    if request.deadline is not None:
        details.append(f"deadline in {request.deadline:g} ticks")
    if request.key is not None:
        details.append(f"key {request.key}")
    if request.strategy != "enqueue":
        details.append(request.strategy)
    return f"on {':'.join(request.lane)} ({', '.join(details)})"


@dataclass(frozen=True)
class Claim(OfRun):
    kind = "claim"
    lane: LaneId  # as the bell says
    worker: UUID
    alone: bool

    def plan(self, context: Context) -> Plan[Outcome]:
        tenant, thread_id = self.lane
        parameters = {
            "run_id": self.run_id,
            "tenant": tenant,
            "thread_id": thread_id,
            "worker_id": self.worker,
            "graph_version": "1",
            "alone": self.alone,
        }
        (rows,) = yield from _locked(self.lane, Step(claim(), parameters))
        if not rows:
            return Outcome("dropped")
        row = rows[0]
        return Outcome("claimed", (), (row["attempt"], row["failures"], row["worker_losses"]))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        if self.lane != model.runs[self.run_id].lane:
            return Outcome("dropped")
        return model.claim(self.run_id, self.worker, alone=self.alone)

    def told(self, model: Model) -> str:
        return f"claim {model.runs[self.run_id].name} ({':'.join(self.lane)}{', alone' * self.alone})"


@dataclass(frozen=True)
class WriteCheckpoint(OfGrip):
    kind = "write checkpoint"
    lane: LaneId
    checkpoint: str
    parent: str | None

    def carry_out(self, connection: psycopg.Connection[Any], context: Context) -> Outcome:
        key = thread_key(*self.lane)
        fields = {
            "key": key,
            "namespace": "",
            "checkpoint_id": self.checkpoint,
            "parent_id": self.parent,
            "checkpoint": Jsonb({"channel_versions": {"channel": self.checkpoint}}),
            "metadata": Jsonb({"run_id": str(self.run_id), "attempt": self.attempt}),
        }
        blobs = [(key, "", "channel", self.checkpoint, "bytes", b"value")]
        binding = {"tenant": self.lane[0], **self.held()}
        return _write(connection, *checkpoint_write(binding, fields, blobs))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.write(self.run_id, self.attempt, self.checkpoint, self.parent)


@dataclass(frozen=True)
class WritePending(OfGrip):
    kind = "write pending"
    lane: LaneId
    task: str
    checkpoint: str

    def carry_out(self, connection: psycopg.Connection[Any], context: Context) -> Outcome:
        row = (thread_key(*self.lane), "", self.checkpoint, self.task, "", 0, "channel", "bytes", b"value")
        binding = {"tenant": self.lane[0], **self.held()}
        return _write(connection, *pending_writes(binding, [("channel", "value")], [row]))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.write_pending(self.run_id, self.attempt, self.task, self.checkpoint)


def _write(connection: psycopg.Connection[Any], sql: str, parameters: dict[str, Any]) -> Outcome:
    try:
        connection.execute(sql.encode(), parameters)
    except psycopg.Error as error:
        if error.sqlstate != FENCED:
            raise
        return Outcome("fenced")
    return Outcome("written")


@dataclass(frozen=True)
class Succeed(OfGrip):
    kind = "succeed"
    lane: LaneId
    asks: bool
    calls: tuple[str, ...]

    def plan(self, context: Context) -> Plan[Outcome]:
        parameters = {
            **self.held(),
            "output": {},
            "checkpoint_id": None,
            "thread_status": "interrupted" if self.asks else "idle",
            "interrupts": [{}] if self.asks else None,
            "next_nodes": ["ask"] if self.asks else [],
            "dependencies": list(self.calls),
        }
        (rows,) = yield from _locked(self.lane, Step(succeed(), parameters))
        return _ended(rows)

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.succeed(self.run_id, self.attempt, asks=self.asks, calls=self.calls, seen=seen)


_ERROR = {"type": "Error", "message": "failed", "node": None}


@dataclass(frozen=True)
class Fail(OfGrip):
    """An attempt ends without success, as `Executor._finish` writes it."""

    kind = "fail"
    lane: LaneId
    graph: str
    ending: Ending
    checkpoint: str | None

    def plan(self, context: Context) -> Plan[Outcome]:
        ending = self.ending
        record = {"node": "node", "checkpoint_id": self.checkpoint, "message": ending.cause}
        more = {"exception_type": "Error", "traceback": "…", "error": _ERROR}
        if ending.delay is None:
            statement = bury(ending.status, ending.outcome)
            parameters = {
                **record,
                **more,
                "letter_id": uuid.uuid4(),
                "reason": ending.reason,
                "cause": ending.cause,
                "fingerprint": "0",
                "next_nodes": ["node"],
                "spent": ending.spent,
                "lost": ending.lost,
                "hold": holds(self.graph),
            }
        else:
            statement = requeue(ending.outcome)
            retry = Retry(ending.delay * TICK, bool(ending.spent), ending.waits * TICK, ending.cause)
            parameters = requeue_parameters(retry, **record, **more)
        rows, *_ = yield from _locked(
            self.lane, Step(statement, {**parameters, **self.held()}), *self._trip()
        )
        return _ended(rows)

    def _trip(self) -> list[Step]:
        counted = self.ending.trip
        if counted is None:
            return []
        parameters = {
            "kind": counted.kind,
            "name": counted.name,
            "graph": self.graph,
            "threshold": counted.threshold,
            "cooldown": counted.cooldown * TICK,
            "reason": "Error",
        }
        return [Step(trip(), parameters)]

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        outcome = model.end(self.run_id, self.attempt, self.ending, hold=holds(self.graph), seen=seen)
        if outcome.word == "ended" and self.ending.delay is None:
            model.letters[self.run_id].checkpoint = self.checkpoint
            model.lanes[self.lane].at_node = True
        return outcome

    def told(self, model: Model) -> str:
        ending = self.ending
        then = (
            f"a dead letter, {ending.reason}" if ending.delay is None else f"again in {ending.delay:g} ticks"
        )
        counted = f", counted at breaker {ending.trip.name}" if ending.trip else ""
        return f"{super().told(model)}: {ending.outcome}, {ending.cause}, {then}{counted}"


@dataclass(frozen=True)
class Rescue(OfGrip):
    """What the leader does with an attempt whose worker was gone when it looked."""

    kind = "rescue"
    row: Row
    cause: str

    def plan(self, context: Context) -> Plan[Outcome]:
        done, bell = yield from rescue(self.row, self.cause, holds)
        return Outcome("ended" if done else "LeaseLost", _bells(bell))

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
        return Outcome("ended" if done else "LeaseLost", _bells(bell))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        ending = Ending("lost", "claim unanswered", 0)
        return model.end(self.run_id, self.attempt, ending, hold=False, seen=seen)


@dataclass(frozen=True)
class Expire(OfGrip):
    kind = "expire"
    row: Row

    def plan(self, context: Context) -> Plan[Outcome]:
        done, bell = yield from expire_run(self.row, holds)
        return Outcome("ended" if done else "LeaseLost", _bells(bell))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.expire(self.run_id, self.attempt, hold=holds(self.row["graph"]), seen=seen)

    def told(self, model: Model) -> str:
        return f"expire {model.runs[self.run_id].name} (attempt {self.attempt})"


@dataclass(frozen=True)
class Cancel(OfRun):
    kind = "cancel"
    tenant: str
    action: CancelAction

    def plan(self, context: Context) -> Plan[Outcome]:
        _, bells = yield from cancel_run(self.run_id, self.tenant, self.action)
        return Outcome("cancelled", _bells(*bells))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.cancel(self.run_id, self.action, seen)

    def told(self, model: Model) -> str:
        return f"{super().told(model)} ({self.action})"


@dataclass(frozen=True)
class RingAgain(Move):
    kind = "ring again"
    limit: int

    def plan(self, context: Context) -> Plan[Outcome]:
        (rows,) = yield Batch([Step(ring_again(), {"limit": self.limit, "patience": SILENCE})])
        return Outcome("rang", _bells(*map(bell_of, rows)))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.ring_again(self.limit, seen)

    def told(self, model: Model) -> str:
        return f"ring again, {self.limit} at most"


@dataclass(frozen=True)
class Replay(OfRun):
    kind = "replay"

    def plan(self, context: Context) -> Plan[Outcome]:
        _, bells = yield from replay_letter(str(context.letter_ids[self.run_id]), note("replay"))
        return Outcome("replaying", _bells(*bells))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.replay(self.run_id)


@dataclass(frozen=True)
class Discard(OfRun):
    kind = "discard"

    def plan(self, context: Context) -> Plan[Outcome]:
        _, bells = yield from discard_letter(str(context.letter_ids[self.run_id]), note("discard"))
        return Outcome("discarded", _bells(*bells))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.discard(self.run_id, seen)


@dataclass(frozen=True)
class Park(OfRun):
    kind = "park"

    def plan(self, context: Context) -> Plan[Outcome]:
        parameters = {"letter_id": context.letter_ids[self.run_id], "note": note("park")}
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
            "concurrency": 10,
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
        (rows,) = yield Batch([Step(runs_of_worker(), {"worker_id": self.worker})])
        return Outcome("looked", (), tuple(sorted((row["id"], row["attempt"]) for row in rows)))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.look_at_own(self.worker)


@dataclass(frozen=True)
class CountRefused(OfGrip):
    kind = "count refused"
    count: int

    def plan(self, context: Context) -> Plan[Outcome]:
        parameters = {"run": self.run_id, "number": self.attempt, "refused": self.count}
        yield Batch([Step(count_fenced(), parameters)])
        return Outcome("counted")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.count_refused(self.run_id, self.attempt, self.count)


_PAUSE = """
    insert into tenants (name, paused) values (%s, %s)
    on conflict (name) do update set paused = excluded.paused
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
