"""What must be true: a plain model of runs, lanes, leases, dead letters, breakers and checkpoints.

It is written from the promises, not from the SQL. Where the design leaves something open (which of a held
lane's statuses is shown, whether a bell is rung that nobody will answer), the model takes what it is shown.

Time is counted in ticks. It stands still but for `Model.now`, and what lies ahead is due in the middle of a
tick, so that the milliseconds which pass in the database make no difference.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from tests.chaos.histories.state import (
    BREAKER_TRIALS,
    CONCURRENCY,
    DRAINED,
    MAX_REPLAYS,
    OPEN,
    QUARANTINE_LOSSES,
    SILENCE,
    SUPERSEDING,
    Bell,
    Beside,
    Breaker,
    Checkpoint,
    Ending,
    Lane,
    LaneId,
    Letter,
    Outcome,
    Record,
    Request,
    Run,
    Trip,
)


@dataclass
class Model:
    now: float = 0
    # What another transaction, which has not ended, makes possible: as many trials of a half-open breaker,
    # and these runs passed over by whoever looks for some to start, as they are locked. None: there is none.
    trials: int = BREAKER_TRIALS
    locked: frozenset[UUID] | None = None
    endings: int = 0
    lanes: dict[LaneId, Lane] = field(default_factory=dict)
    runs: dict[UUID, Run] = field(default_factory=dict)
    records: dict[tuple[UUID, int], Record] = field(default_factory=dict)
    letters: dict[UUID, Letter] = field(default_factory=dict)
    workers: dict[UUID, float] = field(default_factory=dict)
    breakers: dict[tuple[str, str], Breaker] = field(default_factory=dict)
    paused: dict[str, bool] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    writes: dict[str, Beside] = field(default_factory=dict)

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

    def is_next(self, run: Run) -> bool:
        """Pending, the first of its lane, of which none is running, and not held: its turn when it is due."""
        return (
            run.status == "pending"
            and self.unfinished(run.lane)[0] is run
            and not any(other.status == "running" for other in self.on(run.lane))
            and not self.is_held(run)
        )

    def is_ready(self, run: Run) -> bool:
        """Whether it may be started: its turn has come, and nothing holds its tenant or its graph back."""
        return (
            self.is_next(run)
            and run.due <= self.now
            and not self.paused.get(run.lane[0], False)
            and not self.is_held_back(run)
        )

    def is_rung(self, run: Run) -> bool:
        """A bell for it is on its way, as far as anybody knows."""
        return run.rung is not None and run.rung >= self.now - SILENCE

    def may_be_taken(self, run: Run) -> bool:
        """By who has no bell for it: not beside others if it must be alone, and no trial of a breaker."""
        return (
            self.may_be_claimed(run, alone=False)
            and not self.is_rung(run)
            and not any(run.graph in b.graphs and b.open_until is not None for b in self.breakers.values())
        )

    def running(self, tenant: str) -> int:
        return sum(run.lane[0] == tenant and run.status == "running" for run in self.runs.values())

    def may_be_claimed(self, run: Run, *, alone: bool) -> bool:
        return self.is_ready(run) and not self.is_expired(run) and (alone or not run.runs_alone)

    def newest_checkpoint(self, run_id: UUID) -> str | None:
        own = (id_ for id_, checkpoint in self.checkpoints.items() if checkpoint.run_id == run_id)
        return max(own, default=None)

    def newest(self, lane: LaneId) -> str | None:
        """The lane's newest checkpoint, whether of any effect or not."""
        of_lane = (id_ for id_, checkpoint in self.checkpoints.items() if checkpoint.lane == lane)
        return max(of_lane, default=None)

    def head(self, run: Run) -> str | None:
        """The checkpoint from which an attempt of the run goes on."""
        letter = self.letters.get(run.id)
        if letter is not None and letter.mode == "resume":
            return self.newest(run.lane)
        return self.live(run.lane)

    def live(self, lane_id: LaneId) -> str | None:
        """The lane's newest checkpoint that is of effect."""
        lane = self.lanes[lane_id]
        live = (
            id_
            for id_, checkpoint in self.checkpoints.items()
            if checkpoint.lane == lane_id
            and (lane.dead is None or id_ > lane.dead or id_ <= (lane.base or ""))
        )
        return max(live, default=None)

    # What happens. Each method is a move's: it changes the model and says what the mover is told.

    def enqueue(self, requests: Sequence[Request], seen: Outcome) -> Outcome:
        """All of them or none, to the effect of one after the other.

        Told: whose they are, one for each request, and whose place they took.
        """
        stood = copy.deepcopy(vars(self))
        bells: list[Bell] = []
        superseded: set[UUID] = set()
        for wave in _waves(requests):
            for request in wave:
                superseded.update(self._supersede(request))
            bells += self._insert(wave, seen)
        refusal, answers = self._answers(requests)
        if refusal is not None:
            vars(self).update(stood)
            return Outcome(refusal)
        rung = (bell for bell in bells if bell.run_id not in superseded)
        return Outcome("enqueued", tuple(sorted(rung)), (answers, tuple(sorted(superseded))))

    def _answers(self, requests: Sequence[Request]) -> tuple[str | None, tuple[UUID, ...]]:
        """The refusal, if there is one, and the run of each request: its own, or that with its key."""
        answers = []
        for request in requests:
            run = self.runs.get(request.id) or self._of_key(request)
            if run is None:
                return "ThreadBusy", ()
            if (run.lane, run.graph) != (request.lane, request.graph):
                return "IdempotencyConflict", ()
            answers.append(run.id)
        return None, tuple(answers)

    def _of_key(self, request: Request) -> Run | None:
        """The run of its tenant that has the request's key."""
        same = (run for run in self.runs.values() if run.lane[0] == request.lane[0])
        return next((run for run in same if request.key is not None and run.key == request.key), None)

    def _supersede(self, request: Request) -> list[UUID]:
        if request.strategy not in SUPERSEDING or self._of_key(request) is not None:
            return []
        ended = self.unfinished(request.lane)
        self._end_on_request(ended, request.strategy, f"multitask {request.strategy}")
        self._take_back(ended, request.strategy)
        return [run.id for run in ended]

    def _insert(self, wave: Sequence[Request], seen: Outcome) -> list[Bell]:
        """Of one tenant, at once. Rung for are those that lead their lanes, as long as there are fewer bells
        of the tenant's than workers, and only if nothing of theirs waits without one.

        What follows on a lane in the same call never leads, whatever became of the first.
        """
        tenant = wave[0].lane[0]
        of_tenant = [run for run in self.runs.values() if run.lane[0] == tenant]
        left = self._bells_at_once() - sum(
            run.status == "pending" and run.rung is not None for run in of_tenant
        )
        waiting = {
            run.graph for run in of_tenant if self.is_next(run) and run.due <= self.now and run.rung is None
        }
        leading = [
            request
            for number, request in enumerate(wave)
            if not any(request.lane == before.lane for before in wave[:number])
            and not self.unfinished(request.lane)
        ]
        ready = [r for r in leading if r.delay <= 0 and not self.holders(r.lane)]
        rings = [] if any(r.graph in waiting for r in leading) else ready[: max(left, 0)]
        bells = []
        for request in wave:
            run = self._enter(request, leads=request in leading)
            if run is None:
                continue
            # What somebody else puts in meanwhile is not seen.
            told = rings if self.locked is None else [r for r in ready if run.bell in seen.bells]
            if request in told:
                run.rung = self.now
                bells.append(run.bell)
        return bells

    def _enter(self, request: Request, *, leads: bool) -> Run | None:
        lane = self.lanes.setdefault(request.lane, Lane())
        lane.last_seq += 1
        if self._of_key(request) is not None or (request.strategy == "reject" and not leads):
            return None
        run = Run(
            id=request.id,
            name=f"r{len(self.runs) + 1}",
            lane=request.lane,
            seq=lane.last_seq,
            graph=request.graph,
            max_attempts=request.max_attempts,
            due=self.now + request.delay,
            deadline=None if request.deadline is None else self.now + request.deadline,
            key=request.key,
            rung=None,
        )
        self.runs[run.id] = run
        lane.status = "busy"
        return run

    def claim(self, run_id: UUID, worker: UUID, *, alone: bool) -> Outcome:
        run = self.runs[run_id]
        if worker not in self.workers or not self.may_be_claimed(run, alone=alone):
            return Outcome("dropped")
        self._start(run, worker)
        return Outcome("claimed", (), (run.attempt, run.failures, run.losses))

    def _start(self, run: Run, worker: UUID) -> None:
        run.status, run.worker, run.rung, run.started = "running", worker, self.now, True
        run.attempt += 1

    def take(self, worker: UUID, limit: int, seen: Outcome, *, tenant: str | None = None) -> Outcome:
        """Told: the attempts, of so many runs, or as many as there are; whichever the ledger took, but of
        the tenant that has the least running. tenant: only of this one."""
        is_others = {run.id for run in self.runs.values() if tenant not in (None, run.lane[0])}
        ready = [r for r in self.runs.values() if self.may_be_taken(r) and r.id not in is_others]
        if self.locked is not None:  # what was picked may have been rung for before it was claimed
            ready = [r for r in self.runs.values() if self.may_be_claimed(r, alone=False)]
        if worker not in self.workers:
            ready = []
        found = {run_id for run_id, _ in seen.told} if isinstance(seen.told, tuple) else set()
        if not self._is_fair(ready, found, limit):
            found = {run.id for run in ready[:limit]}
        for run_id in found:
            self._start(self.runs[run_id], worker)
        return Outcome("took", (), tuple(sorted((run_id, self.runs[run_id].attempt) for run_id in found)))

    def _is_fair(self, ready: Sequence[Run], found: Collection[UUID], limit: int) -> bool:
        if not {run.id for run in ready}.issuperset(found):
            return False
        if self.locked is not None:
            return len(found) <= limit
        got = Counter(run.lane[0] for run in ready if run.id in found)
        left = {run.lane[0] for run in ready if run.id not in found}
        standing = {tenant: self.running(tenant) + got[tenant] for tenant in {*got, *left}}
        fair = all(standing[had] <= standing[other] + 1 for had in got for other in left)
        return fair and len(found) == min(limit, len(ready))

    def unring(self, run_id: UUID, tenant: str) -> Outcome:
        run = self.runs[run_id]
        if run.status == "pending" and run.lane[0] == tenant:
            run.rung = None
        return Outcome("unrung")

    def ring_next(self, tenant: str, seen: Outcome) -> tuple[Bell, ...]:
        """A bell for one of the tenant's runs, if any could be taken."""
        ready = [run for run in self.runs.values() if self.may_be_taken(run) and run.lane[0] == tenant]
        chosen = [run for run in ready if run.bell in seen.bells] or ready
        if self.locked is not None and not seen.bells:
            chosen = []
        for run in chosen[:1]:
            run.rung = self.now
        return tuple(run.bell for run in chosen[:1])

    def write(self, run_id: UUID, attempt: int, checkpoint: str, parent: str | None) -> Outcome:
        if not self.holds_lease(run_id, attempt):
            return Outcome("fenced")
        self.checkpoints[checkpoint] = Checkpoint(self.runs[run_id].lane, run_id, attempt, parent)
        return Outcome("written")

    def write_pending(self, run_id: UUID, attempt: int, task: str, checkpoint: str) -> Outcome:
        if not self.holds_lease(run_id, attempt):
            return Outcome("fenced")
        self.writes[task] = Beside(self.runs[run_id].lane, run_id, checkpoint)
        return Outcome("written")

    def succeed(self, run_id: UUID, attempt: int, *, asks: bool, calls: Sequence[str]) -> Outcome:
        if not self.holds_lease(run_id, attempt):
            return Outcome("LeaseLost")
        run = self.runs[run_id]
        self._end(run, "success")
        letter = self.letters.get(run_id)
        if letter is not None and letter.status == "replaying":
            letter.status, letter.due = "resolved", None
        lane = self.lanes[run.lane]
        if letter is not None and letter.mode == "resume":
            lane.base = lane.dead = None  # what it had written when it failed is of effect after all
        lane.asks = lane.at_node = asks
        self._show(run, "interrupted" if asks else "idle")
        for kind, name in [("graph", run.graph), *(("dependency", call) for call in calls)]:
            breaker = self.breakers.get((kind, name))
            if breaker is not None and (breaker.open_until is None or breaker.open_until <= self.now):
                del self.breakers[kind, name]
        return Outcome("ended")

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
        run.rung = None  # as though nobody had rung, should the bell be lost
        if self._next_of(run) is not run:  # an earlier one was replayed
            return Outcome("ended", self._ring_next(run))
        return Outcome("ended", (run.bell,) if ending.delay <= 0 and self.is_next(run) else ())

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
        self._end(run, status)
        letter = self.letters.setdefault(run.id, Letter("waiting", reason, hold, None))
        letter.status, letter.reason, letter.hold, letter.due = "waiting", reason, hold, None
        if reason in DRAINED:
            parked = run.replays >= MAX_REPLAYS
            letter.status, letter.due = ("parked", None) if parked else ("waiting", self.now)
        letter.checkpoint = self.newest_checkpoint(run.id)
        self._set_aside(run)
        letter.base = self.lanes[run.lane].base
        self._show(run, "error")
        return self._ring_next(run)

    def _set_aside(self, run: Run) -> None:
        """What the run has written since it began, or was replayed, is of no effect on those that follow."""
        lane = self.lanes[run.lane]
        own = [id_ for id_, c in self.checkpoints.items() if c.run_id == run.id and id_ > (lane.dead or "")]
        if not own:
            lane.base = self.live(run.lane)
            lane.dead = max(filter(None, (lane.dead, lane.base)), default=None)
            return
        parent = self.checkpoints[min(own)].parent
        if lane.dead is None or (parent is not None and parent > lane.dead):
            lane.base = parent
        lane.dead = max(own)

    def cancel(self, run_id: UUID, action: str, seen: Outcome) -> Outcome:
        run = self.runs[run_id]
        if not run.is_unfinished:
            return Outcome("NotCancellable")
        self._end_on_request([run], action, "on request")
        left = "interrupted" if action == "interrupt" and run.started else self._status_before(run)
        self._show(run, left)
        self._take_back([run], action)
        return Outcome("cancelled", self._ring_next(run))

    def _end_on_request(self, runs: Sequence[Run], action: str, cause: str) -> None:
        for run in runs:
            if run.status == "running":
                self.records[run.id, run.attempt] = Record("cancelled", cause, run.worker, run.rung)
            self._end(run, "interrupted")
            run.action = action
            letter = self.letters.get(run.id)
            if letter is None or letter.status != "replaying":
                continue
            letter.status, letter.due = "discarded", None
            lane = self.lanes[run.lane]
            if action == "rollback" and not lane.asks and not self._has_moved(run):
                lane.at_node = False  # at no node of the failed run any more

    def _has_moved(self, run: Run) -> bool:
        return any(later.started for later in self.on(run.lane) if later.seq > run.seq)

    def _was_overtaken(self, run: Run) -> bool:
        """An earlier run was replayed since this one failed, or is about to go first."""
        earlier = (other for other in self.on(run.lane) if other.seq < run.seq and other.replays)
        return any(other.is_unfinished or other.ended > run.ended for other in earlier)

    def _end(self, run: Run, status: str) -> None:
        self.endings += 1
        run.status, run.ended = status, self.endings

    def _status_before(self, cancelled: Run) -> str:
        """As the last run that took effect had left the lane."""
        took_effect = [
            run
            for run in self.on(cancelled.lane)
            if run.started and not run.is_unfinished and run.action != "rollback" and run is not cancelled
        ]
        if not took_effect:
            return "idle"
        lane, last = self.lanes[cancelled.lane], took_effect[-1].status
        if last == "success":
            return "interrupted" if lane.asks or lane.at_node else "idle"
        return "interrupted" if last == "interrupted" else "error"

    def _take_back(self, cancelled: Sequence[Run], action: str) -> None:
        """What rolled back runs wrote is gone, and what a cancelled run has answered is asked no more."""
        if not cancelled:
            return
        lane = cancelled[0].lane
        ids = {run.id for run in cancelled}
        if action == "rollback":
            self._roll_back(lane, ids)
        head = self.live(lane)
        if head is not None:
            wrote = {self.checkpoints[head].run_id}
            wrote |= {w.run_id for w in self.writes.values() if w.lane == lane and w.checkpoint == head}
            if wrote & ids:
                self.lanes[lane].asks = False

    def _roll_back(self, lane: LaneId, ids: set[UUID]) -> None:
        """Removes the runs' checkpoints after the last upon which another run's is built."""
        of_lane = {id_: c for id_, c in self.checkpoints.items() if c.lane == lane}
        mine = {id_ for id_, checkpoint in of_lane.items() if checkpoint.run_id in ids}
        built_upon = max(
            (c.parent for id_, c in of_lane.items() if c.parent in mine and id_ not in mine and c.parent),
            default="",
        )
        gone = {id_ for id_ in mine if id_ > built_upon}
        led_on = {c.parent for id_, c in of_lane.items() if id_ not in gone}
        for id_ in gone:
            del self.checkpoints[id_]
        for task, write in list(self.writes.items()):
            beside = write.checkpoint in gone or (write.run_id in ids and write.checkpoint not in led_on)
            if write.lane == lane and beside:
                del self.writes[task]

    def ring(self, limit: int, seen: Outcome) -> Outcome:
        """For the ready runs whose bells were lost, and for others as far as their tenants have less than
        their share; so many as the limit lets through, whichever the ledger takes first."""
        ready = [
            run
            for run in self.runs.values()
            if self.is_ready(run) and not self.is_expired(run) and not self.is_rung(run)
        ]
        found = [run for run in ready if run.bell in seen.bells]
        if len(found) < len(seen.bells) or not self._is_enough(ready, found, limit):
            found = ready[:limit]
        for run in found:
            run.rung = self.now
        return Outcome("rang", tuple(sorted(run.bell for run in found)))

    def _is_enough(self, ready: Sequence[Run], found: Sequence[Run], limit: int) -> bool:
        if self.locked is not None or len(found) >= limit:
            return len(found) <= limit
        lost = [run for run in ready if run.rung is not None]
        wanted = self._below_share()
        for tenant in {run.lane[0] for run in ready}:
            own = [run for run in ready if run.lane[0] == tenant]
            fresh = sum(run in found and run not in lost for run in own)
            # Those whose bells were lost may be among the first of their tenant, or not.
            again = sum(run in lost for run in own)
            if not min(wanted[tenant] - again, len(own) - again) <= fresh <= max(wanted[tenant], 0):
                return False
        return all(run in found for run in lost)

    def _below_share(self) -> dict[str, int]:
        """How many bells each tenant lacks that has something to do."""
        tenants = {
            run.lane[0]
            for run in self.runs.values()
            if (self.is_next(run) or run.status == "running") and not self.paused.get(run.lane[0], False)
        }
        slots = CONCURRENCY * len(self.workers)
        share = max(slots / len(tenants), 1) if tenants else 1
        rung = Counter(r.lane[0] for r in self.runs.values() if r.status == "pending" and r.rung is not None)
        most = self._bells_at_once()
        return {t: math.ceil(min(share - self.running(t), most) - rung[t]) for t in tenants}

    def _bells_at_once(self) -> int:
        """As many of one tenant as wake every worker."""
        return max(1, len(self.workers))

    def replay(self, run_id: UUID) -> Outcome:
        letter, run = self.letters[run_id], self.runs[run_id]
        if letter.status not in ("waiting", "parked"):
            return Outcome("NotReplayable")
        letter.mode = "append" if self._has_moved(run) or self._was_overtaken(run) else "resume"
        if letter.mode == "append":  # what it had given beside its base counts as not given
            given = [t for t, w in self.writes.items() if (w.run_id, w.checkpoint) == (run_id, letter.base)]
            for task in given:
                del self.writes[task]
        letter.status, letter.due = "replaying", None
        letter.replays += 1
        run.status, run.due, run.deadline, run.rung, run.worker = "pending", self.now, None, None, None
        run.failures, run.throttled = run.max_attempts - 1, 0
        run.losses = min(run.losses, QUARANTINE_LOSSES)
        run.replays += 1
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
        return Outcome("discarded", self._ring_next(run))

    def park(self, run_id: UUID) -> Outcome:
        letter = self.letters[run_id]
        if letter.status != "waiting":
            return Outcome("stands")
        letter.status, letter.due = "parked", None
        return Outcome("parked")

    def schedule(self, run_id: UUID, delay: float) -> Outcome:
        letter = self.letters[run_id]
        if letter.status != "waiting":
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

    def strike_off_silent(self, seen: Outcome) -> Outcome:
        """Told: who was struck off, and the attempts whose workers are gone.

        What is claimed meanwhile by a worker that is being struck off is found the next time.
        """
        silent = sorted(worker for worker, at in self.workers.items() if at < self.now - SILENCE)
        for worker in silent:
            del self.workers[worker]
        orphans = self._attempts(lambda run: run.status == "running" and run.worker not in self.workers)
        match seen.told:
            case (_, tuple(found)) if set(found) <= set(orphans):
                orphans = tuple(o for o in orphans if o in found or o[0] not in self.locked)
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
        following = self._next_of(ended)
        if following is not None:
            status = "error" if self.is_held(following) else "busy"
        self.lanes[ended.lane].status = status

    def _ring_next(self, ended: Run) -> tuple[Bell, ...]:
        """The bell of the lane's next run, if it is due and nothing holds it."""
        following = self._next_of(ended)
        if following is None or following.status != "pending" or following.due > self.now:
            return ()
        if not self.is_next(following):
            return ()
        following.rung = self.now
        return (following.bell,)


def _waves(requests: Sequence[Request]) -> list[list[Request]]:
    """Those of one tenant that are put in at once: a request that ends others finds them there."""
    waves: list[list[Request]] = []
    for tenant in sorted({request.lane[0] for request in requests}):
        own: list[list[Request]] = [[]]
        for request in (request for request in requests if request.lane[0] == tenant):
            last = max(
                (n for n, wave in enumerate(own) if any(r.lane == request.lane for r in wave)), default=None
            )
            number = 0 if last is None else last + (request.strategy in SUPERSEDING)
            if number == len(own):
                own.append([])
            own[number].append(request)
        waves += own
    return waves
