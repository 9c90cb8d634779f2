"""The judgement on an attack: each function lists the offenders against one promise, in words."""

from __future__ import annotations

import datetime
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise, product

from tests.chaos.evidence import AttemptRow, Effect, Evidence, Fault, Kind, Lane, Life, RunRow, Transition

TERMINAL = ("success", "error", "timeout", "interrupted")
NODES = ("receive", "left", "right", "settle", "close")
WORKER_LOST = "worker_lost"
LOSSES_OF_A_LETTER = 3
SHOWN = 8

# Which nodes begin only when these have finished, and their results are in a checkpoint.
FOLLOWERS = {"receive": ("left", "right"), "left": ("settle",), "right": ("settle",), "settle": ("close",)}

# What keeps a worker from Postgres for longer than a moment.
_AWAY = frozenset({Kind.POSTGRES_CUT, Kind.POSTGRES_SILENT, Kind.POSTGRES_SILENT_CUT})
_DEAD_OR_AWAY = _AWAY | {Kind.KILL, Kind.FREEZE}
# What must have been done for an attempt to have come to this, for this cause. What is not here (a failure,
# a time limit, a cancel, a child of a quarantine that was killed) nobody did in this attack.
EXPLANATIONS: dict[tuple[str, str | None], frozenset[Kind]] = {
    ("lost", "heartbeat stale"): _DEAD_OR_AWAY,
    ("lost", "worker gone"): _DEAD_OR_AWAY,
    ("lost", "cut off"): _AWAY | {Kind.FREEZE},
    ("lost", "claim unanswered"): _AWAY | {Kind.FREEZE, Kind.POSTGRES_RESTART, Kind.POSTGRES_TERMINATE},
    ("drained", "drain"): frozenset({Kind.TERM}),
    ("drained", "drain timeout"): frozenset({Kind.TERM}),
}


def input_text(key: str) -> str:
    """The message that a run puts into its thread's state; the run's idempotency key leads back to it."""
    return f"input {key}"


def what_was_enqueued_is_there(evidence: Evidence) -> Iterator[str]:
    """Promise 1: a run for each enqueue that returned, under its id, once, and no others; in their order."""
    runs = {run.key: run for run in evidence.runs}
    if len(runs) < len(evidence.runs):
        yield f"{len(evidence.runs) - len(runs)} runs share an idempotency key with another"
    known = {sent.key for sent in evidence.sent}
    yield from (f"run {run.id} was never asked for" for run in evidence.runs if run.key not in known)
    last: dict[Lane, int] = {}
    for sent in evidence.sent:
        run = runs.get(sent.key)
        if sent.run_id is None:
            continue
        if run is None:
            yield f"run {sent.run_id} ({sent.key}) is not in the ledger"
        elif str(run.id) != sent.run_id:
            yield f"run {sent.run_id} ({sent.key}) is {run.id} in the ledger"
        elif run.seq <= last.get(run.lane, 0):
            yield f"run {run.id} ({sent.key}) has seq {run.seq} after {last[run.lane]}"
        else:
            last[run.lane] = run.seq


def every_run_ended(evidence: Evidence) -> Iterator[str]:
    """Promise 1: a terminal status."""
    for run in evidence.runs:
        if run.status not in TERMINAL:
            yield f"run {run.id} ({run.key}) is {run.status}, attempt {run.attempt}"


def dead_letters_are_deserved(evidence: Evidence) -> Iterator[str]:
    """Promise 6: a dead letter for each error and for nothing else; here only for a third lost worker."""
    losses = Counter(row.run_id for row in evidence.attempts if row.outcome == "lost")
    for run in evidence.runs:
        reason = evidence.letters.get(run.id)
        if run.status == "success" and reason is not None:
            yield f"run {run.id} succeeded and has a dead letter: {reason}"
        elif run.status == "error" and reason is None:
            yield f"run {run.id} failed and has no dead letter"
        elif run.status in ("timeout", "interrupted"):
            yield f"run {run.id} is {run.status}, and nobody set a time limit or cancelled it"
        elif run.status == "error" and reason != WORKER_LOST:
            yield f"run {run.id} is a dead letter: {reason}; {_last_attempt(evidence, run)}"
        elif run.status == "error" and losses[run.id] < LOSSES_OF_A_LETTER:
            yield f"run {run.id} is a dead letter {reason} after {losses[run.id]} lost attempts"


def _last_attempt(evidence: Evidence, run: RunRow) -> str:
    rows = [row for row in evidence.attempts if row.run_id == run.id]
    if not rows:
        return "no attempt is recorded"
    return f"{rows[-1].outcome}, {_error(rows[-1])}"


def _error(row: AttemptRow) -> str:
    """The exception on one line."""
    return " ".join(f"{row.exception_type}: {row.message}".split())[:200]


def inputs_are_there_once(evidence: Evidence) -> Iterator[str]:
    """Promise 3: the input of a success stands in its thread's state once, of any other run at most once."""
    for lane, runs in evidence.lanes().items():
        messages = Counter(evidence.states.get(lane, []))
        for run in runs:
            count = messages[input_text(run.key or "")]
            if count > 1 or (count == 0 and run.status == "success"):
                yield f"the input of run {run.id} ({run.status}) is {count} times in the state of {lane}"


def inputs_are_in_order(evidence: Evidence) -> Iterator[str]:
    """Promise 2: by seq."""
    for lane, runs in evidence.lanes().items():
        seqs = {input_text(run.key or ""): run.seq for run in runs}
        found = [seqs[message] for message in evidence.states.get(lane, []) if message in seqs]
        if found != sorted(found):
            yield f"in the state of {lane} the inputs stand in the order {found}"


def answers_are_whole(evidence: Evidence) -> Iterator[str]:
    """Promise 3: behind the input of a success stands what each of its nodes added, once, and in order."""
    for lane, runs in evidence.lanes().items():
        said = evidence.states.get(lane, [])
        inputs = {input_text(run.key or "") for run in runs}
        for run in runs:
            text = input_text(run.key or "")
            if run.status != "success" or text not in said:
                continue
            behind = said[said.index(text) + 1 :]
            ends_at = next((n for n, message in enumerate(behind) if message in inputs), len(behind))
            nodes = [tuple(message.split()[:2]) for message in behind[:ends_at]]
            if nodes != [(node, str(run.id)) for node in NODES]:
                yield f"behind the input of run {run.id} in {lane} stands {behind[:ends_at]}"


def attempts_do_not_overlap(evidence: Evidence) -> Iterator[str]:
    """Promise 2: on a thread, what one attempt did with the lease lies before or after what another did."""
    lanes = {run.id: run.lane for run in evidence.runs}
    by_lane: defaultdict[Lane, list[Effect]] = defaultdict(list)
    for effect in sorted(_held(evidence), key=lambda effect: effect.at):
        by_lane[lanes[effect.run_id]].append(effect)
    for lane, effects in by_lane.items():
        turns = [turn for turn, _ in groupby(effects, key=lambda effect: (effect.run_id, effect.attempt))]
        for (run_id, attempt), count in Counter(turns).items():
            if count > 1:
                yield f"attempt {attempt} of run {run_id} had {count} turns on {lane}"


def _held(evidence: Evidence) -> Iterable[Effect]:
    return (effect for effect in evidence.effects if effect.held)


def finished_nodes_stay_finished(evidence: Evidence) -> Iterator[str]:
    """Promise 3: no attempt with the lease starts a node again once a result of it is stored to be found.

    Compared are the node's entries in the diary: each end whose nonce stands in a blob of the checkpoints, or
    in a pending write that hangs on a checkpoint, with each later start.
    """
    for (run_id, node), effects in _by_node(evidence).items():
        stored = [effect for effect in effects if effect.kind == "end" and effect.nonce in evidence.found]
        for end in stored:
            again = [effect for effect in effects if effect.kind == "start" and effect.at > end.at]
            for start in again:
                yield (
                    f"node {node} of run {run_id} ended in attempt {end.attempt} at {end.at:%H:%M:%S.%f}, "
                    f"its result is stored, and attempt {start.attempt} ran it again at "
                    f"{start.at:%H:%M:%S.%f}"
                )
    yield from _gone_back(evidence)


def _gone_back(evidence: Evidence) -> Iterator[str]:
    """With durability `sync`, a node is stored before those that follow it begin: it never starts again.

    Unlike the stored results, this also shows what Postgres had confirmed and has no more.
    """
    synchronous = {run.id for run in evidence.runs if run.durability == "sync"}
    by_node = _by_node(evidence)
    for (run_id, node), effects in by_node.items():
        followers = [effect for name in FOLLOWERS.get(node, ()) for effect in by_node.get((run_id, name), [])]
        if run_id not in synchronous or not followers:
            continue
        went_on = min(effect.at for effect in followers)
        for start in effects:
            if start.kind == "start" and start.at > went_on:
                yield f"node {node} of run {run_id} started again after what follows it had begun"


def repeated_nodes(evidence: Evidence) -> dict[tuple[uuid.UUID, str], int]:
    """How often a node was run again, its end not having been stored: no offence, but to be shown."""
    starts = {key: sum(e.kind == "start" for e in effects) for key, effects in _by_node(evidence).items()}
    return {key: count - 1 for key, count in starts.items() if count > 1}


def _by_node(evidence: Evidence) -> dict[tuple[uuid.UUID, str], list[Effect]]:
    by_node: defaultdict[tuple[uuid.UUID, str], list[Effect]] = defaultdict(list)
    for effect in _held(evidence):
        by_node[effect.run_id, effect.node].append(effect)
    return by_node


def nothing_unfenced_is_stored(evidence: Evidence) -> Iterator[str]:
    """Promise 4: every result that is stored was made by an attempt that had the lease when it ended."""
    ends = {effect.nonce: effect for effect in evidence.effects if effect.kind == "end"}
    told = {
        message.rsplit(" ", 1)[-1] for said in evidence.states.values() for message in said if _by(message)
    }
    for nonce in sorted(evidence.stored | told):
        end = ends.get(nonce)
        if end is None:
            yield f"the result {nonce} is stored, and no node that ended made it"
        elif not end.held:
            yield f"the result {nonce} is stored: node {end.node}, attempt {end.attempt} of run {end.run_id}"


def _by(message: str) -> bool:
    """Whether a node said it."""
    return message.split(" ", 1)[0] in NODES


def checkpoints_are_one_chain(evidence: Evidence) -> Iterator[str]:
    """Promise 4: each checkpoint is of a run of its thread and has one successor; attempts never go back."""
    runs = {(run.lane, str(run.id)) for run in evidence.runs}
    for lane, rows in groupby(evidence.checkpoints, key=lambda row: row.lane):
        chain = list(rows)
        yield from (
            f"checkpoint {row.id} of {lane} names run {row.run_id}"
            for row in chain
            if (lane, row.run_id) not in runs
        )
        for parent, children in Counter(row.parent for row in chain).items():
            if children > 1:
                yield f"checkpoint {parent} of {lane} has {children} successors"
        for before, after in pairwise(chain):
            if before.run_id == after.run_id and (before.attempt or 0) > (after.attempt or 0):
                yield f"checkpoint {after.id} of {lane}: attempt {after.attempt} after {before.attempt}"


def every_attempt_is_accounted_for(evidence: Evidence) -> Iterator[str]:
    """Promise 6: each attempt has its row, but the one that succeeded or is still under way."""
    recorded: defaultdict[uuid.UUID, set[int]] = defaultdict(set)
    for row in evidence.attempts:
        recorded[row.run_id].add(row.attempt)
    for run in evidence.runs:
        unrecorded = run.status in ("success", "running")
        expected = set(range(1, run.attempt + (0 if unrecorded else 1)))
        if recorded[run.id] != expected:
            rows = sorted(recorded[run.id])
            yield f"run {run.id} ({run.status}, attempt {run.attempt}) has rows for attempts {rows}"


def kills_are_recorded(evidence: Evidence) -> Iterator[str]:
    """Number 8: what a worker held when it was killed is recorded as lost, unless it had just ended."""
    outcomes = {(row.run_id, row.attempt): row.outcome for row in evidence.attempts}
    stories: defaultdict[uuid.UUID, list[Transition]] = defaultdict(list)
    for transition in evidence.transitions:
        stories[transition.run_id].append(transition)
    kills = [fault for fault in evidence.faults if fault.kind is Kind.KILL]
    for fault, (run_id, story) in product(kills, stories.items()):
        before = [transition for transition in story if transition.at <= fault.begins]
        following = story[len(before) :]
        if not before or before[-1].status != "running" or before[-1].pid != fault.pid:
            continue
        outcome = outcomes.get((run_id, before[-1].attempt))
        ended = bool(following) and following[0].status == "success"
        if outcome != "lost" and not ended:
            yield (
                f"worker {fault.pid} was killed at {fault.begins:%H:%M:%S.%f} with attempt "
                f"{before[-1].attempt} of run {run_id}, whose outcome is {outcome}"
            )


def attempts_are_explained(evidence: Evidence, slack: float) -> Iterator[str]:
    """Number 8: outcome and cause of each row are in the vocabulary, and agree with what was done."""
    for row in evidence.attempts:
        kinds = set(faults_of(evidence, row, slack))
        if not kinds & EXPLANATIONS.get((row.outcome, row.cause), frozenset()):
            what = f"{row.outcome}, cause {row.cause!r}, {_error(row)}"
            done = ", ".join(sorted(kinds)) or "nothing"
            lasted = f"{row.started_at or row.ended_at:%H:%M:%S.%f} to {row.ended_at:%H:%M:%S.%f}"
            yield (
                f"attempt {row.attempt} of run {row.run_id}, {lasted}, worker {row.pid}: {what}; "
                f"to its worker was done: {done}"
            )


def faults_of(evidence: Evidence, row: AttemptRow, slack: float) -> Iterator[Kind]:
    """What was done to an attempt's worker while it lasted, or up to `slack` seconds before it began.

    slack: the lease. For so long a worker that cannot beat goes on claiming, where its claims get through.
    """
    life = evidence.life_of(row.pid)
    began = row.started_at or row.ended_at
    for fault in evidence.faults:
        lasted = fault.begins <= row.ended_at and fault.ends + datetime.timedelta(seconds=slack) >= began
        kind = _kind_for(fault, row, life)
        if lasted and kind is not None:
            yield Kind.POSTGRES_CUT if _was_long(fault, slack) else kind


def _was_long(fault: Fault, lease: float) -> bool:
    """Whether a restart of Postgres took so long that leases ran out meanwhile, as on a slow disk.

    The last beat before it was up to an interval ago, which is a third of the lease at the most.
    """
    took = (fault.ends - fault.begins).total_seconds()
    return fault.kind is Kind.POSTGRES_RESTART and took >= lease * 2 / 3


def _kind_for(fault: Fault, row: AttemptRow, life: Life | None) -> Kind | None:
    """What the fault was to the process that had the attempt; None if nothing."""
    if fault.pid is None:
        return fault.kind if fault.slot is None or (life and life.slot == fault.slot) else None
    if life is None or life.pid != fault.pid:
        return None
    if row.pid == life.pid:
        return fault.kind
    # The child of a quarantine: it drains when its parent ends, and a frozen parent is nothing to it.
    return None if fault.kind is Kind.FREEZE else Kind.TERM


def workers_live_on(evidence: Evidence) -> Iterator[str]:
    """Workers wait for what is away: none that was ready ends by itself, and none survives its drain."""
    for life in evidence.lives:
        if life.ready is not None and life.ended is not None and not life.asked:
            yield f"worker {life.pid} ended by itself with {life.status}: {life.last_words}"


Judge = Callable[[Evidence], Iterator[str]]


def judges(slack: float) -> dict[str, Judge]:
    """All of them by what must hold."""
    return {
        "what was enqueued is there": what_was_enqueued_is_there,
        "every run ended": every_run_ended,
        "dead letters are deserved": dead_letters_are_deserved,
        "inputs are there once": inputs_are_there_once,
        "inputs are in order": inputs_are_in_order,
        "answers are whole": answers_are_whole,
        "attempts do not overlap": attempts_do_not_overlap,
        "finished nodes stay finished": finished_nodes_stay_finished,
        "nothing unfenced is stored": nothing_unfenced_is_stored,
        "checkpoints are one chain": checkpoints_are_one_chain,
        "every attempt is accounted for": every_attempt_is_accounted_for,
        "kills are recorded": kills_are_recorded,
        "attempts are explained": lambda evidence: attempts_are_explained(evidence, slack),
        "workers live on": workers_live_on,
    }


def judge(evidence: Evidence, slack: float) -> dict[str, list[str]]:
    """The offenders by what must hold, also where there are none."""
    return {name: list(judge(evidence)) for name, judge in judges(slack).items()}


def told(offences: dict[str, list[str]]) -> str:
    """The first offenders of each kind."""
    lines = []
    for name, found in offences.items():
        if found:
            lines.append(f"not so: {name} ({len(found)})")
            lines += [f"    {offender}" for offender in found[:SHOWN]]
    return "\n".join(lines)
