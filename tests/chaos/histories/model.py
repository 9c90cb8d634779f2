"""What must be true: a plain model of runs, lanes, leases, dead letters, breakers and checkpoints.

It is written from the promises, not from the SQL. Where the design leaves something open (which of a held
lane's statuses is shown, whether a bell is rung that nobody will answer), the model takes what it is shown.

Time is counted in ticks. It stands still but for `Model.now`, and what lies ahead is due in the middle of a
tick, so that the milliseconds which pass in the database make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

LaneId = tuple[str, str]  # tenant, thread

QUARANTINE_LOSSES = 2
BREAKER_TRIALS = 3
SILENCE = 0.5  # ticks after which a heartbeat is stale, and a bell counts as lost
UNFINISHED = ("pending", "running")
FAILED = ("error", "timeout")
TERMINAL = ("success", "error", "timeout", "interrupted")
OPEN = ("waiting", "parked", "replaying")


class Broken(AssertionError):
    """The ledger and the model disagree, or a promise is broken."""


class Bell(NamedTuple):
    run_id: UUID
    alone: bool


class Outcome(NamedTuple):
    """What became of a move: a word, the bells that are its caller's to ring, and what else it was told."""

    word: str
    bells: tuple[Bell, ...] = ()
    told: object = None


@dataclass
class Run:
    """due, deadline, rung: in ticks. rung: when it was rung for, or claimed; None if neither."""

    id: UUID
    name: str
    lane: LaneId
    seq: int
    graph: str
    max_attempts: int
    due: float
    deadline: float | None
    key: str | None
    rung: float | None
    status: str = "pending"
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    throttled: float = 0
    worker: UUID | None = None
    started: bool = False

    @property
    def is_unfinished(self) -> bool:
        return self.status in UNFINISHED

    @property
    def runs_alone(self) -> bool:
        return self.losses >= QUARANTINE_LOSSES

    @property
    def bell(self) -> Bell:
        return Bell(self.id, self.runs_alone)


@dataclass
class Lane:
    status: str = "idle"
    last_seq: int = 0
    asks: bool = False  # its last run stopped with a question
    shown_holder: UUID | None = None  # whose dead letter the ledger says holds it, where several do


@dataclass
class Record:
    """Of one attempt that did not succeed."""

    outcome: str
    cause: str | None
    worker: UUID | None
    began: float | None
    refused: int = 0


@dataclass
class Letter:
    """Of the run under whose id it is kept."""

    status: str
    reason: str
    hold: bool
    checkpoint: str | None
    replays: int = 0
    mode: str | None = None
    due: float | None = None


@dataclass
class Breaker:
    graphs: list[str]
    failures: int
    open_until: float | None


class Request(NamedTuple):
    """A run to be enqueued. delay, deadline: in ticks from now."""

    id: UUID
    lane: LaneId
    graph: str
    max_attempts: int
    delay: float
    deadline: float | None
    key: str | None
    strategy: str


class Trip(NamedTuple):
    kind: str
    name: str
    threshold: int
    cooldown: float


class Ending(NamedTuple):
    """How an attempt that did not succeed is ended. delay None: with a dead letter."""

    outcome: str
    cause: str
    delay: float | None = None
    status: str = "error"  # of the run, where it is buried
    spent: int = 0
    lost: int = 0
    waits: float = 0
    reason: str = "permanent"
    trip: Trip | None = None


@dataclass
class Model:
    now: float = 0
    # What another transaction, which has not ended, makes possible: as many trials of a half-open breaker,
    # and these runs passed over by whoever rings again, as their rows are locked.
    trials: int = BREAKER_TRIALS
    locked: frozenset[UUID] = frozenset()
    lanes: dict[LaneId, Lane] = field(default_factory=dict)
    runs: dict[UUID, Run] = field(default_factory=dict)
    records: dict[tuple[UUID, int], Record] = field(default_factory=dict)
    letters: dict[UUID, Letter] = field(default_factory=dict)
    workers: dict[UUID, float] = field(default_factory=dict)
    breakers: dict[tuple[str, str], Breaker] = field(default_factory=dict)
    paused: dict[str, bool] = field(default_factory=dict)
    checkpoints: dict[str, tuple[LaneId, UUID, int]] = field(default_factory=dict)
    writes: dict[str, tuple[LaneId, UUID]] = field(default_factory=dict)

    # What holds.

    def on(self, lane: LaneId) -> list[Run]:
        """The lane's runs in the order of their seqs."""
        return sorted((run for run in self.runs.values() if run.lane == lane), key=lambda run: run.seq)

    def unfinished(self, lane: LaneId) -> list[Run]:
        return [run for run in self.on(lane) if run.is_unfinished]

    def holds_lease(self, run_id: UUID, attempt: int) -> bool:
        run = self.runs[run_id]
        return run.status == "running" and run.attempt == attempt

    def holders(self, lane: LaneId) -> list[Run]:
        """The runs whose open dead letters hold the lane for what comes after them."""
        return [
            run
            for run in self.on(lane)
            if (letter := self.letters.get(run.id)) is not None and letter.hold and letter.status in OPEN
        ]

    def is_held(self, run: Run) -> bool:
        return any(holder.seq < run.seq for holder in self.holders(run.lane))

    def is_expired(self, run: Run) -> bool:
        return run.deadline is not None and run.deadline <= self.now

    def is_held_back(self, run: Run) -> bool:
        """A breaker of its graph is open, or half-open with all its trials under way."""
        return any(
            run.graph in breaker.graphs
            and breaker.open_until is not None
            and (breaker.open_until > self.now or self._under_way(breaker) >= self.trials)
            for breaker in self.breakers.values()
        )

    def _under_way(self, breaker: Breaker) -> int:
        assert breaker.open_until is not None
        return sum(
            run.status == "running"
            and run.graph in breaker.graphs
            and run.rung is not None
            and run.rung >= breaker.open_until
            for run in self.runs.values()
        )

    def is_ready(self, run: Run) -> bool:
        """Whether it may be rung for: pending, due, the first of its lane, and nothing holds it back."""
        return (
            run.status == "pending"
            and run.due <= self.now
            and self.unfinished(run.lane)[0] is run
            and not any(other.status == "running" for other in self.on(run.lane))
            and not self.is_held(run)
            and not self.paused.get(run.lane[0], False)
            and not self.is_held_back(run)
        )

    def may_be_claimed(self, run: Run, *, alone: bool) -> bool:
        return self.is_ready(run) and not self.is_expired(run) and (alone or not run.runs_alone)

    def newest_checkpoint(self, run_id: UUID) -> str | None:
        return max((id_ for id_, (_, owner, _) in self.checkpoints.items() if owner == run_id), default=None)

    # What happens. Each method is a move's: it changes the model and says what the mover is told.

    def enqueue(self, requests: Sequence[Request]) -> Outcome:
        """All of them or none, each tenant's at once, the tenants by their names."""
        kept = self._snapshot_of_lanes(requests)
        inserted: dict[UUID, Run] = {}
        keys = {(run.lane[0], run.key): run for run in self.runs.values() if run.key is not None}
        for tenant in sorted({request.lane[0] for request in requests}):
            group = [request for request in requests if request.lane[0] == tenant]
            for run in self._insert(group, keys):
                inserted[run.id] = run
        answers = []
        for request in requests:
            run = inserted.get(request.id)
            if run is None and request.key is not None:
                run = keys.get((request.lane[0], request.key))
            refusal = None
            if run is None:
                refusal = "ThreadBusy"
            elif (run.lane, run.graph) != (request.lane, request.graph):
                refusal = "IdempotencyConflict"
            if refusal is not None or run is None:
                self._undo(inserted, kept)
                return Outcome(refusal or "ThreadBusy")
            answers.append(run.id)
        bells = tuple(run.bell for run in inserted.values() if run.rung is not None)
        return Outcome("enqueued", tuple(sorted(bells)), tuple(answers))

    def _snapshot_of_lanes(self, requests: Sequence[Request]) -> dict[LaneId, tuple[str, int] | None]:
        return {
            request.lane: (lane.status, lane.last_seq) if (lane := self.lanes.get(request.lane)) else None
            for request in requests
        }

    def _undo(self, inserted: Iterable[UUID], lanes: dict[LaneId, tuple[str, int] | None]) -> None:
        for run_id in inserted:
            del self.runs[run_id]
        for id_, stood in lanes.items():
            if stood is None:
                self.lanes.pop(id_, None)
            else:
                self.lanes[id_].status, self.lanes[id_].last_seq = stood

    def _insert(self, group: Sequence[Request], keys: dict[tuple[str, str | None], Run]) -> Iterator[Run]:
        seqs: dict[LaneId, int] = {}
        stands_free = {}
        for request in group:
            lane = self.lanes.setdefault(request.lane, Lane())
            seqs.setdefault(request.lane, lane.last_seq)
            stands_free.setdefault(request.lane, not self.unfinished(request.lane))
            lane.last_seq += 1
        first = set(seqs)
        for request in group:
            seqs[request.lane] += 1
            leads = request.lane in first and stands_free[request.lane]
            first.discard(request.lane)
            taken = request.key is not None and (request.lane[0], request.key) in keys
            if taken or (request.strategy == "reject" and not leads):
                continue
            run = Run(
                id=request.id,
                name=f"r{len(self.runs) + 1}",
                lane=request.lane,
                seq=seqs[request.lane],
                graph=request.graph,
                max_attempts=request.max_attempts,
                due=self.now + request.delay,
                deadline=None if request.deadline is None else self.now + request.deadline,
                key=request.key,
                rung=None,
            )
            if leads and run.due <= self.now and not self.holders(run.lane):
                run.rung = self.now
            self.runs[run.id] = run
            self.lanes[run.lane].status = "busy"
            if request.key is not None:
                keys[request.lane[0], request.key] = run
            yield run

    def claim(self, run_id: UUID, worker: UUID, *, alone: bool) -> Outcome:
        run = self.runs[run_id]
        if not self.may_be_claimed(run, alone=alone):
            return Outcome("dropped")
        run.status, run.worker, run.rung, run.started = "running", worker, self.now, True
        run.attempt += 1
        return Outcome("claimed", (), (run.attempt, run.failures, run.losses))

    def write(self, run_id: UUID, attempt: int, checkpoint: str) -> Outcome:
        if not self.holds_lease(run_id, attempt):
            return Outcome("fenced")
        self.checkpoints[checkpoint] = (self.runs[run_id].lane, run_id, attempt)
        return Outcome("written")

    def write_pending(self, run_id: UUID, attempt: int, task: str) -> Outcome:
        if not self.holds_lease(run_id, attempt):
            return Outcome("fenced")
        self.writes[task] = (self.runs[run_id].lane, run_id)
        return Outcome("written")

    def succeed(
        self, run_id: UUID, attempt: int, *, asks: bool, calls: Sequence[str], seen: Outcome
    ) -> Outcome:
        if not self.holds_lease(run_id, attempt):
            return Outcome("LeaseLost")
        run = self.runs[run_id]
        run.status = "success"
        letter = self.letters.get(run_id)
        if letter is not None and letter.status == "replaying":
            letter.status, letter.due = "resolved", None
        lane = self.lanes[run.lane]
        lane.asks = asks
        self._show(run, "interrupted" if asks else "idle")
        for kind, name in [("graph", run.graph), *(("dependency", call) for call in calls)]:
            breaker = self.breakers.get((kind, name))
            if breaker is not None and (breaker.open_until is None or breaker.open_until <= self.now):
                del self.breakers[kind, name]
        return Outcome("ended", self._ring_next(run, seen))

    def end(self, run_id: UUID, attempt: int, ending: Ending, *, hold: bool, seen: Outcome) -> Outcome:
        """An attempt that did not succeed ends: its run is pending again, or has a dead letter."""
        if ending.trip is not None:  # what failed, failed, whoever was at work
            self.trip(self.runs[run_id].graph, ending.trip)
        if not self.holds_lease(run_id, attempt):
            return Outcome("LeaseLost")
        run = self.runs[run_id]
        self.records[run_id, attempt] = Record(ending.outcome, ending.cause, run.worker, run.rung)
        run.failures += ending.spent
        run.losses += ending.lost
        run.throttled += ending.waits
        if ending.delay is None:
            return Outcome("ended", self._bury(run, ending.status, ending.reason, hold, seen))
        run.status = "pending"
        run.due = self.now + ending.delay
        run.rung = self.now if ending.delay <= 0 else None
        return Outcome("ended", (run.bell,) if run.rung is not None else ())

    def rescue(
        self, run_id: UUID, attempt: int, cause: str, losses: int, *, hold: bool, seen: Outcome
    ) -> Outcome:
        """losses: of the run, as of when the leader looked."""
        third = losses + 1 > QUARANTINE_LOSSES
        ending = Ending("lost", cause, None if third else 0, lost=1, reason="worker_lost")
        return self.end(run_id, attempt, ending, hold=hold, seen=seen)

    def expire(self, run_id: UUID, attempt: int, *, hold: bool, seen: Outcome) -> Outcome:
        run = self.runs[run_id]
        if run.status != "pending" or run.attempt != attempt or not self.is_expired(run):
            return Outcome("LeaseLost")
        return Outcome("ended", self._bury(run, "timeout", "timeout", hold, seen))

    def _bury(self, run: Run, status: str, reason: str, hold: bool, seen: Outcome) -> tuple[Bell, ...]:
        run.status = status
        letter = self.letters.setdefault(run.id, Letter("waiting", reason, hold, None))
        letter.status, letter.reason, letter.hold, letter.due = "waiting", reason, hold, None
        letter.checkpoint = self.newest_checkpoint(run.id)
        self._show(run, "error")
        return self._ring_next(run, seen, held=hold)

    def cancel(self, run_id: UUID, seen: Outcome) -> Outcome:
        run = self.runs[run_id]
        if not run.is_unfinished:
            return Outcome("NotCancellable")
        was_running = run.status == "running"
        if was_running:
            self.records[run_id, run.attempt] = Record("cancelled", "on request", run.worker, run.rung)
        run.status = "interrupted"
        letter = self.letters.get(run_id)
        if letter is not None and letter.status == "replaying":
            letter.status, letter.due = "discarded", None
        self._show(run, "interrupted" if was_running or self.lanes[run.lane].asks else "idle")
        return Outcome("cancelled", self._ring_next(run, seen))

    def ring_again(self, limit: int, seen: Outcome) -> Outcome:
        """So many of the ready runs as the limit lets through, whichever the ledger takes first."""
        ready = [
            run
            for run in self.runs.values()
            if self.is_ready(run) and (run.rung is None or run.rung < self.now - SILENCE)
        ]
        bells = {run.bell for run in ready}
        enough = len(seen.bells) == limit or all(
            run.id in self.locked for run in ready if run.bell not in seen.bells
        )
        if enough and bells.issuperset(seen.bells):
            bells = set(seen.bells)
        for bell in bells:
            self.runs[bell.run_id].rung = self.now
        return Outcome("rang", tuple(sorted(bells)))

    def replay(self, run_id: UUID) -> Outcome:
        letter, run = self.letters[run_id], self.runs[run_id]
        if letter.status not in ("waiting", "parked"):
            return Outcome("NotReplayable")
        moved = any(later.started for later in self.on(run.lane) if later.seq > run.seq)
        letter.status, letter.due, letter.mode = "replaying", None, "append" if moved else "resume"
        letter.replays += 1
        run.status, run.due, run.deadline, run.rung, run.worker = "pending", self.now, None, None, None
        run.failures, run.throttled, run.losses = 0, 0, min(run.losses, QUARANTINE_LOSSES)
        self.lanes[run.lane].status = "busy"
        return Outcome("replaying", (run.bell,))

    def discard(self, run_id: UUID, seen: Outcome) -> Outcome:
        letter, run = self.letters[run_id], self.runs[run_id]
        if letter.status not in ("waiting", "parked"):
            return Outcome("NotReplayable")
        held = run in self.holders(run.lane)
        letter.status, letter.due = "discarded", None
        if held:
            self._show(run, "error")
        return Outcome("discarded", self._ring_next(run, seen, held=bool(self.holders(run.lane))))

    def park(self, run_id: UUID) -> Outcome:
        letter = self.letters[run_id]
        if letter.status != "waiting":
            return Outcome("stands")
        letter.status, letter.due = "parked", None
        return Outcome("parked")

    def schedule(self, run_id: UUID, delay: float) -> Outcome:
        letter = self.letters[run_id]
        if letter.status != "waiting" or letter.due is not None:
            return Outcome("stands")
        letter.due = self.now + delay
        return Outcome("scheduled")

    def trip(self, graph: str, trip: Trip) -> None:
        breaker = self.breakers.setdefault((trip.kind, trip.name), Breaker([], 0, None))
        breaker.failures += 1
        if graph not in breaker.graphs:
            breaker.graphs.append(graph)
        is_open = breaker.open_until is not None and breaker.open_until > self.now
        if breaker.failures >= trip.threshold and not is_open:
            breaker.open_until = self.now + trip.cooldown

    def enlist(self, worker: UUID) -> Outcome:
        self.workers[worker] = self.now
        return Outcome("enlisted")

    def beat(self, worker: UUID) -> Outcome:
        if worker not in self.workers:
            return Outcome("struck off")
        self.workers[worker] = self.now
        return Outcome("beaten")

    def strike_off(self, worker: UUID) -> Outcome:
        return Outcome("struck off" if self.workers.pop(worker, None) is not None else "unknown")

    def strike_off_silent(self) -> Outcome:
        """Told: who was struck off, and the attempts whose workers are gone."""
        silent = sorted(worker for worker, at in self.workers.items() if at < self.now - SILENCE)
        for worker in silent:
            del self.workers[worker]
        orphans = self._attempts(lambda run: run.status == "running" and run.worker not in self.workers)
        return Outcome("swept", (), (tuple(silent), orphans))

    def look_for_expired(self) -> Outcome:
        return Outcome(
            "looked", (), self._attempts(lambda run: run.status == "pending" and self.is_expired(run))
        )

    def look_at_own(self, worker: UUID) -> Outcome:
        return Outcome(
            "looked", (), self._attempts(lambda run: run.status == "running" and run.worker == worker)
        )

    def _attempts(self, which: Callable[[Run], bool]) -> tuple[tuple[UUID, int], ...]:
        return tuple(sorted((run.id, run.attempt) for run in self.runs.values() if which(run)))

    def count_refused(self, run_id: UUID, attempt: int, count: int) -> Outcome:
        if record := self.records.get((run_id, attempt)):
            record.refused += count
        return Outcome("counted")

    def pause(self, tenant: str, paused: bool) -> Outcome:
        self.paused[tenant] = paused
        return Outcome("paused" if paused else "unpaused")

    # What follows.

    def _next_of(self, run: Run) -> Run | None:
        return next(iter(self.unfinished(run.lane)), None)

    def _show(self, ended: Run, status: str) -> None:
        """The thread's status once a run has ended: busy while another is to be done."""
        self.lanes[ended.lane].status = "busy" if self._next_of(ended) is not None else status

    def _ring_next(self, ended: Run, seen: Outcome, *, held: bool = False) -> tuple[Bell, ...]:
        """The bell of the lane's next run, if it is due. In a held lane it may be left to the leader."""
        following = self._next_of(ended)
        if following is None or following.status != "pending" or following.due > self.now:
            return ()
        if (held or self.is_held(following)) and following.bell not in seen.bells:
            return ()
        following.rung = self.now
        return (following.bell,)
