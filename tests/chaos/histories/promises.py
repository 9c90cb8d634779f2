"""The promises, checked on two pictures of the ledger, one after the other, without asking the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from uuid import UUID

from tests.chaos.histories.picture import Picture, RunPicture
from tests.chaos.histories.state import FAILED, OPEN, TERMINAL, UNFINISHED, LaneId


def broken_promises(before: Picture, after: Picture, replayed: set[UUID]) -> list[str]:
    """In words; empty where all are kept. replayed: whose replay was asked for between the two."""
    return [
        *_one_at_a_time(after),
        *_in_order(before, after),
        *_ends_once(before, after, replayed),
        *_attempts_grow(before, after),
        *_every_attempt_is_explained(after),
        *_letters_match(after),
        *_holds_are_open(after),
        *_threads_agree(after),
    ]


def _by_lane(picture: Picture) -> dict[LaneId, list[tuple[UUID, RunPicture]]]:
    lanes = defaultdict(list)
    for run_id, run in picture.runs.items():
        lanes[run.tenant, run.thread].append((run_id, run))
    return lanes


def _one_at_a_time(picture: Picture) -> Iterator[str]:
    running = Counter((run.tenant, run.thread) for run in picture.runs.values() if run.status == "running")
    for lane, count in running.items():
        if count > 1:
            yield f"thread {':'.join(lane)} has {count} running runs"


def _in_order(before: Picture, after: Picture) -> Iterator[str]:
    """What was started stood at its lane's head; a replayed run, too, waits for what is before it."""
    for runs in _by_lane(after).values():
        for run_id, run in runs:
            was = before.runs.get(run_id)
            if was is None or was.attempt == run.attempt:
                continue
            for other_id, other in runs:
                stood = before.runs.get(other_id)
                passed = stood is not None and stood.status in UNFINISHED and other.status in UNFINISHED
                if passed and other.seq < run.seq:
                    yield f"seq {run.seq} of {run.tenant}:{run.thread} was started before seq {other.seq}"


def _ends_once(before: Picture, after: Picture, replayed: set[UUID]) -> Iterator[str]:
    for run_id, was in before.runs.items():
        run = after.runs.get(run_id)
        if run is None:
            yield f"seq {was.seq} of {was.tenant}:{was.thread} is gone"
        elif was.status in TERMINAL and run_id not in replayed and _end(run) != _end(was):
            yield f"seq {was.seq} of {was.tenant}:{was.thread} was {was.status} and is {run.status}"


def _end(run: RunPicture) -> tuple[object, ...]:
    return run.status, run.attempt, run.failures, run.losses


def _attempts_grow(before: Picture, after: Picture) -> Iterator[str]:
    for run_id, was in before.runs.items():
        run = after.runs.get(run_id)
        if run is not None and run.attempt not in (was.attempt, was.attempt + 1):
            yield f"attempt {was.attempt} of seq {run.seq} of {run.tenant}:{run.thread} became {run.attempt}"


def _every_attempt_is_explained(picture: Picture) -> Iterator[str]:
    """Each attempt but the one under way, or the one that succeeded, has its record, and no other has."""
    recorded = defaultdict(set)
    for run_id, attempt in picture.records:
        recorded[run_id].add(attempt)
    for run_id, run in picture.runs.items():
        expected = set(range(1, run.attempt + 1))
        if run.status in ("running", "success"):
            expected.discard(run.attempt)
        if recorded[run_id] != expected:
            yield (
                f"attempts recorded of seq {run.seq} of {run.tenant}:{run.thread}, {run.status} at attempt "
                f"{run.attempt}: {sorted(recorded[run_id])}"
            )


def _letters_match(picture: Picture) -> Iterator[str]:
    """Every failed run has a dead letter, and each dead letter's status is its run's."""
    matches = {
        "waiting": FAILED,
        "parked": FAILED,
        "replaying": UNFINISHED,
        "resolved": ("success",),
        "discarded": (*FAILED, "interrupted"),
    }
    for run_id, run in picture.runs.items():
        letter = picture.letters.get(run_id)
        if run.status in FAILED and letter is None:
            yield f"seq {run.seq} of {run.tenant}:{run.thread} is {run.status} without a dead letter"
        if letter is not None and run.status not in matches[letter.status]:
            yield (
                f"seq {run.seq} of {run.tenant}:{run.thread} is {run.status}, its dead letter {letter.status}"
            )


def _holds_are_open(picture: Picture) -> Iterator[str]:
    for id_, lane in picture.lanes.items():
        for run_id in lane.held_by:
            letter, run = picture.letters[run_id], picture.runs[run_id]
            if letter.status not in OPEN or (run.tenant, run.thread) != id_:
                yield f"thread {':'.join(id_)} is held by {letter}"


def _threads_agree(picture: Picture) -> Iterator[str]:
    for id_, runs in _by_lane(picture).items():
        status, held = picture.lanes[id_].status, picture.lanes[id_].held_by
        unfinished = [run for _, run in runs if run.status in UNFINISHED]
        if any(run.status == "running" for run in unfinished) and status != "busy":
            yield f"thread {':'.join(id_)} is {status} while a run of it is running"
        if unfinished and not held and status != "busy":
            yield f"thread {':'.join(id_)} is {status} and has a run to do"
        if not unfinished and status == "busy":
            yield f"thread {':'.join(id_)} is busy and has nothing to do"
