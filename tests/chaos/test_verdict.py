"""Each judge finds the offence that it is there for, in evidence made up for it, and none in a clean case."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.chaos.evidence import (
    AttemptRow,
    CheckpointRow,
    Effect,
    Evidence,
    Fault,
    Kind,
    Life,
    RunRow,
    Sent,
    Transition,
)
from tests.chaos.report import figures
from tests.chaos.verdict import NODES, input_text, judge, repeated_nodes

START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
LANE = ("acme", "t1")
SLACK = 5.0
PID = 100
WORKER = uuid.UUID(int=77)


def at(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def run_id(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def nonce(run: int, node: str, attempt: int = 1) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{run} {node} {attempt}").hex


def entry(run: int, node: str, attempt: int = 1) -> str:
    return f"{node} {run_id(run)} {nonce(run, node, attempt)}"


def effects(run: int, node: str, begins: float, *, attempt: int = 1, held: bool = True) -> list[Effect]:
    """A start and, half a second later, an end."""
    made = (run_id(run), node)
    return [
        Effect(*made, kind, nonce(run, node, attempt), PID, attempt, held, at(begins + later))
        for kind, later in (("start", 0.0), ("end", 0.5))
    ]


def clean() -> Evidence:
    """Two runs on one thread, one after the other, each in ten seconds, at its first attempt."""
    evidence = Evidence(lives=[Life(slot=0, pid=PID, began=at(-5), ready=at(-1))], states={LANE: []})
    for number in (1, 2):
        key, begins = f"k{number}", number * 10.0
        evidence.sent.append(Sent(key, *LANE, str(run_id(number))))
        evidence.runs.append(RunRow(run_id(number), *LANE, number, key, "success", 1))
        evidence.transitions += [
            Transition(run_id(number), 0, None, "pending", None, None, at(0)),
            Transition(run_id(number), 1, "pending", "running", WORKER, PID, at(begins)),
            Transition(run_id(number), 1, "running", "success", WORKER, PID, at(begins + 9)),
        ]
        parent = f"c{number - 1}{len(NODES) - 1}" if number > 1 else None
        said = [input_text(key)]
        for n, node in enumerate(NODES):
            evidence.effects += effects(number, node, begins + n + 1)
            evidence.checkpoints.append(CheckpointRow(LANE, f"c{number}{n}", parent, str(run_id(number)), 1))
            evidence.stored.add(nonce(number, node))
            evidence.found.add(nonce(number, node))
            parent = f"c{number}{n}"
            said.append(entry(number, node))
        evidence.states[LANE] += said
    return evidence


def lose(evidence: Evidence, outcome: str = "lost", cause: str | None = "heartbeat stale") -> AttemptRow:
    """The first run's first attempt came to this at 15, and its second succeeded."""
    evidence.runs[0] = replace(evidence.runs[0], attempt=2)
    row = AttemptRow(run_id(1), 1, WORKER, PID, at(10), at(15), outcome, cause)
    evidence.attempts.append(row)
    return row


def offences(evidence: Evidence) -> set[str]:
    return {name for name, found in judge(evidence, SLACK).items() if found}


def test_a_clean_case_has_no_offence() -> None:
    assert offences(clean()) == set()
    assert repeated_nodes(clean()) == {}


# ---------------------------------------------------------------------------------------------------
# What a single change to the clean case comes to

Change = Callable[[Evidence], object]


def _status(status: str) -> Change:
    return lambda e: e.runs.__setitem__(1, replace(e.runs[1], status=status))


def _say(number: int, *messages: str) -> Change:
    """Puts messages into the state at this place."""
    return lambda e: e.states[LANE].__setitem__(slice(number, number), messages)


def _swap_inputs(e: Evidence) -> None:
    said = e.states[LANE]
    first, second = said.index(input_text("k1")), said.index(input_text("k2"))
    said[first], said[second] = said[second], said[first]


def _swap_effects(e: Evidence) -> None:
    """A node of the first run with the lease, while the second has it too."""
    e.effects += effects(1, "receive", 22.2)


def _another_key(e: Evidence) -> None:
    e.runs[1] = replace(e.runs[1], key="k9")


def _another_order(e: Evidence) -> None:
    e.sent.reverse()


def _ran_again(e: Evidence) -> None:
    lose(e)
    e.faults.append(Fault(Kind.KILL, at(14), at(14), 0, PID))
    e.effects += effects(1, "left", 18, attempt=2)


def _forgotten(e: Evidence) -> None:
    """Postgres had confirmed the node, as it confirms all with this durability, and has it no more."""
    _ran_again(e)
    e.runs[0] = replace(e.runs[0], durability="sync")
    e.found.remove(nonce(1, "left"))


def _zombie_result(e: Evidence) -> None:
    e.effects += effects(1, "left", 18, attempt=7, held=False)
    e.stored.add(nonce(1, "left", 7))


def _fork(e: Evidence) -> None:
    e.checkpoints.append(replace(e.checkpoints[-1], id="c9"))


def _back_to_an_older_attempt(e: Evidence) -> None:
    e.checkpoints[0] = replace(e.checkpoints[0], attempt=2)


def _another_threads_run(e: Evidence) -> None:
    e.checkpoints[0] = replace(e.checkpoints[0], run_id=str(run_id(99)))


def _buried(reason: str, losses: int = 0) -> Change:
    """The second run is a dead letter after so many lost attempts."""

    def change(e: Evidence) -> None:
        e.runs[1] = replace(e.runs[1], status="error", attempt=max(losses, 1))
        e.letters[run_id(2)] = reason
        for attempt in range(1, losses + 1):
            e.attempts.append(
                AttemptRow(
                    run_id(2), attempt, WORKER, PID, at(20 + attempt), at(21 + attempt), "lost", "cut off"
                )
            )
        e.faults.append(Fault(Kind.FREEZE, at(20), at(30), 0, PID))

    return change


def _killed_and_not_recorded(e: Evidence) -> None:
    e.faults.append(Fault(Kind.KILL, at(12), at(12), 0, PID))
    for n, transition in enumerate(e.transitions):
        if transition.run_id == run_id(1) and transition.status == "success":
            e.transitions[n] = replace(transition, status="pending")


@pytest.mark.parametrize(
    ("change", "offence"),
    [
        (_another_key, "what was enqueued is there"),
        (_another_order, "what was enqueued is there"),
        (lambda e: e.sent.append(Sent("k3", *LANE, str(run_id(3)))), "what was enqueued is there"),
        (lambda e: e.runs.append(replace(e.runs[1], id=run_id(5))), "what was enqueued is there"),
        (_status("pending"), "every run ended"),
        (_status("running"), "every run ended"),
        (_status("error"), "dead letters are deserved"),
        (_status("timeout"), "dead letters are deserved"),
        (_buried("failed"), "dead letters are deserved"),
        (_buried("worker_lost", losses=2), "dead letters are deserved"),
        (lambda e: e.letters.update({run_id(1): "failed"}), "dead letters are deserved"),
        (_say(3, input_text("k1")), "inputs are there once"),
        (lambda e: e.states[LANE].remove(input_text("k2")), "inputs are there once"),
        (_swap_inputs, "inputs are in order"),
        (_say(4, entry(1, "right")), "answers are whole"),
        (lambda e: e.states[LANE].remove(entry(1, "settle")), "answers are whole"),
        (lambda e: e.states[LANE].reverse(), "answers are whole"),
        (_swap_effects, "attempts do not overlap"),
        (_ran_again, "finished nodes stay finished"),
        (_forgotten, "finished nodes stay finished"),
        (_zombie_result, "nothing unfenced is stored"),
        (lambda e: e.stored.add("0" * 32), "nothing unfenced is stored"),
        (_say(12, entry(1, "close", 9)), "nothing unfenced is stored"),
        (_fork, "checkpoints are one chain"),
        (_back_to_an_older_attempt, "checkpoints are one chain"),
        (_another_threads_run, "checkpoints are one chain"),
        (
            lambda e: e.runs.__setitem__(0, replace(e.runs[0], attempt=2)),
            "every attempt is accounted for",
        ),
        (_killed_and_not_recorded, "kills are recorded"),
        (lambda e: e.lives.append(Life(0, 5, at(0), at(1), at(2), -11)), "workers live on"),
    ],
)
def test_an_offence_is_found(change: Change, offence: str) -> None:
    evidence = clean()
    change(evidence)
    assert offence in offences(evidence)


# ---------------------------------------------------------------------------------------------------
# What is no offence


def test_a_third_lost_worker_is_a_dead_letter_by_right() -> None:
    evidence = clean()
    _buried("worker_lost", losses=3)(evidence)
    assert offences(evidence) == set()


def test_a_node_whose_end_was_not_stored_may_run_again_and_is_counted() -> None:
    evidence = clean()
    lose(evidence)
    evidence.faults.append(Fault(Kind.KILL, at(14), at(14), 0, PID))
    evidence.transitions.insert(2, Transition(run_id(1), 1, "running", "pending", WORKER, PID, at(15)))
    # The execution that is stored is the second attempt's; the first one's came to nothing.
    evidence.effects = [e for e in evidence.effects if (e.run_id, e.node) != (run_id(1), "close")]
    evidence.effects += effects(1, "close", 13, attempt=1) + effects(1, "close", 16, attempt=2)
    evidence.stored.add(nonce(1, "close", 2))
    evidence.found.remove(nonce(1, "close"))
    evidence.found.add(nonce(1, "close", 2))
    said = evidence.states[LANE]
    said[said.index(entry(1, "close"))] = entry(1, "close", 2)

    assert "finished nodes stay finished" not in offences(evidence)
    assert repeated_nodes(evidence) == {(run_id(1), "close"): 1}


def test_what_a_zombie_tried_and_was_refused_is_no_offence() -> None:
    evidence = clean()
    evidence.effects += effects(1, "left", 25, attempt=7, held=False)
    assert offences(evidence) == set()
    report = figures(evidence, judge(evidence, SLACK))
    assert report["zombies' effects, their writes refused"] == 2


def test_a_worker_that_never_served_may_end_by_itself() -> None:
    evidence = clean()
    evidence.lives.append(Life(slot=0, pid=5, began=at(0), ready=None, ended=at(2), status=1))
    assert offences(evidence) == set()


# ---------------------------------------------------------------------------------------------------
# Explained attempts


KILLED = Fault(Kind.KILL, at(12), at(12), 0, PID)
FROZEN = Fault(Kind.FREEZE, at(12), at(14), 0, PID)
TOLD_TO_END = Fault(Kind.TERM, at(12), at(12), 0, PID)
RESTARTED = Fault(Kind.POSTGRES_RESTART, at(12), at(13))


@pytest.mark.parametrize(
    ("fault", "outcome", "cause", "explained"),
    [
        (None, "lost", "heartbeat stale", False),
        (KILLED, "lost", "heartbeat stale", True),
        (KILLED, "lost", "worker gone", True),
        (KILLED, "lost", "cut off", False),  # the dead give nothing back
        (KILLED, "lost", None, False),
        (KILLED, "lost", "of another word", False),
        (KILLED, "lost", "signal 9 (SIGKILL)", False),  # which only the parent of a child can know
        (KILLED, "drained", "drain", False),
        (KILLED, "failed", "transient", False),
        (FROZEN, "lost", "heartbeat stale", True),
        (FROZEN, "lost", "cut off", True),
        (FROZEN, "drained", "drain", False),
        (RESTARTED, "lost", "claim unanswered", True),
        (RESTARTED, "lost", "heartbeat stale", False),  # it was away for a moment only
        (Fault(Kind.POSTGRES_RESTART, at(12), at(16)), "lost", "cut off", True),  # its recovery took long
        (TOLD_TO_END, "drained", "drain", True),
        (TOLD_TO_END, "drained", "drain timeout", True),
        (TOLD_TO_END, "lost", "worker gone", False),
        (TOLD_TO_END, "cancelled", "on request", False),
        (Fault(Kind.REDIS_CUT, at(12), at(14)), "lost", "heartbeat stale", False),
        (Fault(Kind.POSTGRES_CUT, at(12), at(14), 1), "lost", "heartbeat stale", False),  # another's way
        (Fault(Kind.POSTGRES_CUT, at(6), at(8), 0), "lost", "heartbeat stale", True),  # its lease still held
        (Fault(Kind.POSTGRES_CUT, at(2), at(4), 0), "lost", "heartbeat stale", False),  # long ago
        (Fault(Kind.KILL, at(12), at(12), 0, 999), "lost", "heartbeat stale", False),  # another worker
        (Fault(Kind.KILL, at(16), at(16), 0, PID), "lost", "heartbeat stale", False),  # afterwards
    ],
)
def test_an_attempt_is_explained_by_what_was_done_to_its_own_worker_in_its_time(
    fault: Fault | None, outcome: str, cause: str | None, explained: bool
) -> None:
    evidence = clean()
    lose(evidence, outcome, cause)
    if fault is not None:
        evidence.faults.append(fault)
    assert ("attempts are explained" not in offences(evidence)) is explained


@pytest.mark.parametrize(("fault", "explained"), [(KILLED, True), (TOLD_TO_END, True), (FROZEN, False)])
def test_the_child_of_a_quarantine_drains_when_its_parent_ends(fault: Fault, explained: bool) -> None:
    evidence = clean()
    evidence.lives[0].children.add(200)
    row = lose(evidence, "drained", "drain")
    evidence.attempts[0] = replace(row, pid=200)
    evidence.faults.append(fault)
    assert ("attempts are explained" not in offences(evidence)) is explained


# ---------------------------------------------------------------------------------------------------
# Figures


def test_a_rescue_is_timed_from_the_kill_to_the_next_claim() -> None:
    evidence = clean()
    lose(evidence)
    evidence.faults.append(Fault(Kind.KILL, at(12), at(12), 0, PID))
    evidence.transitions[2:2] = [
        Transition(run_id(1), 1, "running", "pending", WORKER, PID, at(15)),
        Transition(run_id(1), 2, "pending", "running", uuid.UUID(int=78), 200, at(15.5)),
    ]
    report = figures(evidence, judge(evidence, SLACK))
    assert report["rescue after SIGKILL, all"] == {"count": 1, "p50": 3.5, "p99": 3.5, "max": 3.5, "never": 0}
    assert report["longest pause of a run"] == 0.5


def test_a_run_that_nobody_rescued_is_counted() -> None:
    evidence = clean()
    evidence.faults.append(Fault(Kind.KILL, at(12), at(12), 0, PID))
    evidence.transitions = [t for t in evidence.transitions if t.status != "success"]
    assert figures(evidence, judge(evidence, SLACK))["rescue after SIGKILL, all"] == {"count": 0, "never": 1}


def test_a_hand_over_is_timed_from_the_drained_attempts_end() -> None:
    evidence = clean()
    lose(evidence, "drained", "drain")
    evidence.faults.append(Fault(Kind.TERM, at(14), at(14), 0, PID))
    evidence.transitions[2:2] = [
        Transition(run_id(1), 1, "running", "pending", WORKER, PID, at(15)),
        Transition(run_id(1), 2, "pending", "running", uuid.UUID(int=78), 200, at(15.25)),
    ]
    report = figures(evidence, judge(evidence, SLACK))
    assert report["hand-over by a drain, nothing else amiss"]["max"] == 0.25


def test_a_pick_up_is_timed_from_the_loss_of_the_bell() -> None:
    evidence = clean()
    # The second run's thread is free at 19; it is claimed at 20.
    evidence.faults.append(Fault(Kind.REDIS_FLUSH, at(19.25), at(19.25)))
    report = figures(evidence, judge(evidence, SLACK))
    assert report["pick-up after a lost bell, nothing else amiss"]["max"] == 0.75
