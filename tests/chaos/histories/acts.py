"""What happens at one step of a history, by name; and how everything heals."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from tests.chaos.histories.menu import LANES, TENANTS, Menu, Pick
from tests.chaos.histories.requests import Discard, Pause
from tests.chaos.histories.running import Claim, Succeed, Unring
from tests.chaos.histories.state import Bell, Run
from tests.chaos.histories.upkeep import LookAtOwn, LookForExpired, Ring, StrikeOff, StrikeOffSilent
from tests.chaos.histories.world import Process, World

MOST_RUNS = 14  # in one history
MOST_GRIPS = 12


class Acts:
    """Each act says whether there was anything for it to do."""

    # How often each is tried, against the others.
    WEIGHTS: ClassVar[dict[str, int]] = {
        "enqueue": 6,
        "answer a bell": 4,
        "claim": 4,
        "take": 3,
        "claim any": 1,
        "claim without an answer": 2,
        "write": 4,
        "succeed": 3,
        "fail": 7,
        "zombie": 6,
        "freeze": 3,
        "thaw": 2,
        "lose a worker": 3,
        "lose a run": 8,
        "heartbeat": 1,
        "look for lost workers": 1,
        "rescue": 5,
        "sweep": 3,
        "expire": 2,
        "time passes": 4,
        "ring": 1,
        "lose or double bells": 1,
        "cancel": 1,
        "replay": 5,
        "discard": 2,
        "park or schedule": 1,
        "pause or unpause": 1,
    }

    # How a history may begin, so that not each of them has to find the way there by chance.
    PRELUDES: ClassVar[dict[str, tuple[str, ...]]] = {
        "from nothing": (),
        "with runs under way": ("claim", "claim"),
        "with a dead letter": ("claim", "bury"),
        "with a run that was lost twice": ("lose a run", "rescue", "lose a run", "rescue"),
        "with a run that is lost once more": (*("lose a run", "rescue") * 2, "lose a run"),
        "with a dead letter of a run that was lost": ("lose a run", "rescue") * 3,
    }

    def __init__(self, world: World) -> None:
        self.world = world
        self.menu = Menu(world)
        self._acts: dict[str, Callable[[Pick], bool]] = {
            "enqueue": self.enqueue,
            "answer a bell": self.answer,
            "claim any": self.claim_any,
            "bury": self.bury,
            "claim without an answer": self.claim_without_an_answer,
            "write": lambda pick: self.one(pick.one(("write checkpoint", "write pending")), pick),
            "freeze": self.freeze,
            "thaw": self.thaw,
            "lose a worker": self.lose_a_worker,
            "lose a run": self.lose_a_run,
            "heartbeat": self.heartbeat,
            "look for lost workers": lambda pick: self.one("strike", pick),
            "sweep": self.sweep,
            "time passes": self.time_passes,
            "lose or double bells": self.lose_or_double_bells,
            "park or schedule": lambda pick: self.one(pick.one(("schedule", "park")), pick),
            "pause or unpause": lambda pick: self.one("pause", pick),
        }

    def act(self, name: str, number: int) -> str | None:
        """Does it or, where there is nothing for it to do, something else. Returns what was done."""
        instead = () if name == "enqueue" else ("claim", "fail", "enqueue")
        for candidate in (name, *instead):
            pick = Pick(number)
            act = self._acts.get(candidate)
            if act(pick) if act is not None else self.one(candidate, pick):
                return candidate
        return None

    def act_together(self, first: str, one: int, second: str, two: int, *, crash: bool) -> bool:
        """Does two moves of these kinds at once, on the same thread where it can."""
        if "enqueue" in (first, second) and not self.has_room():
            return False
        leading = self.menu.move(first, Pick(one)) or self.menu.move("claim", Pick(one))
        if leading is None:
            return False
        lane = leading.on(self.world.model)
        following = self.menu.move(second, Pick(two), lane) or self.menu.move("claim any", Pick(two), lane)
        if following is None:
            return False
        self.world.do_together(leading, following, crash=crash)
        return True

    def one(self, kind: str, pick: Pick) -> bool:
        """The picked move of this kind, if there is one."""
        move = self.menu.move(kind, pick)
        if move is not None:
            self.world.do(move)
        return move is not None

    # Putting in, and bells.

    def has_room(self) -> bool:
        return len(self.world.model.runs) < MOST_RUNS

    def enqueue(self, pick: Pick) -> bool:
        return self.has_room() and self.one("enqueue", pick)

    def answer(self, pick: Pick) -> bool:
        """One of the bells reaches a worker; in what order, nobody knows."""
        if not self.world.bells:
            return False
        bell = pick.one(self.world.bells)
        process = pick.one(self.world.processes)
        if bell.alone and not process.alone:
            process = self.quarantine  # where a worker has it executed
        self.world.bells.remove(bell)
        if process.frozen:
            self.world.write_down(f"the bell for {self.world.model.runs[bell.run_id].name} is lost")
        else:
            self.claim(self._claim_by(process, bell))
        return True

    def claim(self, claim: Claim) -> None:
        if self.world.do(claim).word == "dropped":
            self.world.do(Unring(claim.run_id, claim.lane[0]))

    @property
    def quarantine(self) -> Process:
        return next(process for process in self.world.processes if process.alone)

    def _claim_by(self, process: Process, bell: Bell) -> Claim:
        return Claim(bell.run_id, self.world.model.runs[bell.run_id].lane, process.worker, process.alone)

    def lose_or_double_bells(self, pick: Pick) -> bool:
        bells = self.world.bells
        if not bells:
            return False
        if pick.one((False, True)):
            bells.append(pick.one(bells))
            self.world.write_down("a bell is doubled")
        else:
            bells.clear()
            self.world.write_down("all bells are lost")
        return True

    # Executing.

    def claim_any(self, pick: Pick) -> bool:
        """Of one that perhaps may not be claimed, or by a bell that names another thread or tenant."""
        move = self.menu.move("claim any", pick)
        if not isinstance(move, Claim):
            return False
        lane = pick.one((None, None, *LANES)) or move.lane
        self.claim(Claim(move.run_id, lane, move.worker, move.alone))
        return True

    def claim_without_an_answer(self, pick: Pick) -> bool:
        """Postgres commits the claim, and the worker never hears of it."""
        before = set(self.world.grips)
        if not self.one("claim", pick):
            return False
        self.world.grips = [grip for grip in self.world.grips if grip in before]
        self.world.write_down("the answer is lost")
        return True

    def bury(self, pick: Pick) -> bool:
        live = [grip for grip in self.world.grips if self.world.is_live(grip)]
        if live:
            self.world.do(self.menu.burial(live[0]))
        return bool(live)

    # Losing workers.

    def freeze(self, pick: Pick) -> bool:
        """A worker that has something to do stops dead."""
        holding = {grip.worker for grip in self.world.grips if self.world.is_live(grip)}
        awake = [p for p in self.world.processes if p.worker in holding and not p.frozen]
        if not awake:
            return False
        process = pick.one(awake)
        process.frozen = True
        self.world.write_down(f"{process.name} freezes")
        return True

    def thaw(self, pick: Pick) -> bool:
        """One that was frozen goes on, deaf to what has happened."""
        frozen = [process for process in self.world.processes if process.frozen]
        if not frozen:
            return False
        process = pick.one(frozen)
        process.frozen = False
        self.world.write_down(f"{process.name} thaws")
        return True

    def lose_a_worker(self, pick: Pick) -> bool:
        """It is gone, and another starts in its place. In an orderly way, it strikes itself off."""
        holding = {grip.worker for grip in self.world.grips}
        processes = [process for process in self.world.processes if process.worker in holding]
        if not processes:
            return False
        process = pick.one(processes)
        orderly = pick.one((False, False, True)) and not process.frozen
        if orderly:
            self.world.do(StrikeOff(process.worker))
        self._kill(process)
        return True

    def _kill(self, process: Process) -> None:
        self.world.write_down(f"{process.name} is gone, and starts anew")
        self.world.grips = [grip for grip in self.world.grips if grip.worker != process.worker]
        process.frozen = False
        self.world.enlist(process)

    def lose_a_run(self, pick: Pick) -> bool:
        """It is claimed, its worker is lost, and the leader sees it: mostly one that was lost before."""
        model = self.world.model
        ready = [run for run in model.runs.values() if model.may_be_claimed(run, alone=True)]
        if not ready:
            return False
        run = pick.one(sorted(ready, key=lambda run: -run.losses)[:2])
        claim = self.menu.claim_of(run, pick, right=True)
        if claim is None:
            return False
        self.world.do(claim)
        process = next(process for process in self.world.processes if process.worker == claim.worker)
        how = pick.one(("freezes", "freezes and goes on", "is killed"))
        if how == "is killed":
            self._kill(process)
        else:
            process.frozen = True
            self.world.write_down(f"{process.name} {how}")
        self.world.pass_time(1)
        process.frozen = how == "freezes"
        return self.one("strike", pick)

    def heartbeat(self, pick: Pick) -> bool:
        """It compares what the worker runs with what it holds."""
        awake = [process for process in self.world.processes if not process.frozen]
        if not awake:
            return False
        process = pick.one(awake)
        self.world.beat(process)
        self.compare(process)
        return True

    def compare(self, process: Process) -> None:
        self.world.do(LookAtOwn(process.worker))
        known = {(grip.run_id, grip.attempt) for grip in self.world.grips}
        for run in self.world.model.runs.values():
            unknown = (run.id, run.attempt) not in known
            if run.status == "running" and run.worker == process.worker and unknown:
                self.world.do(self.menu.give_back_of(run))
        if len(self.world.grips) > MOST_GRIPS:
            self.world.grips = [grip for grip in self.world.grips if self.world.is_live(grip)]

    # The leader.

    def sweep(self, pick: Pick) -> bool:
        """All that the leader does in a sweep."""
        self._strike_and_rescue()
        self._expire_all()
        self.world.do(Ring(100))
        return True

    def _strike_and_rescue(self) -> None:
        self.world.do(StrikeOffSilent())
        lost, self.world.lost = self.world.lost, []
        for grip in lost:
            self.world.do(self.menu.rescue_of(grip))

    def _expire_all(self) -> None:
        self.world.do(LookForExpired())
        for run in list(self.world.model.runs.values()):
            if run.status == "pending" and self.world.model.is_expired(run):
                self.world.do(self.menu.expiry_of(run))

    def time_passes(self, pick: Pick) -> bool:
        self.world.pass_time(pick.one((1, 2)))
        return True

    # The end.

    def heal(self) -> None:
        """All workers are well and the leader sweeps: what is neither paused nor held ends. Then the rest.

        No bell from before is left. What waits for a person does so visibly; freed, it ends, too.
        """
        self.world.write_down("everything heals")
        self._settle()
        model = self.world.model
        self.world.tally.letters.update(letter.reason for letter in model.letters.values())
        for run in model.runs.values():
            self.world.tally.healed[run.status] += 1
            if run.is_unfinished and not self._waits_for_a_person(run):
                self.world.fail(f"{run.name} is {run.status}, and nothing goes on any more")
        if not any(run.is_unfinished for run in model.runs.values()):
            return
        for tenant in TENANTS:
            self.world.do(Pause(tenant, False))
        for run_id, letter in list(model.letters.items()):
            if letter.status in ("waiting", "parked"):
                self.world.do(Discard(run_id))
        self._settle()
        for run in model.runs.values():
            if run.is_unfinished:
                self.world.fail(f"{run.name} is {run.status} for ever")

    def _settle(self) -> None:
        """Until nothing goes on any more."""
        self.world.bells.clear()
        for process in self.world.processes:
            process.frozen = False
        stood = None
        while (standing := self._standing()) != stood:
            stood = standing
            self.world.pass_time(4)
            for process in self.world.processes:
                self.compare(process)
            self._strike_and_rescue()
            self._end_all()
            self._expire_all()
            self.world.do(Ring(100))
            self._answer_all()

    def _standing(self) -> list[tuple[str, int]]:
        return [(run.status, run.attempt) for run in self.world.model.runs.values()]

    def _answer_all(self) -> None:
        """Every bell is answered, and what was claimed succeeds and rings for the next."""
        while self.world.bells:
            bell = self.world.bells.pop()
            process = self.quarantine if bell.alone else self.world.processes[0]
            self.world.do(self._claim_by(process, bell))
            self._end_all()

    def _end_all(self) -> None:
        for grip in [grip for grip in self.world.grips if self.world.is_live(grip)]:
            lane = self.world.model.runs[grip.run_id].lane
            self.world.do(
                Succeed(grip.run_id, grip.attempt, lane, grip.worker, asks=False, calls=(), then="leave")
            )

    def _waits_for_a_person(self, run: Run) -> bool:
        """Its tenant is paused, or it is behind a dead letter that nobody replays."""
        model = self.world.model
        letters = [model.letters[holder.id] for holder in model.holders(run.lane) if holder.seq < run.seq]
        held = any(letter.status in ("waiting", "parked") for letter in letters)
        return run.status == "pending" and (model.paused.get(run.lane[0], False) or held)
