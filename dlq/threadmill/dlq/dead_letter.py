"""A dead letter as people and programs see it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.models import table_of
from threadmill.core.statement import Row
from threadmill.producers.run import RunError, timestamp

_letters = table_of(DeadLetterRow)

LETTER_COLUMNS = (
    _letters.c.id,
    _letters.c.run_id,
    _letters.c.tenant,
    _letters.c.thread_id,
    _letters.c.graph,
    _letters.c.reason,
    _letters.c.error,
    _letters.c.traceback,
    _letters.c.node,
    _letters.c.checkpoint_id,
    _letters.c.fingerprint,
    _letters.c.replays,
    _letters.c.replay_mode,
    _letters.c.status,
    _letters.c.next_replay_at,
    _letters.c.notes,
    _letters.c.created_at,
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The record of a run that failed for good, at one moment.

    next_replay_at: when the replay worker takes it up; None until that has scheduled it, and for one that
    waits for a person. notes: what was done to it, [{"at", "action", "by", …}, …].
    """

    id: str
    run_id: str
    tenant: str
    thread_id: str
    graph: str
    reason: str
    error: RunError
    traceback: str | None
    node: str | None
    checkpoint_id: str | None
    fingerprint: str
    replays: int
    replay_mode: str | None
    status: str
    next_replay_at: datetime.datetime | None
    notes: tuple[dict[str, Any], ...]
    created_at: datetime.datetime

    def to_dict(self) -> dict[str, Any]:
        """The dead letter as JSON values, without its traceback and notes."""
        return {
            "id": self.id,
            "run_id": self.run_id,
            "tenant": self.tenant,
            "thread_id": self.thread_id,
            "graph": self.graph,
            "reason": self.reason,
            "error": {"type": self.error.type, "message": self.error.message, "node": self.error.node},
            "node": self.node,
            "checkpoint_id": self.checkpoint_id,
            "replays": self.replays,
            "status": self.status,
            "next_replay_at": timestamp(self.next_replay_at),
            "created_at": timestamp(self.created_at),
        }


def letter_of(row: Row) -> DeadLetter:
    """The dead letter of a row with LETTER_COLUMNS."""
    error = row["error"]
    return DeadLetter(
        id=str(row["id"]),
        run_id=str(row["run_id"]),
        tenant=row["tenant"],
        thread_id=row["thread_id"],
        graph=row["graph"],
        reason=row["reason"],
        error=RunError(error["type"], error["message"], error.get("node")),
        traceback=row["traceback"],
        node=row["node"],
        checkpoint_id=row["checkpoint_id"],
        fingerprint=row["fingerprint"],
        replays=row["replays"],
        replay_mode=row["replay_mode"],
        status=row["status"],
        next_replay_at=row["next_replay_at"],
        notes=tuple(row["notes"]),
        created_at=row["created_at"],
    )
