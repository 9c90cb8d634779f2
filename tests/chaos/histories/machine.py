"""The histories as hypothesis makes them up: one thing after the other, or two at once."""

from __future__ import annotations

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from tests.chaos.histories.acts import Acts
from tests.chaos.histories.menu import MOVES, PICKS
from tests.chaos.histories.world import Stage, World

numbers = st.integers(0, PICKS - 1)
kinds = st.sampled_from([kind for kind, (weight, _) in MOVES.items() for _ in range(weight)])


class Histories(RuleBasedStateMachine):
    """One history for each instance. stage: where all of them take place.

    Few rules, which choose what happens by weight: hypothesis leaves out half of the rules in half of the
    histories, and with a rule for each kind of thing most histories would come to nothing.
    """

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.is_whole = False
        self.world = World(self.stage)
        self.acts = Acts(self.world)
        self.is_whole = True

    def teardown(self) -> None:
        if self.is_whole:
            self.acts.heal()

    @initialize(
        wishes=st.lists(numbers, min_size=1, max_size=3), prelude=st.sampled_from(list(Acts.PRELUDES))
    )
    def begin(self, wishes: list[int], prelude: str) -> None:
        hypothesis.assume(wishes != [0])  # the simplest of all examples, with which hypothesis always begins
        for number in wishes:
            self._act("enqueue", number)
        for what in Acts.PRELUDES[prelude]:
            self._act(what, wishes[0])

    @rule(
        what=st.sampled_from([n for n, weight in Acts.WEIGHTS.items() for _ in range(weight)]), number=numbers
    )
    def happens(self, what: str, number: int) -> None:
        self._act(what, number)

    def _act(self, what: str, number: int) -> None:
        self.is_whole = False
        done = self.acts.act(what, number)
        if done is not None:
            self.world.tally.steps[done] += 1
        self.is_whole = True

    @rule(first=kinds, second=kinds, one=numbers, two=numbers, crash=st.sampled_from((False, False, True)))
    def together(self, first: str, second: str, one: int, two: int, crash: bool) -> None:
        """The second begins before the first has committed, on the same thread where it can. crash: it never
        commits."""
        self.is_whole = False
        if self.acts.act_together(first, one, second, two, crash=crash):
            self.world.tally.steps["one beside a crash" if crash else "two at once"] += 1
        self.is_whole = True


def make_up(stage: Stage, seed: int, *, steps: int, shrink: bool = True) -> None:
    """A history of so many steps. Raises Broken, with the shortest history that is found to do the same.

    One at a time: of many, hypothesis makes most by repeating parts of those before.
    """
    machine = hypothesis.seed(seed)(type("Histories", (Histories,), {"stage": stage}))
    run_state_machine_as_test(
        machine,
        settings=hypothesis.settings(
            max_examples=1,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
