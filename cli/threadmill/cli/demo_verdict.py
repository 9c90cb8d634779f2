"""What the demo must have shown, judged from what was left in the ledger and in the checkpoints."""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from threadmill.dlq import DeadLetter
from threadmill.graphs.samples.follow_up import mentioned
from threadmill.producers import Run

Place = tuple[str, str]  # (tenant, thread id)


class Question(NamedTuple):
    """What was enqueued. modules: those that a right answer cites."""

    run_id: str
    tenant: str
    thread_id: str
    text: str
    modules: frozenset[str]

    @property
    def place(self) -> Place:
        return self.tenant, self.thread_id


class Attempt(NamedTuple):
    """One execution of a run, from its claim to its end, by the ledger's clock.

    outcome: "success", or what the attempt's record says.
    """

    run_id: str
    place: Place
    seq: int
    started_at: datetime.datetime
    ended_at: datetime.datetime
    number: int
    outcome: str


class Sight(NamedTuple):
    """What a tenant got when it tried to read everything: how much of its own, how much of the others'."""

    viewer: str
    what: str
    own: int
    foreign: int


class Accident(NamedTuple):
    """Which worker was killed, when by the ledger's clock, and what it held: run ids and attempt numbers."""

    worker: str
    killed_at: datetime.datetime
    held: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Evidence:
    """Everything that the verdict rests on. turns: what each thread's newest checkpoint holds.

    accident: None where no worker was killed.
    """

    questions: Sequence[Question]
    runs: Sequence[Run]
    attempts: Sequence[Attempt]
    letters: Sequence[DeadLetter]
    turns: Mapping[Place, Sequence[Mapping[str, Any]]]
    sights: Sequence[Sight]
    accident: Accident | None

    def questions_by_thread(self) -> dict[Place, list[Question]]:
        """What was asked on each thread, in the order in which it was enqueued."""
        asked: dict[Place, list[Question]] = defaultdict(list)
        for question in self.questions:
            asked[question.place].append(question)
        return asked

    def told(self, place: Place) -> list[str]:
        """The questions in the thread's state."""
        return [turn["question"] for turn in self.turns.get(place, ())]


@dataclass(frozen=True)
class Check:
    """One thing that must hold, with the figures that were found, and what speaks against it."""

    name: str
    found: str
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON values."""
        return {"name": self.name, "holds": self.holds, "found": self.found, "faults": list(self.faults)}


def judge(evidence: Evidence) -> list[Check]:
    """All checks, whether they hold or not."""
    return [
        _all_succeeded(evidence),
        _none_lost(evidence),
        _none_twice(evidence),
        _in_order(evidence),
        _one_at_a_time(evidence),
        _isolated(evidence),
        _tried_again(evidence),
        _letters_resolved(evidence),
        _rescued(evidence),
        _answers_right(evidence),
    ]


def _all_succeeded(evidence: Evidence) -> Check:
    faults = [
        f"run {run.id} of {_at(run)} is {run.status}" for run in evidence.runs if run.status != "success"
    ]
    if not evidence.runs:
        faults.append("the ledger holds no run")
    number = len(evidence.runs)
    return Check("Every run succeeded", f"{number - len(faults)} of {number}", tuple(faults))


def _none_lost(evidence: Evidence) -> Check:
    runs = {run.id: run for run in evidence.runs}
    faults = []
    finished = in_state = 0
    for question in evidence.questions:
        run = runs.get(question.run_id)
        finished += run is not None and run.is_finished
        told = question.text in evidence.told(question.place)
        in_state += told
        if run is None:
            faults.append(f"run {question.run_id} of {_at(question)} is not in the ledger")
        elif not run.is_finished:
            faults.append(f"run {run.id} of {_at(run)} did not finish")
        elif not told:
            faults.append(f"run {run.id} left nothing in the state of {_at(run)}: {question.text!r}")
    found = f"{len(evidence.questions)} enqueued, {finished} finished, {in_state} in a state"
    return Check("None was lost", found, tuple(faults))


def _none_twice(evidence: Evidence) -> Check:
    faults = []
    turns = 0
    for place, asked in evidence.questions_by_thread().items():
        told = evidence.told(place)
        turns += len(told)
        due = Counter(question.text for question in asked)
        faults += [
            f"{text!r} is {count} times in the state of {'/'.join(place)}, not {due[text]}"
            for text, count in Counter(told).items()
            if count > due[text] > 0
        ]
    found = f"{turns} turns in {len(evidence.turns)} threads, {len(faults)} doubled"
    return Check("None is in a state twice", found, tuple(faults))


def _in_order(evidence: Evidence) -> Check:
    seqs = {run.id: run.seq for run in evidence.runs}
    asked_by_thread = evidence.questions_by_thread()
    faults = []
    for place, asked in asked_by_thread.items():
        # What is lost or doubled has checks of its own.
        told = [text for text in dict.fromkeys(evidence.told(place)) if text in {q.text for q in asked}]
        if told != [question.text for question in asked if question.text in told]:
            faults.append(f"the turns of {'/'.join(place)} are not in the order of the questions")
        given = [seqs[question.run_id] for question in asked if question.run_id in seqs]
        if given != sorted(given):
            faults.append(f"the runs of {'/'.join(place)} were numbered in another order than enqueued")
        started = [attempt.seq for attempt in _attempts_by_thread(evidence).get(place, ())]
        if started != sorted(started):
            faults.append(f"the runs of {'/'.join(place)} were not started in order")
    number = len(asked_by_thread)
    return Check("The order was kept", f"{number} threads, {len(faults)} out of order", tuple(faults))


def _one_at_a_time(evidence: Evidence) -> Check:
    recorded = Counter(attempt.run_id for attempt in evidence.attempts)
    # An attempt without a record could have overlapped with any other.
    faults = [
        f"run {run.id} of {_at(run)} had {run.attempt} attempts, and {recorded[run.id]} left a record"
        for run in evidence.runs
        if run.attempt != recorded[run.id]
    ]
    overlaps = [
        f"runs {before.run_id} and {after.run_id} ran at once on {'/'.join(place)}"
        for place, attempts in _attempts_by_thread(evidence).items()
        for before, after in _overlapping(attempts)
    ]
    made = sum(run.attempt for run in evidence.runs)
    found = f"{made} attempts, {len(overlaps)} overlaps"
    return Check("One attempt at a time", found, (*faults, *overlaps))


def _overlapping(attempts: Sequence[Attempt]) -> Iterator[tuple[Attempt, Attempt]]:
    """Each attempt that began before all that had begun earlier were over, with the last of those."""
    last: Attempt | None = None
    for attempt in attempts:
        if last is not None and attempt.started_at < last.ended_at:
            yield last, attempt
        if last is None or attempt.ended_at > last.ended_at:
            last = attempt


def _isolated(evidence: Evidence) -> Check:
    faults = list(_leaks(evidence))
    tenants = {question.tenant for question in evidence.questions}
    shared = Counter(thread_id for _, thread_id in evidence.turns)
    alike = sum(number == len(tenants) for number in shared.values())
    own, foreign = sum(s.own for s in evidence.sights), sum(s.foreign for s in evidence.sights)
    found = f"{own} own rows seen, {foreign} foreign; {alike} shared ids"
    return Check("Tenants are isolated", found, tuple(faults))


def _leaks(evidence: Evidence) -> Iterator[str]:
    for viewer, what, own, foreign in evidence.sights:
        if foreign:
            yield f"{viewer} sees {foreign} {what} of other tenants"
        if not own:  # then it proves nothing that it sees no others
            yield f"{viewer} does not even see {what} of its own"
    if not evidence.sights:
        yield "nobody tried to read another tenant's threads"
    for place, asked in evidence.questions_by_thread().items():
        known = {question.text for question in asked}
        for text in evidence.told(place):
            if text not in known:
                yield f"{'/'.join(place)} holds a question that was asked elsewhere: {text!r}"


def _tried_again(evidence: Evidence) -> Check:
    succeeded = {run.id for run in evidence.runs if run.status == "success"}
    failed = [attempt for attempt in evidence.attempts if attempt.outcome == "failed"]
    faults = [
        f"attempt {attempt.number} of run {attempt.run_id} failed, and none after it succeeded"
        for attempt in failed
        if attempt.run_id not in succeeded
    ]
    if not failed:
        faults.append("the outage failed no attempt, so nothing was shown")
    # Each replay that has come to its end began with one attempt that was buried; the others were retried.
    buried = sum(letter.replays for letter in evidence.letters)
    found = f"{len(failed)} attempts failed: {len(failed) - buried} retried, {buried} buried"
    return Check("What failed was tried again", found, tuple(faults))


def _rescued(evidence: Evidence) -> Check:
    name, accident = "A killed worker cost nothing", evidence.accident
    if accident is None:
        return Check(name, "nobody was killed", ("no worker was killed, so nothing was shown",))
    by_number = {(attempt.run_id, attempt.number): attempt for attempt in evidence.attempts}
    faults = [] if accident.held else [f"{accident.worker} held no run, so nothing was shown"]
    pauses = []
    for run_id, number in accident.held:
        lost, after = by_number.get((run_id, number)), by_number.get((run_id, number + 1))
        if lost is None or lost.outcome != "lost":
            faults.append(f"attempt {number} of run {run_id}, which {accident.worker} held, is not lost")
        elif after is None:
            faults.append(f"run {run_id}, which {accident.worker} held, did not go on elsewhere")
        else:
            pauses.append((after.started_at - accident.killed_at).total_seconds())
    found = f"{len(accident.held)} runs under way, {len(pauses)} resumed"
    return Check(name, f"{found} within {max(pauses):.1f} s" if pauses else found, tuple(faults))


def _letters_resolved(evidence: Evidence) -> Check:
    letters = evidence.letters
    faults = [
        f"dead letter {letter.id} of run {letter.run_id} ({_at(letter)}) is {letter.status}: "
        f"{letter.error.type} in {letter.node or 'no node'}"
        for letter in letters
        if letter.status != "resolved"
    ]
    if not letters:
        faults.append("the outage made no dead letter, so nothing was shown")
    resolved = sum(letter.status == "resolved" for letter in letters)
    replays = sum(letter.replays for letter in letters)
    found = f"{len(letters)} appeared, {resolved} resolved, by {replays} replays"
    return Check("Dead letters are resolved", found, tuple(faults))


def _answers_right(evidence: Evidence) -> Check:
    faults = []
    for place, asked in evidence.questions_by_thread().items():
        cited = {
            turn["question"]: {citation["module"] for citation in turn["citations"]}
            for turn in evidence.turns.get(place, ())
        }
        for question in asked:
            modules = cited.get(question.text, set())
            if modules != question.modules:
                wanted, got = ", ".join(sorted(question.modules)), ", ".join(sorted(modules)) or "nothing"
                faults.append(f"{'/'.join(place)}: {question.text!r} cites {got} instead of {wanted}")
    number = len(evidence.questions)
    unnamed = sum(not question.modules <= set(mentioned(question.text)) for question in evidence.questions)
    found = f"{number - len(faults)} of {number}; {unnamed} did not name their module"
    return Check("Answers are right", found, tuple(faults))


def _attempts_by_thread(evidence: Evidence) -> dict[Place, list[Attempt]]:
    """The attempts on each thread, in the order in which they started."""
    attempts: dict[Place, list[Attempt]] = defaultdict(list)
    for attempt in sorted(evidence.attempts, key=lambda attempt: (attempt.started_at, attempt.ended_at)):
        attempts[attempt.place].append(attempt)
    return attempts


def _at(thing: Question | Run | DeadLetter) -> str:
    return f"{thing.tenant}/{thing.thread_id}"
