"""What is done with one dead letter, each as a plan under the lock of its thread."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import UUID

from threadmill.core.document import to_json
from threadmill.core.doorbell import Bell, bell_of, next_bell
from threadmill.core.errors import DeadLetterNotFound, InvalidOption, NotReplayable
from threadmill.core.keys import thread_key
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.models import DeadLetterAction, table_of
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    borrow_tenant,
    discard,
    fork_thread,
    lock_thread,
    park,
    record_action,
    replay,
    restore,
)
from threadmill.dlq.dead_letter import LETTER_COLUMNS, DeadLetter, letter_of
from threadmill.dlq.preview import check_mode, parse_letter_id, preview_of, standing

MAX_NOTE = 10_000
# Of runs that are given back together so many are rung for; workers that are awake find the others.
MAX_WAKING = 8

_letters = table_of(DeadLetterRow)
_actions = table_of(DeadLetterAction)
_ID = bindparam("letter_id", type_=UUID(as_uuid=True))
_BY_ID = select(*LETTER_COLUMNS).where(_letters.c.id == _ID)
_PLACE = select(_letters.c.id, _letters.c.tenant, _letters.c.thread_id).where(_letters.c.id == _ID)
_LAST_ACTION = (
    select(_actions.c.action, _actions.c.by)
    .where(_actions.c.letter_id == _ID)
    .order_by(_actions.c.id.desc())
    .limit(1)
)


class Act(NamedTuple):
    """Who acts on which dead letter. tenant: to whom the one who acts is bound; None for nobody."""

    letter_id: str
    by: str
    tenant: str | None = None


class Done(NamedTuple):
    """The dead letter as it stands now, and the bells to ring once that is committed."""

    letter: DeadLetter
    bells: list[Bell]


def replay_letter(act: Act, mode: str = "auto") -> Plan[Done]:
    """Gives the dead letter's run back as pending. Raises DeadLetterNotFound and NotReplayable."""
    check_mode(mode)
    row = yield from stand_under_lock(act)
    return (yield from replay_standing(act, row, mode))


def replay_standing(act: Act, row: Row, mode: str, state_patch: Any = None) -> Plan[Done]:
    """`replay_letter` where the thread is locked. row: of `stand_under_lock`."""
    preview = preview_of(row, mode)
    if preview.refusal is not None:
        raise (yield from refused(act, row["status"], preview.refusal))
    replayed = yield from replay_locked([row], mode, act.by, state_patch=state_patch)
    (after,) = yield Batch([Step(_BY_ID, {"letter_id": row["id"]})])
    letter = letter_of(after[0])
    if not replayed or (state_patch is not None and letter.replay_mode != preview.mode):
        raise NotReplayable(letter.id, letter.status, "its graph was announced anew meanwhile; try again")
    return Done(letter, list(replayed.values()))


def replay_locked(
    rows: Sequence[Row],
    mode: str,
    by: str,
    *,
    state_patch: Any = None,
    job: str | None = None,
    ahead: Sequence[Step] = (),
) -> Plan[dict[uuid.UUID, Bell]]:
    """Replays letters whose threads are locked. Returns the bells, by letter, of those that could be.

    rows: with each letter's id, tenant and thread_id, those of one thread in their order. mode: as asked.
    job: for which it is done. ahead: statements to be sent before, of which nothing is wanted.
    """
    facts = {} if job is None else {"job": job}
    how = {"mode": mode, "state_patch": state_patch, "by": by, "facts": facts}
    replays = [Step(replay(), {"letter_ids": ids, **how}) for ids in _one_of_each_thread(rows)]
    results = yield Batch([*ahead, *replays], final=False)
    replayed = {row["letter_id"]: row for found in results[len(ahead) :] for row in found}
    forks = []
    for row in rows:
        if row["id"] in replayed and replayed[row["id"]]["replay_mode"] != "resume":
            key = thread_key(row["tenant"], row["thread_id"])
            # Row-level security shows the checkpoints of a thread to its tenant's transaction only.
            forks += [
                Step(borrow_tenant(), {"tenant": row["tenant"]}),
                Step(fork_thread(), {"letter_id": row["id"], "key": key}),
            ]
    if forks:
        yield Batch(forks, final=False)
    return {letter_id: bell_of(row) for letter_id, row in replayed.items()}


def _one_of_each_thread(rows: Sequence[Row]) -> list[list[uuid.UUID]]:
    """The letters in as few lots as have none of the same thread."""
    lots: list[list[uuid.UUID]] = []
    count: Counter[tuple[str, str]] = Counter()
    for row in rows:
        thread = row["tenant"], row["thread_id"]
        if count[thread] == len(lots):
            lots.append([])
        lots[count[thread]].append(row["id"])
        count[thread] += 1
    return lots


def waking(bells: Collection[Bell]) -> list[Bell]:
    """Those to be rung of runs that many will find: enough to wake who sleeps, and what nobody may take."""
    alone = [bell for bell in bells if bell.alone]
    return alone + [bell for bell in bells if not bell.alone][:MAX_WAKING]


def discard_letter(act: Act, reason: str | None = None) -> Plan[Done]:
    """Gives the dead letter up; its lane goes on. Raises DeadLetterNotFound and NotReplayable."""
    changed, letter = yield from _change(
        act, Step(discard(), {}), reason, "only waiting and parked ones can be discarded"
    )
    bell = next_bell(changed[0])
    return Done(letter, [bell] if bell else [])


def restore_letter(act: Act, reason: str | None = None) -> Plan[Done]:
    """Parks a discarded dead letter. Raises DeadLetterNotFound and NotReplayable."""
    _, letter = yield from _change(act, Step(restore(), {}), reason, "only discarded ones can be restored")
    return Done(letter, [])


def park_letter(act: Act, reason: str | None = None) -> Plan[Done]:
    """Leaves a waiting dead letter to a person. Raises DeadLetterNotFound and NotReplayable."""
    _, letter = yield from _change(act, Step(park(), {}), reason, "only waiting ones can be parked")
    return Done(letter, [])


def note_letter(act: Act, text: str) -> Plan[None]:
    """Writes a note beside what was done. Raises DeadLetterNotFound and InvalidOption."""
    check_text("note", text)
    row = yield from _place(act)
    parameters = {"letter_id": row["id"], "tenant": row["tenant"], "by": act.by, "action": "note"}
    yield Batch([Step(record_action(), {**parameters, "facts": {"text": text}})])


def check_text(option: str, value: str) -> str:
    """The text, if it can be kept beside a dead letter. Raises InvalidOption and InvalidInput."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidOption(option, value, "must be some text")
    if len(value) > MAX_NOTE:
        raise InvalidOption(option, "…", f"is longer than {MAX_NOTE} characters")
    to_json(option, value)  # NUL and lone surrogates are no text
    return value


def read_letter(letter_id: uuid.UUID) -> Plan[DeadLetter]:
    """The dead letter as it stands."""
    (rows,) = yield Batch([Step(_BY_ID, {"letter_id": letter_id})])
    return letter_of(rows[0])


def stand_under_lock(act: Act) -> Plan[Row]:
    """How the dead letter stands, once its thread is locked. Raises DeadLetterNotFound."""
    place = yield from _place(act)
    steps = [*_lock(place), Step(standing(), {"letter_id": place["id"]})]
    rows = (yield Batch(steps, final=False))[-1]
    if not rows:  # its time was over meanwhile
        raise DeadLetterNotFound(act.letter_id)
    return rows[0]


def refused(act: Act, status: str, reason: str) -> Plan[NotReplayable]:
    """The error for whom came too late: what the dead letter is now, and who acted on it last."""
    key = parse_letter_id(act.letter_id)
    (rows,) = yield Batch([Step(_LAST_ACTION, {"letter_id": key})], final=False)
    if rows:
        reason += f" (last: {rows[0]['action']} by {rows[0]['by']})"
    return NotReplayable(str(key), status, reason.removeprefix(f"it is {status}; "))


def _place(act: Act) -> Plan[Row]:
    key = parse_letter_id(act.letter_id)
    (rows,) = yield Batch([Step(_PLACE, {"letter_id": key})], final=False)
    if not rows or act.tenant not in (None, rows[0]["tenant"]):
        raise DeadLetterNotFound(act.letter_id)
    return rows[0]


def _lock(place: Row) -> list[Step]:
    """Takes the lane; what could not be delivered has none."""
    if place["tenant"] is None:
        return []
    return [Step(lock_thread(), {"tenant": place["tenant"], "thread_id": place["thread_id"]})]


def _change(act: Act, step: Step, reason: str | None, possible: str) -> Plan[tuple[Rows, DeadLetter]]:
    """Applies a transition under the lock of the dead letter's thread."""
    facts: Mapping[str, Any] = {} if reason is None else {"reason": check_text("reason", reason)}
    place = yield from _place(act)
    letter_id = {"letter_id": place["id"]}
    *_, changed, after = yield Batch(
        [
            *_lock(place),
            Step(step.statement, {**letter_id, "by": act.by, "facts": facts}),
            Step(_BY_ID, letter_id),
        ]
    )
    letter = letter_of(after[0])
    if not changed:
        raise (yield from refused(act, letter.status, possible))
    return changed, letter
