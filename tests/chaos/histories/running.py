"""What puts runs in and what executes them: enqueue, claim, write, succeed, fail."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import psycopg
from tests.chaos.histories.model import Model
from tests.chaos.histories.move import (
    GRAPHS,
    SILENCE,
    Context,
    Move,
    OfGrip,
    OfRun,
    bells_of,
    ended,
    holds,
    locked,
    policy_of,
)
from tests.chaos.histories.picture import TICK
from tests.chaos.histories.state import Ending, LaneId, Outcome, Request

from threadmill.core.doorbell import bell_of
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST, Floors
from threadmill.core.keys import thread_key
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Rows, Step, compiled
from threadmill.core.transitions import (
    bury,
    claim,
    claim_taken,
    count_fenced,
    pick_many,
    pick_next,
    requeue,
    ring_taken,
    succeed,
    trip,
    unring,
)
from threadmill.producers.enqueue import enqueue
from threadmill.producers.quotas import Quotas
from threadmill.producers.request import check_request
from threadmill.workers.burial import ENDED, Place, burial
from threadmill.workers.checkpoint_writes import Binding, CheckpointWrite, TaskWrites, Write, statements
from threadmill.workers.ending import Retry, requeue_parameters
from threadmill.workers.failure import Failure, describe
from threadmill.workers.lease import FENCED


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
            Floors(0),
        )
        told = (tuple(UUID(run.id) for run in enqueued.runs), tuple(sorted(enqueued.cancelled)))
        return Outcome("enqueued", bells_of(*enqueued.bells), told)

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
        return checked._replace(id=str(request.id))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.enqueue(self.requests, seen)

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


def _claimant(worker: UUID, *, alone: bool) -> dict[str, Any]:
    return {"worker_id": worker, "versions": '{"skips": "1", "holds": "1"}', "alone": alone}


def _told_of(rows: Rows) -> tuple[tuple[UUID, int], ...]:
    return tuple(sorted((row["id"], row["attempt"]) for row in rows))


def taken(seen: Outcome) -> tuple[tuple[UUID, int], ...]:
    """The attempts with which a worker came away that took runs itself."""
    return seen.told if isinstance(seen.told, tuple) else ()


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
            **_claimant(self.worker, alone=self.alone),
        }
        (rows,) = yield from locked(self.lane, Step(claim(), parameters))
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
class Unring(OfRun):
    """What a worker says that has answered a bell, and could not start the run."""

    kind = "unring"
    tenant: str

    def plan(self, context: Context) -> Plan[Outcome]:
        yield Batch([Step(unring(), {"run_id": self.run_id, "tenant": self.tenant})])
        return Outcome("unrung")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.unring(self.run_id, self.tenant)


@dataclass(frozen=True)
class Take(Move):
    """A worker with so many free slots looks for what is ready."""

    kind = "take"
    worker: UUID
    limit: int

    def plan(self, context: Context) -> Plan[Outcome]:
        look = {"graphs": list(GRAPHS), "patience": SILENCE, "limit": self.limit, **FROM_THE_FIRST}
        pick = Step(pick_many(), look)
        _, rows = yield Batch([pick, Step(claim_taken(), _claimant(self.worker, alone=False))])
        return Outcome("took", (), _told_of(rows))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.take(self.worker, self.limit, seen)

    def told(self, model: Model) -> str:
        return f"take {self.limit} at most"


@dataclass(frozen=True)
class WriteCheckpoint(OfGrip):
    kind = "write checkpoint"
    lane: LaneId
    checkpoint: str
    parent: str | None

    def carry_out(self, connection: psycopg.Connection[Any], context: Context) -> Outcome:
        key = thread_key(*self.lane)
        write = CheckpointWrite(
            key=key,
            namespace="",
            checkpoint_id=self.checkpoint,
            parent_id=self.parent,
            checkpoint={"channel_versions": {"channel": self.checkpoint}},
            metadata={"run_id": str(self.run_id), "attempt": self.attempt},
            blobs=[(key, "", "channel", self.checkpoint, "bytes", b"value")],
        )
        return _write(connection, write, Binding(self.lane[0], self.run_id, self.attempt))

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
        write = TaskWrites([row], replaces=False)
        return _write(connection, write, Binding(self.lane[0], self.run_id, self.attempt))

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.write_pending(self.run_id, self.attempt, self.task, self.checkpoint)


def _write(connection: psycopg.Connection[Any], write: Write, binding: Binding) -> Outcome:
    (step,) = statements(binding, [write])
    try:
        connection.execute(compiled(step.statement).sql.encode(), step.parameters)
    except psycopg.Error as error:
        if error.sqlstate != FENCED:
            raise
        return Outcome("fenced")
    return Outcome("written")


@dataclass(frozen=True)
class Succeed(OfGrip):
    """then: what becomes of the slot, as in `workers.claims.Next`."""

    kind = "succeed"
    lane: LaneId
    worker: UUID
    asks: bool
    calls: tuple[str, ...]
    then: Literal["leave", "ring", "claim"]

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
        rows, *following = yield from locked(self.lane, Step(succeed(), parameters), *self._then())
        word = "ended" if rows else "LeaseLost"
        match self.then:
            case "claim":
                return Outcome(word, (), _told_of(following[1]))
            case "ring":
                return Outcome(word, bells_of(*map(bell_of, following[1])))
            case "leave":
                return Outcome(word)

    def _then(self) -> list[Step]:
        look = {
            **dict(zip(("tenant", "thread_id"), self.lane, strict=True)),
            "graphs": list(GRAPHS),
            "floor": BEGINNING,
            "patience": SILENCE,
        }
        match self.then:
            case "claim":
                return [Step(pick_next(), look), Step(claim_taken(), _claimant(self.worker, alone=False))]
            case "ring":
                return [Step(pick_next(), look), Step(ring_taken(), {"patience": SILENCE})]
            case "leave":
                return []

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        outcome = model.succeed(self.run_id, self.attempt, asks=self.asks, calls=self.calls)
        tenant = self.lane[0]
        match self.then:
            case "claim":
                return outcome._replace(told=model.take(self.worker, 1, seen, tenant=tenant).told)
            case "ring":
                return outcome._replace(bells=model.ring_next(tenant, seen))
            case "leave":
                return outcome

    def told(self, model: Model) -> str:
        return f"{super().told(model)}, and {self.then}"


@dataclass(frozen=True)
class Fail(OfGrip):
    """An attempt ends without success, as `Executor._finish` writes it."""

    kind = "fail"
    lane: LaneId
    graph: str
    ending: Ending
    checkpoint: str | None
    replays: int

    def plan(self, context: Context) -> Plan[Outcome]:
        ending = self.ending
        failure = describe(RuntimeError("failed"), self.graph, "node")
        if ending.delay is None:
            return (yield from self._bury(context, failure))
        retry = Retry(ending.delay * TICK, bool(ending.spent), ending.waits * TICK, ending.cause)
        record = failure.record(self.checkpoint)
        parameters = requeue_parameters(retry, error=failure.error(), **record)
        step = Step(requeue(ending.outcome), {**parameters, **self.held()})
        rows, *_ = yield from locked(self.lane, step, *self._trip())
        return ended(rows)

    def _bury(self, context: Context, failure: Failure) -> Plan[Outcome]:
        ending = self.ending
        tenant, thread_id = self.lane
        run = {"id": self.run_id, "tenant": tenant, "thread_id": thread_id, "attempt": self.attempt}
        steps = burial(
            context.settings,
            policy_of(self.graph),
            {**run, "replays": self.replays},
            bury(ending.status, ending.outcome),
            ending.reason,
            failure,
            Place(self.checkpoint, next_nodes=["node"]),
            cause=ending.cause,
            message=failure.message,
            spent=ending.spent,
            lost=ending.lost,
        )
        results = yield Batch([*steps, *self._trip()])
        return ended(results[ENDED])

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
class CountRefused(OfGrip):
    kind = "count refused"
    count: int

    def plan(self, context: Context) -> Plan[Outcome]:
        parameters = {"run": self.run_id, "number": self.attempt, "refused": self.count}
        yield Batch([Step(count_fenced(), parameters)])
        return Outcome("counted")

    def apply(self, model: Model, seen: Outcome) -> Outcome:
        return model.count_refused(self.run_id, self.attempt, self.count)
