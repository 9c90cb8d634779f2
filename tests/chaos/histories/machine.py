"""The histories: what may happen at each step, and what must follow when everything heals."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.chaos.histories.menu import LANES, LATER, MOVES, PICKS, SOON, TENANTS, Menu
from tests.chaos.histories.model import Bell, LaneId, Run
from tests.chaos.histories.moves import (
    GRAPHS,
    Claim,
    Discard,
    Enqueue,
    LookAtOwn,
    LookForExpired,
    Move,
    Pause,
    RingAgain,
    StrikeOff,
    StrikeOffSilent,
    Succeed,
)
from tests.chaos.histories.world import Grip, Process, Stage, World

P = ParamSpec("P")

MOST_RUNS = 16  # in one history
MOST_GRIPS = 12

picks = st.integers(0, PICKS - 1)
lanes = st.sampled_from(LANES)
graphs = st.sampled_from(GRAPHS)
kinds = st.sampled_from(list(MOVES))


def step(function: Callable[P, None]) -> Callable[P, None]:
    """Counts the rule as a step, and remembers whether the history went wrong in it."""

    @wraps(function)
    def counted(*args: P.args, **kwargs: P.kwargs) -> None:
        machine = args[0]
        assert isinstance(machine, Histories)
        machine.world.tally.steps[function.__name__] += 1
        machine.went_wrong = True
        function(*args, **kwargs)
        machine.went_wrong = False

    return counted


class Histories(RuleBasedStateMachine):
    """One history for each instance. stage: where all of them take place."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.went_wrong = True
        self.world = World(self.stage)
        self.menu = Menu(self.world)
        self.went_wrong = False

    def teardown(self) -> None:
        """Everything heals; then nothing may be stuck."""
        if not self.went_wrong:
            self.heal()

    # Putting in.

    @initialize(lane=lanes, graph=graphs)
    @step
    def begin(self, lane: LaneId, graph: str) -> None:
        self.world.do(Enqueue((self.menu.request(lane, graph),)))

    @precondition(lambda self: self.has_room())
    @rule(
        lane=lanes,
        graph=graphs,
        max_attempts=st.integers(1, 3),
        delay=st.sampled_from((0, 0, SOON, LATER)),
        deadline=st.sampled_from((None, None, LATER, LATER + 1)),
    )
    @step
    def enqueue(
        self, lane: LaneId, graph: str, max_attempts: int, delay: float, deadline: float | None
    ) -> None:
        deadline = deadline if deadline is None else deadline + delay
        request = self.menu.request(lane, graph, max_attempts=max_attempts, delay=delay, deadline=deadline)
        self.world.do(Enqueue((request,)))

    @precondition(lambda self: self.has_room())
    @rule(
        wishes=st.lists(
            st.tuples(
                lanes, graphs, st.sampled_from((None, "k", "l")), st.sampled_from(("enqueue", "reject"))
            ),
            min_size=1,
            max_size=3,
        )
    )
    @step
    def enqueue_several(self, wishes: list[tuple[LaneId, str, str | None, str]]) -> None:
        requests = [
            self.menu.request(lane, graph, key=key, strategy=strategy)
            for lane, graph, key, strategy in wishes
        ]
        self.world.do(Enqueue(tuple(requests)))

    def has_room(self) -> bool:
        return len(self.world.model.runs) < MOST_RUNS

    # Bells.

    @precondition(lambda self: self.world.bells)
    @rule(which=picks, who=st.integers(0, 3))
    @step
    def answer(self, which: int, who: int) -> None:
        """One of the bells reaches a worker; in what order, nobody knows."""
        bell = self.world.bells.pop(which % len(self.world.bells))
        process = self.world.processes[who]
        if bell.alone and not process.alone:
            process = self.quarantine  # where a worker has it executed
        if not process.frozen:  # else the bell is lost
            self.world.do(self.claim_by(process, bell))

    @property
    def quarantine(self) -> Process:
        return next(process for process in self.world.processes if process.alone)

    def claim_by(self, process: Process, bell: Bell) -> Claim:
        return Claim(bell.run_id, self.world.model.runs[bell.run_id].lane, process.worker, process.alone)

    @precondition(lambda self: self.world.bells)
    @rule(which=picks, times=st.sampled_from((0, 2)))
    @step
    def lose_or_double_bell(self, which: int, times: int) -> None:
        bell = self.world.bells.pop(which % len(self.world.bells))
        self.world.bells += [bell] * times

    @precondition(lambda self: self.world.bells)
    @rule()
    @step
    def lose_all_bells(self) -> None:
        self.world.bells.clear()

    @rule(number=picks)
    @step
    def ring_again(self, number: int) -> None:
        self.one("ring again", number)

    # Executing.

    def one(self, kind: str, number: int) -> None:
        if (move := self.menu.move(kind, number)) is not None:
            self.world.do(move)

    @rule(number=picks)
    @step
    def claim(self, number: int) -> None:
        """The claim of one that may be claimed."""
        self.one("claim", number)

    @rule(number=picks)
    @step
    def claim_any(self, number: int) -> None:
        """The claim of one that perhaps may not."""
        self.one("claim any", number)

    @precondition(lambda self: self.world.model.runs)
    @rule(number=picks, lane=lanes)
    @step
    def claim_by_a_wrong_name(self, number: int, lane: LaneId) -> None:
        """A bell that names another thread, or another tenant's."""
        move = self.menu.move("claim any", number)
        if isinstance(move, Claim):
            self.world.do(Claim(move.run_id, lane, move.worker, move.alone))

    @rule(number=picks)
    @step
    def claim_without_an_answer(self, number: int) -> None:
        """Postgres commits the claim, and the worker never hears of it."""
        before = set(self.world.grips)
        self.one("claim", number)
        self.world.grips = [grip for grip in self.world.grips if grip in before]

    @precondition(lambda self: self.world.grips)
    @rule(number=picks)
    @step
    def write_checkpoint(self, number: int) -> None:
        self.one("write checkpoint", number)

    @precondition(lambda self: self.world.grips)
    @rule(number=picks)
    @step
    def write_pending(self, number: int) -> None:
        self.one("write pending", number)

    @precondition(lambda self: self.world.grips)
    @rule(number=picks)
    @step
    def succeed(self, number: int) -> None:
        self.one("succeed", number)

    @precondition(lambda self: self.world.grips)
    @rule(number=picks)
    @step
    def fail(self, number: int) -> None:
        self.one("fail", number)

    @precondition(lambda self: self.world.grips)
    @rule(number=picks)
    @step
    def zombie_goes_on(self, number: int) -> None:
        self.one("zombie", number)

    # Losing workers.

    @rule(who=st.integers(0, 3))
    @step
    def freeze(self, who: int) -> None:
        self.world.processes[who].frozen = True

    @rule(who=st.integers(0, 3))
    @step
    def thaw(self, who: int) -> None:
        """It goes on, deaf to what has happened."""
        self.world.processes[who].frozen = False

    @rule(who=st.integers(0, 3))
    @step
    def kill(self, who: int) -> None:
        """It is gone without a word, and another starts in its place."""
        self.replace(self.world.processes[who])

    @rule(who=st.integers(0, 3))
    @step
    def stop(self, who: int) -> None:
        """It ends in an orderly way, but for the runs that it could not hand over."""
        process = self.world.processes[who]
        if not process.frozen:
            self.world.do(StrikeOff(process.worker))
            self.replace(process)

    def replace(self, process: Process) -> None:
        self.world.grips = [grip for grip in self.world.grips if grip.worker != process.worker]
        process.frozen = False
        self.world.enlist(process)

    @rule(who=st.integers(0, 3))
    @step
    def beat(self, who: int) -> None:
        """A heartbeat, which compares what the worker runs with what it holds."""
        process = self.world.processes[who]
        if not process.frozen:
            self.world.beat(process)
            self.compare(process)

    def compare(self, process: Process) -> None:
        self.world.do(LookAtOwn(process.worker))
        # Each, as many may have been claimed without an answer.
        held = [run for run in self.world.model.runs.values() if run.status == "running"]
        known = {(grip.run_id, grip.attempt) for grip in self.world.grips}
        for run in held:
            if run.worker == process.worker and (run.id, run.attempt) not in known:
                self.world.do(self.menu.give_back_of(run))
        if len(self.world.grips) > MOST_GRIPS:
            self.world.grips = [grip for grip in self.world.grips if self.world.is_live(grip)]

    # The leader.

    @rule()
    @step
    def strike_off_the_silent(self) -> None:
        """The leader looks for lost workers; what it does about them follows, or comes too late."""
        self.world.do(StrikeOffSilent())
        self.remember_lost()

    def remember_lost(self) -> None:
        model = self.world.model
        self.world.lost = [
            Grip(run.worker, run.id, run.attempt)
            for run in model.runs.values()
            if run.status == "running" and run.worker is not None and run.worker not in model.workers
        ]

    @precondition(lambda self: self.world.lost)
    @rule(number=picks)
    @step
    def rescue(self, number: int) -> None:
        self.one("rescue", number)

    @rule()
    @step
    def sweep(self) -> None:
        """All that the leader does in a sweep."""
        self.strike_and_rescue()
        self.expire_all()
        self.world.do(RingAgain(100))

    def strike_and_rescue(self) -> None:
        self.world.do(StrikeOffSilent())
        self.remember_lost()
        lost, self.world.lost = self.world.lost, []
        for grip in lost:
            self.world.do(self.menu.rescue_of(grip))

    def expire_all(self) -> None:
        self.world.do(LookForExpired())
        for run in list(self.world.model.runs.values()):
            if run.status == "pending" and self.world.model.is_expired(run):
                self.world.do(self.menu.expiry_of(run))

    @rule(number=picks)
    @step
    def expire(self, number: int) -> None:
        self.one("expire", number)

    @rule(ticks=st.integers(1, 3))
    @step
    def time_passes(self, ticks: int) -> None:
        self.world.pass_time(ticks)

    # People.

    @precondition(lambda self: self.world.model.runs)
    @rule(number=picks)
    @step
    def cancel(self, number: int) -> None:
        self.one("cancel", number)

    @precondition(lambda self: self.world.model.letters)
    @rule(number=picks)
    @step
    def replay(self, number: int) -> None:
        self.one("replay", number)

    @precondition(lambda self: self.world.model.letters)
    @rule(number=picks)
    @step
    def discard(self, number: int) -> None:
        self.one("discard", number)

    @precondition(lambda self: self.world.model.letters)
    @rule(number=picks)
    @step
    def park(self, number: int) -> None:
        self.one("park", number)

    @precondition(lambda self: self.world.model.letters)
    @rule(number=picks)
    @step
    def schedule_replay(self, number: int) -> None:
        self.one("schedule", number)

    @rule(tenant=st.sampled_from(TENANTS))
    @step
    def pause_or_unpause(self, tenant: str) -> None:
        self.world.do(Pause(tenant, not self.world.model.paused.get(tenant, False)))

    # Two at once.

    @rule(first=kinds, second=kinds, one=picks, two=picks, crash=st.sampled_from((False, False, False, True)))
    @step
    def together(self, first: str, second: str, one: int, two: int, crash: bool) -> None:
        """The second begins before the first has committed, on the same thread where it can."""
        if "enqueue" in (first, second) and not self.has_room():
            return
        leading = self.menu.move(first, one)
        if leading is None:
            return
        following = self.menu.move(second, two, leading.on(self.world.model))
        if following is None:
            return
        self.world.do_together(leading, following, crash=crash)
        if "strike" in (first, second):
            self.remember_lost()

    # The end.

    @rule()
    @step
    def heal(self) -> None:
        """All workers are well and the leader sweeps: what is not held or paused ends."""
        self.settle()
        self.nothing_is_stuck()

    @rule()
    @step
    def heal_and_free(self) -> None:
        """As `heal`; then tenants go on and dead letters are discarded, and everything ends."""
        self.settle()
        self.nothing_is_stuck()
        for tenant in TENANTS:
            self.world.do(Pause(tenant, False))
        for run_id, letter in list(self.world.model.letters.items()):
            if letter.status in ("waiting", "parked"):
                self.world.do(Discard(run_id))
        self.settle()
        for run in self.world.model.runs.values():
            if run.is_unfinished:
                self.world.fail(f"{run.name} is {run.status} for ever")

    def settle(self) -> None:
        """Until nothing goes on any more. Every bell from before is lost."""
        self.world.bells.clear()
        for process in self.world.processes:
            process.frozen = False
        while True:
            stood = self.standing()
            self.world.pass_time(5)
            for process in self.world.processes:
                self.compare(process)
            self.strike_and_rescue()
            for grip in [grip for grip in self.world.grips if self.world.is_live(grip)]:
                self.end_well(grip)
            self.expire_all()
            self.world.do(RingAgain(100))
            self.answer_all()
            if self.standing() == stood:
                return

    def standing(self) -> list[tuple[str, int]]:
        return [(run.status, run.attempt) for run in self.world.model.runs.values()]

    def answer_all(self) -> None:
        while self.world.bells:
            bell = self.world.bells.pop()
            process = self.quarantine if bell.alone else self.world.processes[0]
            self.world.do(self.claim_by(process, bell))
            for grip in [grip for grip in self.world.grips if self.world.is_live(grip)]:
                self.end_well(grip)

    def end_well(self, grip: Grip) -> None:
        lane = self.world.model.runs[grip.run_id].lane
        self.world.do(Succeed(grip.run_id, grip.attempt, lane, asks=False, calls=()))

    def nothing_is_stuck(self) -> None:
        model = self.world.model
        for run in model.runs.values():
            self.world.tally.healed[run.status] += 1
            if run.is_unfinished and not self.waits_for_a_person(run):
                self.world.fail(f"{run.name} is {run.status}, and nothing goes on any more")

    def waits_for_a_person(self, run: Run) -> bool:
        """It, or one before it, is paused or behind a dead letter that nobody replays."""
        model = self.world.model
        waiting = [
            holder
            for holder in model.holders(run.lane)
            if holder.seq < run.seq and model.letters[holder.id].status in ("waiting", "parked")
        ]
        return run.status == "pending" and (model.paused.get(run.lane[0], False) or bool(waiting))


_ = Move
