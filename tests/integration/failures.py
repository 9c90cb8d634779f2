"""Dead letters as the ledger has them after a failure, written without a worker; and a look at every row."""

from __future__ import annotations

import json
import uuid
from typing import Any

from uuid_utils.compat import uuid7

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "style": {"type": "object"}},
    "required": ["question"],
}
TABLES = (
    "threads", "runs", "attempts", "dead_letters", "held_lanes", "dead_letter_actions", "replay_groups",
    "replay_pauses", "replay_rates", "replay_jobs", "graphs",
)  # fmt: skip


class Failures:
    """Writes what failed, and plays the workers that run it again."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin

    def announce(self, graph: str = "chat", nodes: tuple[str, ...] = ("think", "answer")) -> None:
        """Has the graph served, anew."""
        values = {
            "name": graph,
            "version": f"v-{'-'.join(nodes)}",
            "topology_hash": "-".join(nodes),
            "input_schema": json.dumps(SCHEMA),
            "channels": ["question", "style", "answer"],
            "nodes": list(nodes),
            "policy": "{}",
        }
        self._admin.execute("delete from graphs where name = %s", [graph])
        self._insert("graphs", values)

    def fail(self, thread_id: str = "t", *, tenant: str = "acme", hold: bool = False, **letter: Any) -> str:
        """The id of a new dead letter, waiting for a person unless `letter` says otherwise."""
        key, run_id, graph = uuid7(), uuid7(), letter.get("graph", "chat")
        seq = self._next_seq(tenant, thread_id)
        place = {"tenant": tenant, "thread_id": thread_id, "seq": seq}
        self._insert(
            "runs",
            {
                "id": run_id,
                **place,
                "graph": graph,
                "status": "error",
                "attempt": 3,
                "input": json.dumps({"question": "why?", "style": {"tone": "dry", "length": 3}}),
                "error": json.dumps({"type": "ValueError", "message": "no"}),
                **dict.fromkeys(("started_at", "finished_at"), "2026-01-02T03:04:05.678901Z"),
            },
        )
        self._insert(
            "dead_letters",
            {
                "id": key,
                "run_id": run_id,
                **place,
                "graph": graph,
                "reason": "exhausted",
                "error": json.dumps({"type": "ValueError", "message": "no"}),
                "exception_type": "ValueError",
                "node": "answer",
                "fingerprint": f"{graph}-answer",
                **letter,
            },
        )
        if hold:
            self._insert("held_lanes", {**place, "letter_id": key})
        return str(key)

    def attempt(self, letter_id: str, number: int = 1) -> None:
        """An attempt of the dead letter's run."""
        self._admin.execute(
            "insert into attempts (run_id, attempt, tenant, outcome, exception_type, message, started_at)"
            " select run_id, %s, tenant, 'failed', 'ValueError', 'no', now() from dead_letters where id = %s",
            [number, letter_id],
        )

    def follow(self, thread_id: str = "t", *, tenant: str = "acme", started: bool = False) -> uuid.UUID:
        """A run behind those that failed: pending, or done."""
        run_id = uuid7()
        self._insert(
            "runs",
            {
                "id": run_id,
                "tenant": tenant,
                "thread_id": thread_id,
                "seq": self._next_seq(tenant, thread_id),
                "graph": "chat",
                "status": "success" if started else "pending",
                "started_at": "now" if started else None,
                "finished_at": "now" if started else None,
            },
        )
        return run_id

    def undeliverable(self) -> str:
        """A message that could not be delivered: it has no run."""
        key = uuid7()
        self._insert(
            "dead_letters",
            {"id": key, "reason": "undeliverable", "status": "parked", "error": "{}", "fingerprint": "odd"},
        )
        return str(key)

    def succeed(self, letter_id: str | None = None) -> int:
        """What a worker does that runs what is being replayed, of one letter or of all; how many it were."""
        return int(
            self._admin.execute(
                "with letter as (update dead_letters set status = 'resolved', updated_at = now()"
                " where status = 'replaying' and (%s::uuid is null or id = %s::uuid) returning run_id)"
                " update runs set status = 'success', finished_at = now() from letter where id = run_id",
                [letter_id, letter_id],
            ).rowcount
        )

    def column(self, letter_id: str, name: str) -> Any:
        """A column of the dead letter."""
        row = self._admin.execute(
            f"select {name} as value from dead_letters where id = %s",
            [letter_id],
        ).fetchone()
        return row[0]

    def run_of(self, letter_id: str, name: str) -> Any:
        """A column of the dead letter's run."""
        row = self._admin.execute(
            f"select runs.{name} from runs join dead_letters as d on run_id = runs.id where d.id = %s",
            [letter_id],
        ).fetchone()
        return row[0]

    def actions(self, letter_id: str | None = None) -> list[tuple[str, str, dict[str, Any]]]:
        """What was done about the dead letter, or about several: action, by, facts."""
        return [
            tuple(row)
            for row in self._admin.execute(
                "select action, by, facts from dead_letter_actions"
                " where letter_id is not distinct from %s::uuid order by id",
                [letter_id],
            ).fetchall()
        ]

    def everything(self) -> dict[str, Any]:
        """A checksum of each table's rows."""
        return {
            table: self._admin.execute(
                f"select count(*), md5(string_agg(row::text, ',' order by row::text)) from {table} as row"
            ).fetchone()
            for table in TABLES
        }

    def _next_seq(self, tenant: str, thread_id: str) -> int:
        row = self._admin.execute(
            "insert into threads (tenant, thread_id, status, last_seq) values (%s, %s, 'error', 1)"
            " on conflict (tenant, thread_id) do update set last_seq = threads.last_seq + 1"
            " returning last_seq",
            [tenant, thread_id],
        ).fetchone()
        return int(row[0])

    def _insert(self, table: str, values: dict[str, Any]) -> None:
        columns = ", ".join(f'"{name}"' for name in values)
        places = ", ".join(["%s"] * len(values))
        self._admin.execute(
            f"insert into {table} ({columns}) values ({places})",
            list(values.values()),
        )
