"""What a replay of a dead letter would do, without doing it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY, UUID
from sqlalchemy.sql import Executable

from threadmill.core.errors import DeadLetterNotFound, InvalidOption
from threadmill.core.models import REPLAY_MODES, Graph, Run, table_of
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import auto_mode, failed_node_is_gone, thread_has_moved

MODES = ("auto", *REPLAY_MODES)
REPLAYABLE = ("waiting", "parked")

_letters, _runs, _graphs = table_of(DeadLetterRow), table_of(Run), table_of(Graph)


@dataclass(frozen=True, slots=True)
class Preview:
    """What `Desk.replay` would do now.

    mode: resume, restart or append, or scratch where that was asked for. why: what it is chosen for.
    refusal: None, or in words why it would be refused. checkpoint_id: where the run would go on from; None
    for the beginning of the thread, and with append, which goes on from the thread's head of that moment.
    """

    mode: str
    why: str
    refusal: str | None
    checkpoint_id: str | None

    def to_dict(self) -> dict[str, Any]:
        """The preview as JSON values."""
        return {
            "mode": self.mode,
            "why": self.why,
            "refusal": self.refusal,
            "checkpoint_id": self.checkpoint_id,
        }


def parse_letter_id(letter_id: str) -> uuid.UUID:
    """The id as a UUID. Raises DeadLetterNotFound for what is none, as no dead letter has it."""
    try:
        return uuid.UUID(letter_id)
    except (ValueError, AttributeError, TypeError):
        raise DeadLetterNotFound(str(letter_id)) from None


def check_mode(mode: str, modes: tuple[str, ...] = MODES) -> str:
    """The mode, if a replay has it. Raises InvalidOption."""
    if mode not in modes:
        raise InvalidOption("mode", mode, f"must be one of {', '.join(modes)}")
    return mode


def _standing(which: ColumnElement[bool]) -> Executable:
    mode, why = auto_mode()
    return (
        select(
            _letters.c.id,
            _letters.c.status,
            _letters.c.tenant,
            _letters.c.thread_id,
            _letters.c.graph,
            _letters.c.node,
            _letters.c.run_id,
            _letters.c.checkpoint_id,
            _letters.c.base_checkpoint_id,
            _runs.c.status.label("run_status"),
            _runs.c.command.is_not(None).label("commanded"),
            _graphs.c.channels,
            thread_has_moved().label("moved"),
            failed_node_is_gone().label("gone"),
            mode.label("auto_mode"),
            why.label("auto_why"),
        )
        .select_from(
            _letters.outerjoin(_runs, _runs.c.id == _letters.c.run_id).outerjoin(
                _graphs, _graphs.c.name == _letters.c.graph
            )
        )
        .where(which)
    )


@cache
def standing() -> Executable:
    """How a dead letter stands, for `preview_of`. Parameter: letter_id."""
    return _standing(_letters.c.id == bindparam("letter_id", type_=UUID(as_uuid=True)))


@cache
def standings() -> Executable:
    """How several stand. Parameter: letter_ids."""
    return _standing(_letters.c.id == func.any(bindparam("letter_ids", type_=ARRAY(UUID(as_uuid=True)))))


def preview_of(row: Row, mode: str) -> Preview:
    """The preview of a row of `standing`."""
    if mode == "auto":
        chosen, why = row["auto_mode"], row["auto_why"]
    else:
        chosen, why = mode, "as asked"
    from_checkpoint = {"resume": row["checkpoint_id"], "restart": row["base_checkpoint_id"]}
    return Preview(chosen, why, _refusal(row, chosen), from_checkpoint.get(chosen))


def _refusal(row: Row, mode: str) -> str | None:
    if row["status"] not in REPLAYABLE and mode != "scratch":
        return f"it is {row['status']}; only waiting and parked ones can be replayed"
    if row["run_id"] is None:
        return "its message could not be delivered, so there is no run to give back"
    if row["run_status"] not in ("error", "timeout") and mode != "scratch":
        return f"its run is {row['run_status']}"
    if mode == "resume" and row["moved"]:
        return "the thread has moved on since, so the run cannot go on where it failed; append or restart it"
    # LangGraph would find nothing left to do, and call that a success.
    if mode == "resume" and row["gone"]:
        return f"the graph has no node {row['node']} any more; restart or append it"
    return None


def preview_letter(letter_id: str, mode: str) -> Plan[Preview]:
    """The plan of `Desk.preview`."""
    check_mode(mode, (*MODES, "scratch"))
    (rows,) = yield Batch([Step(standing(), {"letter_id": parse_letter_id(letter_id)})])
    if not rows:
        raise DeadLetterNotFound(letter_id)
    return preview_of(rows[0], mode)
