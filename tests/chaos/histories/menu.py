"""What could be done next, given how things stand: a number picks one of the possible moves of a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tests.chaos.histories.move import GRAPHS, Grip, Move
from tests.chaos.histories.requests import Cancel, Discard, Park, Pause, Replay, Schedule
from tests.chaos.histories.running import (
    Claim,
    CountRefused,
    Enqueue,
    Fail,
    Succeed,
    Take,
    WriteCheckpoint,
    WritePending,
)
from tests.chaos.histories.state import QUARANTINE_LOSSES, SUPERSEDING, Ending, LaneId, Request, Run, Trip
from tests.chaos.histories.upkeep import Beat, Expire, GiveBack, Rescue, Ring, StrikeOffSilent
from tests.chaos.histories.world import Process, World
from uuid_utils.compat import uuid7

T = TypeVar("T")

LANES: tuple[LaneId, ...] = (("a", "x"), ("a", "y"), ("b", "x"))
TENANTS = ("a", "b")
PICKS = 2**20  # numbers of which picks are made
SOON, LATER = 0.5, 1.5  # ticks
DEPENDENCY = "api"


class Pick:
    """A number, from which choices are made one after the other; nought chooses the first each time."""

    def __init__(self, number: int) -> None:
        self._number = number

    def one(self, options: Sequence[T]) -> T:
        self._number, index = divmod(self._number, len(options))
        return options[index]


class Menu:
    """The moves that are possible, by kind. lane: those of this lane, where there are any."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = 0

    def move(self, kind: str, pick: Pick, lane: LaneId | None = None) -> Move | None:
        """The picked move of the kind; None where there is none."""
        _, move = MOVES[kind]
        return move(self, pick, lane)

    def _runs(self, lane: LaneId | None, *, which: Callable[[Run], bool]) -> list[Run]:
        found = [run for run in self._world.model.runs.values() if which(run)]
        return [run for run in found if run.lane == lane] or found

    def _grips(self, lane: LaneId | None, *, live: bool | None = None) -> list[Grip]:
        """Of workers that are not frozen. live: with a lease that holds, or one that does not."""
        world = self._world
        found = [
            grip for grip in world.grips if not world.is_frozen(grip) and live in (None, world.is_live(grip))
        ]
        return [grip for grip in found if world.model.runs[grip.run_id].lane == lane] or found

    def _awake(self) -> list[Process]:
        return [process for process in self._world.processes if not process.frozen]

    def _new_name(self, prefix: str) -> str:
        self._numbers += 1
        return f"{prefix}{self._numbers:04}"

    # What is put in.

    def enqueue(self, pick: Pick, lane: LaneId | None) -> Move | None:
        requests = [self._request(pick, lane) for _ in range(pick.one((1, 1, 2)))]
        known = self._runs(lane, which=lambda run: run.key is not None)
        if known and pick.one((False, False, True)):
            # Once more what has a key, and what follows on its thread: by chance few histories come to that.
            run = pick.one(known)
            again = requests[0]._replace(lane=run.lane, graph=run.graph, key=run.key, strategy="enqueue")
            requests = [again, self._request(pick, run.lane)]
        return Enqueue(tuple(requests))

    def _request(self, pick: Pick, lane: LaneId | None) -> Request:
        delay = pick.one((0, 0, 0, SOON))
        graph = pick.one(GRAPHS)
        deadline = pick.one((None, None, None, None, SOON, LATER))
        return Request(
            id=uuid7(),
            lane=lane or pick.one(LANES),
            graph=graph,
            max_attempts=pick.one((3, 1)),
            delay=delay,
            deadline=None if deadline is None else deadline + 2 * delay,
            key=pick.one((None, None, None, "k")),
            strategy=pick.one(("enqueue",) * 6 + ("reject", *SUPERSEDING)),
        )

    # What runs them.

    def claim_of(self, run: Run, pick: Pick, *, right: bool) -> Claim | None:
        """right: by a worker that takes it, if one is awake; else by any."""
        processes = [p for p in self._awake() if not right or p.alone or not run.runs_alone]
        if not processes:
            return None
        process = pick.one(processes)
        return Claim(run.id, run.lane, process.worker, process.alone)

    def serve(self, pick: Pick, lane: LaneId | None) -> Move | None:
        """A run that may be claimed."""
        runs = self._runs(lane, which=lambda run: self._world.model.may_be_claimed(run, alone=True))
        return self.claim_of(pick.one(runs), pick, right=True) if runs else None

    def stray(self, pick: Pick, lane: LaneId | None) -> Move | None:
        """Any run, whatever its status."""
        runs = self._runs(lane, which=lambda run: run.is_unfinished) or self._runs(lane, which=lambda _: True)
        return self.claim_of(pick.one(runs), pick, right=False) if runs else None

    def take(self, pick: Pick, lane: LaneId | None) -> Move | None:
        """Whoever has a free slot; one that executes alone takes nothing by itself."""
        processes = [process for process in self._awake() if not process.alone]
        return Take(pick.one(processes).worker, pick.one((1, 2, 10))) if processes else None

    def _of_grip(self, grip: Grip) -> dict[str, Any]:
        lane = self._world.model.runs[grip.run_id].lane
        return {"run_id": grip.run_id, "attempt": grip.attempt, "lane": lane}

    def write_checkpoint(self, pick: Pick, lane: LaneId | None) -> Move | None:
        grips = self._writing(pick, lane)
        return self.write(pick.one(grips)) if grips else None

    def write(self, grip: Grip) -> Move:
        parent = self._world.model.head(self._world.model.runs[grip.run_id])
        return WriteCheckpoint(**self._of_grip(grip), checkpoint=self._new_name("c"), parent=parent)

    def write_pending(self, pick: Pick, lane: LaneId | None) -> Move | None:
        grips = self._writing(pick, lane)
        return self.pending(pick.one(grips)) if grips else None

    def _writing(self, pick: Pick, lane: LaneId | None) -> list[Grip]:
        return self._grips(lane, live=pick.one((True, True, None)))

    def pending(self, grip: Grip) -> Move:
        """Beside the thread's newest checkpoint; before there is one, beside one that is never written."""
        head = self._world.model.head(self._world.model.runs[grip.run_id])
        return WritePending(**self._of_grip(grip), task=self._new_name("t"), checkpoint=head or "c0000")

    def succeed(self, pick: Pick, lane: LaneId | None) -> Move | None:
        grips = self._grips(lane, live=True)
        return self.success(pick.one(grips), pick) if grips else None

    def success(self, grip: Grip, pick: Pick) -> Move:
        return Succeed(
            **self._of_grip(grip),
            worker=grip.worker,
            asks=pick.one((False, True)),
            calls=pick.one(((), (DEPENDENCY,))),
            then=pick.one(("claim", "ring", "leave")),
        )

    def fail(self, pick: Pick, lane: LaneId | None) -> Move | None:
        grips = self._grips(lane, live=True)
        return self.failure(pick.one(grips), pick) if grips else None

    def failure(self, grip: Grip, pick: Pick) -> Move:
        run = self._world.model.runs[grip.run_id]
        return Fail(
            **self._of_grip(grip),
            graph=run.graph,
            ending=self._ending(run, pick),
            checkpoint=self._world.model.newest_checkpoint(run.id),
            replays=run.replays,
        )

    def burial(self, grip: Grip) -> Move:
        """The permanent failure of its attempt."""
        return self.failure(grip, Pick(0))

    def _ending(self, run: Run, pick: Pick) -> Ending:
        last = run.failures + 1 >= run.max_attempts
        again: float | None = None if last else pick.one((0, SOON, LATER))
        trip = pick.one(
            (
                None,
                Trip("graph", run.graph, 2, SOON),
                Trip("dependency", DEPENDENCY, 2, SOON),
                Trip("dependency", DEPENDENCY, 1, LATER),
            )
        )
        endings = [
            Ending("failed", "permanent", spent=1),
            Ending("failed", "transient", again, spent=1, reason="exhausted", trip=trip),
            Ending("failed", "rate limited", SOON, waits=SOON),
            Ending("failed", "infrastructure", pick.one((0, SOON))),
            Ending("drained", "drain", 0),
            Ending("timeout", "timeout", again, status="timeout", spent=1, reason="timeout"),
        ]
        if self._world.model.is_expired(run):
            endings.append(Ending("timeout", "deadline", status="timeout", spent=1, reason="timeout"))
        return pick.one(endings)

    def zombie(self, pick: Pick, lane: LaneId | None) -> Move | None:
        """An attempt that lost its lease goes on, with whatever it was about to write."""
        grips = self._grips(lane, live=False)
        if not grips:
            return None
        grip = pick.one(grips)
        acts: list[Callable[[], Move]] = [
            lambda: self.write(grip),
            lambda: self.success(grip, pick),
            lambda: self.failure(grip, pick),
            lambda: self.pending(grip),
            lambda: CountRefused(grip.run_id, grip.attempt, self._world.refused.pop(grip, 0) + 1),
        ]
        return pick.one(acts)()

    # What watches over them.

    def beat(self, pick: Pick, lane: LaneId | None) -> Move | None:
        awake = self._awake()
        return Beat(pick.one(awake).worker) if awake else None

    def strike(self, pick: Pick, lane: LaneId | None) -> Move | None:
        return StrikeOffSilent()

    def rescue(self, pick: Pick, lane: LaneId | None) -> Move | None:
        """An attempt that the leader saw without a worker; it may have ended since."""
        found = [g for g in self._world.lost if self._world.model.runs[g.run_id].lane == lane]
        lost = found or self._world.lost
        return self.rescue_of(pick.one(lost)) if lost else None

    def rescue_of(self, grip: Grip) -> Rescue:
        """As of the leader's look: the losses are those of the attempt, not of one after it."""
        run = self._world.model.runs[grip.run_id]
        losses = min(run.losses, QUARANTINE_LOSSES)
        row = {**self._row(run, grip.attempt), "worker_id": grip.worker, "worker_losses": losses}
        return Rescue(grip.run_id, grip.attempt, row, "heartbeat stale")

    def _row(self, run: Run, attempt: int) -> dict[str, Any]:
        tenant, thread_id = run.lane
        return {
            "id": run.id,
            "tenant": tenant,
            "thread_id": thread_id,
            "graph": run.graph,
            "attempt": attempt,
            "replays": run.replays,
        }

    def give_back(self, pick: Pick, lane: LaneId | None) -> Move | None:
        """Of a run that its worker holds, and knows nothing of, as its claim was not answered."""
        known = {(grip.run_id, grip.attempt) for grip in self._world.grips}
        awake = {process.worker for process in self._awake()}
        runs = self._runs(
            lane,
            which=lambda run: (
                run.status == "running" and run.worker in awake and (run.id, run.attempt) not in known
            ),
        )
        return self.give_back_of(pick.one(runs)) if runs else None

    def give_back_of(self, run: Run) -> Move:
        return GiveBack(run.id, run.attempt, self._row(run, run.attempt))

    def expire(self, pick: Pick, lane: LaneId | None) -> Move | None:
        model = self._world.model
        runs = self._runs(lane, which=lambda run: run.status == "pending" and model.is_expired(run))
        runs = runs or self._runs(lane, which=lambda run: run.deadline is not None)
        return self.expiry_of(pick.one(runs)) if runs else None

    def expiry_of(self, run: Run) -> Move:
        return Expire(run.id, run.attempt, {**self._row(run, run.attempt), "policy": {}})

    def ring(self, pick: Pick, lane: LaneId | None) -> Move | None:
        return Ring(pick.one((100, 1, 2)))

    # What people do.

    def cancel(self, pick: Pick, lane: LaneId | None) -> Move | None:
        runs = self._runs(lane, which=lambda run: run.is_unfinished) or self._runs(lane, which=lambda _: True)
        if not runs:
            return None
        run = pick.one(runs)
        return Cancel(run.id, run.lane[0], pick.one(("interrupt", "rollback")))

    def _lettered(self, lane: LaneId | None) -> list[Run]:
        letters = self._world.model.letters
        found = self._runs(lane, which=lambda run: run.id in letters)
        return [run for run in found if letters[run.id].status in ("waiting", "parked")] or found

    def replay(self, pick: Pick, lane: LaneId | None) -> Move | None:
        runs = self._lettered(lane)
        return Replay(pick.one(runs).id) if runs else None

    def discard(self, pick: Pick, lane: LaneId | None) -> Move | None:
        runs = self._lettered(lane)
        return Discard(pick.one(runs).id) if runs else None

    def park(self, pick: Pick, lane: LaneId | None) -> Move | None:
        runs = self._lettered(lane)
        return Park(pick.one(runs).id) if runs else None

    def schedule(self, pick: Pick, lane: LaneId | None) -> Move | None:
        runs = self._lettered(lane)
        return Schedule(pick.one(runs).id, SOON) if runs else None

    def pause(self, pick: Pick, lane: LaneId | None) -> Move | None:
        tenant = lane[0] if lane else pick.one(TENANTS)
        return Pause(tenant, pick.one((False, False, True)))


# How often each is one of two at once, and the move of that kind.
MOVES: dict[str, tuple[int, Callable[[Menu, Pick, LaneId | None], Move | None]]] = {
    "claim": (4, Menu.serve),
    "claim any": (2, Menu.stray),
    "take": (3, Menu.take),
    "enqueue": (4, Menu.enqueue),
    "succeed": (3, Menu.succeed),
    "fail": (4, Menu.fail),
    "zombie": (3, Menu.zombie),
    "write checkpoint": (3, Menu.write_checkpoint),
    "write pending": (2, Menu.write_pending),
    "cancel": (3, Menu.cancel),
    "rescue": (4, Menu.rescue),
    "strike": (2, Menu.strike),
    "beat": (2, Menu.beat),
    "give back": (2, Menu.give_back),
    "expire": (2, Menu.expire),
    "ring": (2, Menu.ring),
    "replay": (3, Menu.replay),
    "discard": (2, Menu.discard),
    "park": (1, Menu.park),
    "schedule": (1, Menu.schedule),
    "pause": (1, Menu.pause),
}
