"""All that the ledger holds at one moment, as it is read from the database and as the model has it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from tests.chaos.histories.model import Model
from tests.chaos.histories.state import LaneId

TICK = 1000.0  # seconds


class RunPicture(NamedTuple):
    tenant: str
    thread: str
    seq: int
    graph: str
    status: str
    attempt: int
    failures: int
    max_attempts: int
    losses: int
    throttled: float
    replays: int
    due: float
    deadline: float | None
    rung: float | None
    worker: UUID | None
    started: bool
    finished: bool
    key: str | None
    ranked: bool  # it is next, and found by whoever looks for something to start


class LanePicture(NamedTuple):
    status: str
    last_seq: int
    asks: bool
    at_node: bool
    base: str | None
    dead: str | None
    held_by: frozenset[UUID]  # the runs whose dead letters hold what comes after them


class RecordPicture(NamedTuple):
    outcome: str
    cause: str | None
    worker: UUID | None
    began: float | None
    refused: int


class LetterPicture(NamedTuple):
    status: str
    reason: str
    checkpoint: str | None
    base: str | None
    replays: int
    mode: str | None
    due: float | None


class BreakerPicture(NamedTuple):
    graphs: tuple[str, ...]
    failures: int
    open_until: float | None


class CheckpointPicture(NamedTuple):
    thread: str
    run: str
    attempt: str
    parent: str | None
    blob: str | None  # the thread of its blob


@dataclass(frozen=True)
class Picture:
    """Times are in ticks from now, rounded to half a tick. letters: by their runs."""

    runs: dict[UUID, RunPicture]
    lanes: dict[LaneId, LanePicture]
    records: dict[tuple[UUID, int], RecordPicture]
    letters: dict[UUID, LetterPicture]
    letter_ids: dict[UUID, UUID]
    workers: dict[UUID, float]
    breakers: dict[tuple[str, str], BreakerPicture]
    paused: dict[str, bool]
    checkpoints: dict[str, CheckpointPicture]
    writes: dict[str, tuple[str, UUID, str]]  # thread, run, and the checkpoint beside which it stands


def _ahead(column: str) -> str:
    """A time in halves of a tick from now."""
    return f"round(extract(epoch from {column} - now()) / {TICK / 2})::int"


_STATEMENTS = [
    f"""
    select id, tenant, thread_id, seq, graph, status, attempt, failures, max_attempts, worker_losses,
        round((throttled / {TICK / 2})::numeric)::int, replays, {_ahead("run_at")}, {_ahead("deadline")},
        case when status in ('pending', 'running') then {_ahead("dispatched_at")} end,
        worker_id, started_at is not null, finished_at is not null, idempotency_key,
        status = 'pending' and rank is not null
    from runs
    """,
    """
    select t.tenant, t.thread_id, t.status, t.last_seq, t.interrupts is not null, t.next_nodes <> '{}',
        base_checkpoint_id, dead_until, array(
            select run_id from held_lanes h join dead_letters l on l.id = letter_id
            where (h.tenant, h.thread_id) = (t.tenant, t.thread_id)
        )
    from threads t
    """,
    f"""
    select run_id, attempt, outcome, cause, worker_id, {_ahead("started_at")}, fenced_writes from attempts
    """,
    f"""
    select run_id, id, status, reason, checkpoint_id, base_checkpoint_id, replays, replay_mode,
        {_ahead("next_replay_at")}
    from dead_letters
    """,
    f"select id, {_ahead('heartbeat_at')} from workers",
    f"select kind, name, graphs, failures, {_ahead('open_until')} from breakers",
    "select name, paused from limits where kind = 'tenant'",
    """
    select coalesce(checkpoint_id, version), c.thread_id, metadata ->> 'run_id', metadata ->> 'attempt',
        parent_checkpoint_id, b.thread_id
    from checkpoints c full join checkpoint_blobs b on version = checkpoint_id
    """,
    "select task_id, thread_id, run_id, checkpoint_id from checkpoint_writes",
]


def look(connection: psycopg.Connection[Any]) -> Picture:
    """The ledger as it stands. The connection is a superuser's, with the ledger's search path."""
    with connection.pipeline():
        cursors = [connection.execute(statement) for statement in _STATEMENTS]
    runs, lanes, records, letters, workers, breakers, paused, checkpoints, writes = (
        cursor.fetchall() for cursor in cursors
    )
    return Picture(
        runs={
            row[0]: RunPicture(
                *row[1:10], row[10] / 2, row[11], row[12] / 2, _half(row[13]), _half(row[14]), *row[15:]
            )
            for row in runs
        },
        lanes={(row[0], row[1]): LanePicture(*row[2:8], frozenset(row[8])) for row in lanes},
        records={(row[0], row[1]): RecordPicture(*row[2:5], _half(row[5]), row[6]) for row in records},
        letters={row[0]: LetterPicture(*row[2:8], _half(row[8])) for row in letters},
        letter_ids={row[0]: row[1] for row in letters},
        workers={row[0]: row[1] / 2 for row in workers},
        breakers={(row[0], row[1]): BreakerPicture(tuple(row[2]), row[3], _half(row[4])) for row in breakers},
        paused=dict(paused),
        checkpoints={row[0]: CheckpointPicture(*row[1:]) for row in checkpoints},
        writes={row[0]: row[1:] for row in writes},
    )


def _half(halves: int | None) -> float | None:
    return None if halves is None else halves / 2


def imagine(model: Model) -> Picture:
    """What the model says that the ledger holds."""
    now = model.now

    def ahead(at: float | None) -> float | None:
        return None if at is None else at - now

    return Picture(
        runs={
            run.id: RunPicture(
                *run.lane, run.seq, run.graph, run.status, run.attempt, run.failures, run.max_attempts,
                run.losses, run.throttled, run.replays, run.due - now, ahead(run.deadline),
                ahead(run.rung) if run.is_unfinished else None,
                run.worker, run.started, not run.is_unfinished, run.key, model.is_next(run),
            )
            for run in model.runs.values()
        },
        lanes={
            id_: LanePicture(
                lane.status, lane.last_seq, lane.asks, lane.at_node, lane.base, lane.dead,
                frozenset(run.id for run in model.holders(id_)),
            )
            for id_, lane in model.lanes.items()
        },
        records={
            key: RecordPicture(
                record.outcome, record.cause, record.worker, ahead(record.began), record.refused
            )
            for key, record in model.records.items()
        },
        letters={
            run_id: LetterPicture(
                letter.status, letter.reason, letter.checkpoint, letter.base, letter.replays, letter.mode,
                ahead(letter.due),
            )
            for run_id, letter in model.letters.items()
        },
        letter_ids={},
        workers={worker: at - now for worker, at in model.workers.items()},
        breakers={
            key: BreakerPicture(tuple(breaker.graphs), breaker.failures, ahead(breaker.open_until))
            for key, breaker in model.breakers.items()
        },
        paused=dict(model.paused),
        checkpoints={
            id_: CheckpointPicture(
                ":".join(lane), str(run_id), str(attempt), parent, blob=":".join(lane)
            )
            for id_, (lane, run_id, attempt, parent) in model.checkpoints.items()
        },
        writes={
            task: (":".join(lane), run_id, checkpoint)
            for task, (lane, run_id, checkpoint) in model.writes.items()
        },
    )  # fmt: skip


def differences(model: Model, seen: Picture, names: dict[UUID, str]) -> list[str]:
    """Where the ledger is not as the model has it, in words.

    What the design leaves open, the model adopts.
    """
    imagined = imagine(model)
    found = []
    for part in (field.name for field in fields(Picture) if field.name not in ("letter_ids", "lanes")):
        expected, real = getattr(imagined, part), getattr(seen, part)
        if expected == real:
            continue
        for key in sorted({*expected, *real}, key=str):
            if expected.get(key) != real.get(key):
                found.append(
                    f"{part} {_named(key, names)}: {_unequal(expected.get(key), real.get(key), names)}"
                )
    for id_ in sorted({*imagined.lanes, *seen.lanes}):
        found += _of_lane(model, id_, imagined.lanes.get(id_), seen.lanes.get(id_), names)
    return found


def _of_lane(
    model: Model,
    id_: LaneId,
    expected: LanePicture | None,
    real: LanePicture | None,
    names: dict[UUID, str],
) -> list[str]:
    name = f"thread {':'.join(id_)}"
    if expected is None or real is None:
        return [] if expected is real else [f"{name}: {_unequal(expected, real, names)}"]
    if expected.held_by:
        expected = expected._replace(status=_held_status(model, id_, real.status))
        model.lanes[id_].status = expected.status
    return [] if expected == real else [f"{name}: {_unequal(expected, real, names)}"]


def _held_status(model: Model, id_: LaneId, shown: str) -> str:
    """A held lane's: busy while a run may go on, not busy without any; what merely waits may be either."""
    unfinished = model.unfinished(id_)
    if any(not model.is_held(run) for run in unfinished):
        return "busy"
    if unfinished:
        return shown if shown in ("busy", "error") else "busy or error"
    return shown if shown != "busy" else "not busy"


def _unequal(expected: Any, real: Any, names: dict[UUID, str]) -> str:
    if expected is None or real is None or not hasattr(expected, "_fields"):
        return f"{_named(real, names)}, expected {_named(expected, names)}"
    return "; ".join(
        f"{name} is {_named(is_, names)}, expected {_named(should, names)}"
        for name, is_, should in zip(expected._fields, real, expected, strict=True)
        if is_ != should
    )


def _named(value: Any, names: dict[UUID, str]) -> str:
    if isinstance(value, frozenset):
        return " and ".join(sorted(_named(part, names) for part in value)) or "nobody"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return " ".join(_named(part, names) for part in value)
    return names.get(value, str(value)) if isinstance(value, UUID) else str(value)
