"""What a replay would come to, tried on a copy of the thread that nobody keeps.

A worker runs the graph in earnest on a copy in its memory (`threadmill.workers.scratch`); checkpoints, items
of the store, the thread, the dead letter and its group stay as they are. What nodes do elsewhere is done.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import UUID
from uuid_utils.compat import uuid7

from threadmill.core.doorbell import Bell, bell_of
from threadmill.core.errors import DeadLetterNotFound, InvalidOption, NotReplayable
from threadmill.core.models import Run, table_of
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import begin_trial, record_action, remove_trial, remove_trial_thread
from threadmill.dlq.detail import Change, changes
from threadmill.dlq.editing import Edit, Editor, keys_of, state_patch_of
from threadmill.dlq.preview import check_mode, parse_letter_id, standing
from threadmill.dlq.replaying import Act
from threadmill.producers.run import RunError

# How often is looked whether it is done; the worker's word is waited for so much longer than its time limit.
LOOK_INTERVAL = 0.05
GRACE = 3.0
MAX_TIMEOUT = 3600.0

_runs = table_of(Run)
_STANDING = select(_runs.c.status, _runs.c.output).where(
    _runs.c.id == bindparam("run_id", type_=UUID(as_uuid=True))
)


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial came out.

    status: success, interrupted (the graph asks something), error or timeout. output, error, interrupts: as
    of a run. nodes: those that ran, in the order in which they began. diff: how the thread's state would
    differ from what it is now. mode, why: as a replay would choose them. seconds: how long it took.
    """

    status: str
    mode: str
    why: str
    seconds: float
    output: Any = None
    error: RunError | None = None
    interrupts: list[Any] | None = None
    nodes: list[str] = field(default_factory=list)
    diff: list[Change] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The trial as JSON values."""
        error = self.error
        return {
            "status": self.status,
            "mode": self.mode,
            "why": self.why,
            "seconds": self.seconds,
            "output": self.output,
            "error": ({"type": error.type, "message": error.message, "node": error.node} if error else None),
            "interrupts": self.interrupts,
            "nodes": self.nodes,
            "diff": [change.to_dict() for change in self.diff],
        }


class _Begun(NamedTuple):
    """A trial that a worker may take. place: tenant and thread_id of its own."""

    run_id: uuid.UUID
    letter_id: uuid.UUID
    mode: str
    why: str
    place: dict[str, str]
    bell: Bell


def run_trial(
    carry_out: Callable[[Plan[Any]], Any],
    ring: Callable[[list[Bell]], object],
    editor: Editor,
    act: Act,
    edit: Edit,
    *,
    mode: str = "auto",
    timeout: float = 60,
) -> Trial:
    """Tries the dead letter's run, and waits for it, up to `timeout` seconds and a little more.

    edit: as for a replay; nothing of it is kept. Raises DeadLetterNotFound, NotReplayable, InvalidOption,
    InvalidInput and UnknownGraph.
    """
    if not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidOption("timeout", timeout, f"must be more than 0 and at most {MAX_TIMEOUT:g} seconds")
    edit = edit.checked(editor.max_bytes)
    started = time.monotonic()
    trial: Trial | None = None
    begun: _Begun = carry_out(_begin(editor, act, edit, check_mode(mode), timeout))
    try:
        ring([begun.bell])
        document = _wait(carry_out, begun, started + timeout + GRACE)
        trial = _trial(begun, document, round(time.monotonic() - started, 3))
        return trial
    finally:
        status = "given up" if trial is None else trial.status
        facts = {"mode": begun.mode, "status": status} | ({"keys": keys_of(edit)} if edit else {})
        carry_out(_remove(begun, act, facts))


def _begin(editor: Editor, act: Act, edit: Edit, mode: str, timeout: float) -> Plan[_Begun]:
    letter_id = parse_letter_id(act.letter_id)
    (rows,) = yield Batch([Step(standing(), {"letter_id": letter_id})], final=False)
    if not rows or act.tenant not in (None, rows[0]["tenant"]):
        raise DeadLetterNotFound(act.letter_id)
    row = rows[0]
    chosen, why = (row["auto_mode"], row["auto_why"]) if mode == "auto" else (mode, "as asked")
    _check(row, chosen)
    given = state_patch = None
    if edit and chosen == "resume":
        state_patch = state_patch_of(row, edit)
    elif edit:
        given = yield from editor.edited_input(row, edit)
    run_id = uuid7()
    place = {"tenant": row["tenant"], "thread_id": f"scratch-{run_id}"}
    parameters = {
        "letter_id": letter_id,
        "run_id": run_id,
        "thread_id": place["thread_id"],
        "mode": chosen,
        "edited": bool(edit) and chosen != "resume",
        "input": given,
        "state_patch": state_patch,
        "metadata": {"timeout": timeout},
    }
    (bells,) = yield Batch([Step(begin_trial(), parameters)])
    return _Begun(run_id, letter_id, chosen, why, place, bell_of(bells[0]))


def _check(row: Row, mode: str) -> None:
    """Raises NotReplayable where there is nothing to try. The letter's status does not matter."""
    if row["run_id"] is None:
        reason = "its message could not be delivered, so there is no run to try"
    elif mode == "resume" and row["gone"]:
        reason = f"the graph has no node {row['node']} any more; try restart or append"
    else:
        return
    raise NotReplayable(str(row["id"]), row["status"], reason)


def _wait(carry_out: Callable[[Plan[Any]], Any], begun: _Begun, ends_at: float) -> dict[str, Any]:
    """What the worker tells, or that none told anything."""
    status = "pending"
    while time.monotonic() < ends_at:
        rows: Rows = carry_out(_look(begun.run_id))
        if not rows:
            status = "removed"
            break
        status = rows[0]["status"]
        if status == "success":
            document: dict[str, Any] = rows[0]["output"]
            return document
        if status not in ("pending", "running"):  # somebody cancelled it
            break
        time.sleep(LOOK_INTERVAL)
    reasons = {
        "pending": "no worker took it: none serves the graph, all are busy, or its tenant or graph is paused",
        "running": "the worker did not answer in time",
    }
    message = reasons.get(status, f"it was {status}")
    return {"status": "timeout", "error": {"type": "TrialTimeout", "message": message, "node": None}}


def _look(run_id: uuid.UUID) -> Plan[Rows]:
    (rows,) = yield Batch([Step(_STANDING, {"run_id": run_id})])
    return rows


def _trial(begun: _Begun, document: dict[str, Any], seconds: float) -> Trial:
    error, before, after = (document.get(name) for name in ("error", "before", "after"))
    return Trial(
        status=document["status"],
        mode=begun.mode,
        why=begun.why,
        seconds=seconds,
        output=document.get("output"),
        error=RunError(error["type"], error["message"], error.get("node")) if error else None,
        interrupts=document.get("interrupts"),
        nodes=document.get("nodes") or [],
        diff=[] if after is None else list(changes(before or {}, after)),
    )


def _remove(begun: _Begun, act: Act, facts: dict[str, Any]) -> Plan[None]:
    """The trial and its thread go in the transaction that records that there was one."""
    record = {"letter_id": begun.letter_id, "tenant": begun.place["tenant"], "by": act.by}
    yield Batch(
        [
            Step(remove_trial(), {"run_id": begun.run_id}),
            Step(remove_trial_thread(), begun.place),
            Step(record_action(), {**record, "action": "scratch", "facts": facts}),
        ]
    )
