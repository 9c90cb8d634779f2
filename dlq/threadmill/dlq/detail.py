"""One dead letter in full: what failed, what was tried, the state it left, and what a replay would do."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import UUID

from threadmill.core.errors import DeadLetterNotFound
from threadmill.core.keys import check_tenant, thread_key
from threadmill.core.models import Attempt, DeadLetterAction, Run, table_of
from threadmill.core.models import HeldLane as HeldLaneRow
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import bind_tenant
from threadmill.dlq.dead_letter import DeadLetter
from threadmill.dlq.letters import read_letter
from threadmill.dlq.preview import Preview, preview_of, standing
from threadmill.producers.queries import check_page
from threadmill.producers.run import timestamp
from threadmill.producers.state import CHECKPOINT_VALUES, values_of

WAITING_MOST = 1_000
# A dead letter that was replayed and noted without end is shown with its latest.
ACTIONS_MOST = 200
ATTEMPTS_MOST = 200

_runs, _held = table_of(Run), table_of(HeldLaneRow)
_attempts, _actions = table_of(Attempt), table_of(DeadLetterAction)

_RUN_ID = bindparam("run_id", type_=UUID(as_uuid=True))
_LETTER_ID = bindparam("letter_id", type_=UUID(as_uuid=True))

_INPUT = select(_runs.c.input).where(_runs.c.id == _RUN_ID)
_ATTEMPTS = (
    select(*(column for column in _attempts.c if column.name not in ("run_id", "tenant", "fenced_writes")))
    .where(_attempts.c.run_id == _RUN_ID)
    .order_by(_attempts.c.attempt.desc())
    .limit(ATTEMPTS_MOST)
)
_ACTIONS = (
    select(_actions.c.at, _actions.c.by, _actions.c.action, _actions.c.facts)
    .where(_actions.c.letter_id == _LETTER_ID)
    .order_by(_actions.c.id.desc())
    .limit(ACTIONS_MOST)
)
_BEHIND = (
    select(_runs.c.id)
    .where(
        _runs.c.tenant == _held.c.tenant,
        _runs.c.thread_id == _held.c.thread_id,
        _runs.c.seq > _held.c.seq,
        _runs.c.status == literal_column("'pending'"),
    )
    .limit(WAITING_MOST)
    .correlate(_held)
    .subquery("behind")
)
_LANES = select(*_held.c, select(func.count()).select_from(_BEHIND).scalar_subquery().label("waiting"))
_HELD_BY = _LANES.where(_held.c.letter_id == _LETTER_ID)
_STATES = text(f"{CHECKPOINT_VALUES} and checkpoint_id = any(:names)")


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt of the run. replay: which replay it belonged to; 0 for none."""

    attempt: int
    replay: int
    worker_id: str | None
    started_at: datetime.datetime | None
    ended_at: datetime.datetime
    outcome: str
    cause: str | None
    node: str | None
    checkpoint_id: str | None
    exception_type: str | None
    message: str | None
    traceback: str | None

    def to_dict(self) -> dict[str, Any]:
        """The attempt as JSON values."""
        return {
            "attempt": self.attempt,
            "replay": self.replay,
            "worker_id": self.worker_id,
            "started_at": timestamp(self.started_at),
            "ended_at": timestamp(self.ended_at),
            "outcome": self.outcome,
            "cause": self.cause,
            "node": self.node,
            "checkpoint_id": self.checkpoint_id,
            "exception_type": self.exception_type,
            "message": self.message,
            "traceback": self.traceback,
        }


@dataclass(frozen=True, slots=True)
class Action:
    """What was done about a dead letter, when and by whom."""

    at: datetime.datetime
    by: str
    action: str
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The action as JSON values."""
        return {"at": timestamp(self.at), "by": self.by, "action": self.action, "facts": self.facts}


@dataclass(frozen=True, slots=True)
class Change:
    """One place of the state that the run changed. path: a JSON pointer (RFC 6901).

    before, after: the values; a place that is new has no `before`, one that is gone no `after`, and
    `kind` (added, removed, changed) says which.
    """

    path: str
    kind: str
    before: Any = None
    after: Any = None

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON values."""
        shown: dict[str, Any] = {"path": self.path, "kind": self.kind}
        if self.kind != "added":
            shown["before"] = self.before
        if self.kind != "removed":
            shown["after"] = self.after
        return shown


@dataclass(frozen=True, slots=True)
class HeldLane:
    """A thread whose later runs wait for a dead letter.

    until: when they go on at the latest; None: not before it is closed. waiting: how many wait, counted up to
    `WAITING_MOST`.
    """

    tenant: str
    thread_id: str
    seq: int
    letter_id: str
    since: datetime.datetime
    until: datetime.datetime | None
    waiting: int

    def to_dict(self) -> dict[str, Any]:
        """The lane as JSON values."""
        return {
            "tenant": self.tenant,
            "thread_id": self.thread_id,
            "seq": self.seq,
            "letter_id": self.letter_id,
            "since": timestamp(self.since),
            "until": timestamp(self.until),
            "waiting": self.waiting,
        }


@dataclass(frozen=True, slots=True)
class LetterDetail:
    """A dead letter with all that is known about it.

    input: the run's present input. state: the values where the run failed; None where it left no checkpoint.
    diff: how they differ from those before its input.
    """

    letter: DeadLetter
    input: Any
    attempts: tuple[AttemptRecord, ...]
    actions: tuple[Action, ...]
    state: dict[str, Any] | None
    diff: tuple[Change, ...]
    held_lane: HeldLane | None
    preview: Preview

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            **self.letter.to_dict(),
            "exceptions": list(self.letter.exceptions),
            "traceback": self.letter.traceback,
            "input": self.input,
            "original_input": self.letter.original_input,
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "actions": [action.to_dict() for action in self.actions],
            "state": self.state,
            "diff": [change.to_dict() for change in self.diff],
            "held_lane": self.held_lane.to_dict() if self.held_lane else None,
            "preview": self.preview.to_dict(),
        }


def read_detail(letter_id: str) -> Plan[LetterDetail]:
    """The dead letter in full. Raises DeadLetterNotFound."""
    letter = yield from read_letter(letter_id, final=False)
    key = {"letter_id": uuid.UUID(letter.id)}
    run = {"run_id": uuid.UUID(letter.run_id) if letter.run_id else None}
    steps = [
        Step(_INPUT, run),
        Step(_ATTEMPTS, run),
        Step(_ACTIONS, key),
        Step(_HELD_BY, key),
        Step(standing(), key),
    ]
    inputs, attempts, actions, lanes, stands = yield Batch(steps, final=False)
    if not stands:  # its time was over meanwhile
        raise DeadLetterNotFound(letter_id)
    base, state = yield from _read_states(letter)
    return LetterDetail(
        letter=letter,
        input=inputs[0]["input"] if inputs else None,
        attempts=tuple(_attempt_of(row) for row in reversed(attempts)),
        actions=tuple(Action(row["at"], row["by"], row["action"], row["facts"]) for row in reversed(actions)),
        state=state,
        diff=() if state is None else tuple(changes(base or {}, state)),
        held_lane=_lane_of(lanes[0]) if lanes else None,
        preview=preview_of(stands[0], "auto"),
    )


def _read_states(letter: DeadLetter) -> Plan[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """The values before the run's input and where it failed; None where there is no checkpoint."""
    if letter.tenant is None or letter.thread_id is None or letter.checkpoint_id is None:
        return None, None
    names = [name for name in (letter.base_checkpoint_id, letter.checkpoint_id) if name is not None]
    steps = [
        # Row-level security shows the checkpoints of a thread to its tenant's transaction only.
        Step(bind_tenant(), {"tenant": letter.tenant}),
        Step(_STATES, {"key": thread_key(letter.tenant, letter.thread_id), "names": names}),
    ]
    _, rows = yield Batch(steps)
    values = {row["checkpoint_id"]: values_of(row) for row in rows}
    base = None if letter.base_checkpoint_id is None else values.get(letter.base_checkpoint_id)
    return base, values.get(letter.checkpoint_id)


def _attempt_of(row: Row) -> AttemptRecord:
    worker = None if row["worker_id"] is None else str(row["worker_id"])
    return AttemptRecord(**{**row, "worker_id": worker})


def changes(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """How two JSON values differ, by the innermost places that do.

    A list that begins as it did before has its other items added or removed at their indexes; any other list
    that differs is a change as a whole, as which item became which is not known.
    """
    if _same(before, after):
        return
    match before, after:
        case dict(), dict():
            for name in dict.fromkeys((*before, *after)):
                yield from _change_at(before, after, name, f"{path}/{_escape(name)}")
        case list(), list() if _same(before, after[: len(before)]):
            for index in range(len(before), len(after)):
                yield Change(f"{path}/{index}", "added", after=after[index])
        case list(), list() if _same(after, before[: len(after)]):
            for index in range(len(after), len(before)):
                yield Change(f"{path}/{index}", "removed", before=before[index])
        case _:
            yield Change(path, "changed", before, after)


def _same(one: Any, other: Any) -> bool:
    """Whether they are the same JSON; to Python, true is 1."""
    return one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _change_at(before: dict[str, Any], after: dict[str, Any], name: str, path: str) -> Iterator[Change]:
    if name not in before:
        yield Change(path, "added", after=after[name])
    elif name not in after:
        yield Change(path, "removed", before=before[name])
    else:
        yield from changes(before[name], after[name], path)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def list_held_lanes(
    *, tenant: str | None = None, limit: int = 100, after: str | None = None
) -> Plan[list[HeldLane]]:
    """A page of the lanes that are held, in the order of their letters' ids, the newest first.

    after: the letter_id of the last one of the page before. Raises InvalidOption.
    """
    check_page(limit, after)
    query = _LANES.order_by(_held.c.letter_id.desc()).limit(limit)
    if tenant is not None:
        query = query.where(_held.c.tenant == check_tenant(tenant))
    if after is not None:
        query = query.where(_held.c.letter_id < uuid.UUID(after))
    (rows,) = yield Batch([Step(query, {})])
    return [_lane_of(row) for row in rows]


def _lane_of(row: Row) -> HeldLane:
    return HeldLane(**{**row, "letter_id": str(row["letter_id"])})
