"""A run as its producer sees it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from threadmill.core.models import TERMINAL_STATUSES
from threadmill.core.statement import Row


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run did not succeed. node: where; None if it failed outside any node."""

    type: str
    message: str
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One row of the ledger at one moment.

    output: the graph's output as JSON, once the run is a success; None also after `output_ttl`. Where it was
    larger than `max_output_bytes`, a marker {"$omitted": {"reason", "bytes", "limit"}}; `state` has it all.
    """

    id: str
    tenant: str
    thread_id: str
    graph: str
    status: str
    seq: int
    attempt: int
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    output: Any
    error: RunError | None
    metadata: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether the run has its terminal status."""
        return self.status in TERMINAL_STATUSES

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON values: ids and times as strings."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "thread_id": self.thread_id,
            "graph": self.graph,
            "status": self.status,
            "seq": self.seq,
            "attempt": self.attempt,
            "created_at": timestamp(self.created_at),
            "started_at": timestamp(self.started_at),
            "finished_at": timestamp(self.finished_at),
            "output": self.output,
            "error": (
                {"type": self.error.type, "message": self.error.message, "node": self.error.node}
                if self.error
                else None
            ),
            "metadata": self.metadata,
        }


def timestamp(moment: datetime.datetime | None) -> str | None:
    """ISO 8601 in UTC."""
    return None if moment is None else moment.astimezone(datetime.UTC).isoformat()


def run_of(row: Row) -> Run:
    """The run of a row with the columns of `transitions.RUN_COLUMNS`."""
    error = row["error"]
    return Run(
        id=str(row["id"]),
        tenant=row["tenant"],
        thread_id=row["thread_id"],
        graph=row["graph"],
        status=row["status"],
        seq=row["seq"],
        attempt=row["attempt"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        output=row["output"],
        error=RunError(error.get("type", ""), error.get("message", ""), error.get("node")) if error else None,
        metadata=row["metadata"] or {},
    )
