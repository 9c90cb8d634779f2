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

# `words` is for Postgres to search in.
LETTER_COLUMNS = tuple(column for column in _letters.c if column.name != "words")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The record of a run that failed for good, at one moment.

    A message that could not be delivered has no run, tenant, thread, seq or graph.

    seq: the run's place on its thread. exceptions: the chain, the one raised first, each {"type", "module",
    "message", "link", "frames"}. next_nodes: what the graph was about to run. base_checkpoint_id: where the
    thread stood before the run's input; None for its beginning. checkpoint_id: where the run failed; None
    where its input was not even applied. original_input: of the run, where it was edited since. replay_mode,
    replay_why: what was chosen last, and why. next_replay_at: when the replay worker takes it up; None for
    one that waits for a person.
    """

    id: str
    run_id: str | None
    tenant: str | None
    thread_id: str | None
    seq: int | None
    graph: str | None
    graph_version: str | None
    topology_hash: str | None
    versions: dict[str, Any]
    reason: str
    error: RunError
    exception_type: str | None
    exceptions: tuple[dict[str, Any], ...]
    traceback: str | None
    node: str | None
    task: str | None
    next_nodes: tuple[str, ...]
    base_checkpoint_id: str | None
    checkpoint_id: str | None
    fingerprint: str
    original_input: Any
    replays: int
    replay_mode: str | None
    replay_why: str | None
    replayed_at: datetime.datetime | None
    status: str
    next_replay_at: datetime.datetime | None
    created_at: datetime.datetime
    updated_at: datetime.datetime

    def to_dict(self) -> dict[str, Any]:
        """The dead letter as JSON values, without what is long: traceback, chain and original input."""
        return {
            "id": self.id,
            "run_id": self.run_id,
            "tenant": self.tenant,
            "thread_id": self.thread_id,
            "seq": self.seq,
            "graph": self.graph,
            "graph_version": self.graph_version,
            "topology_hash": self.topology_hash,
            "versions": self.versions,
            "reason": self.reason,
            "error": {"type": self.error.type, "message": self.error.message, "node": self.error.node},
            "exception_type": self.exception_type,
            "node": self.node,
            "task": self.task,
            "next_nodes": list(self.next_nodes),
            "base_checkpoint_id": self.base_checkpoint_id,
            "checkpoint_id": self.checkpoint_id,
            "fingerprint": self.fingerprint,
            "replays": self.replays,
            "replay_mode": self.replay_mode,
            "replay_why": self.replay_why,
            "replayed_at": timestamp(self.replayed_at),
            "status": self.status,
            "next_replay_at": timestamp(self.next_replay_at),
            "created_at": timestamp(self.created_at),
            "updated_at": timestamp(self.updated_at),
        }


def letter_of(row: Row) -> DeadLetter:
    """The dead letter of a row with LETTER_COLUMNS."""
    error = row["error"]
    return DeadLetter(
        id=str(row["id"]),
        run_id=None if row["run_id"] is None else str(row["run_id"]),
        tenant=row["tenant"],
        thread_id=row["thread_id"],
        seq=row["seq"],
        graph=row["graph"],
        graph_version=row["graph_version"],
        topology_hash=row["topology_hash"],
        versions=row["versions"],
        reason=row["reason"],
        error=RunError(error.get("type", ""), error.get("message", ""), error.get("node")),
        exception_type=row["exception_type"],
        exceptions=tuple(row["exceptions"]),
        traceback=row["traceback"],
        node=row["node"],
        task=row["task"],
        next_nodes=tuple(row["next_nodes"] or ()),
        base_checkpoint_id=row["base_checkpoint_id"],
        checkpoint_id=row["checkpoint_id"],
        fingerprint=row["fingerprint"],
        original_input=row["original_input"],
        replays=row["replays"],
        replay_mode=row["replay_mode"],
        replay_why=row["replay_why"],
        replayed_at=row["replayed_at"],
        status=row["status"],
        next_replay_at=row["next_replay_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
