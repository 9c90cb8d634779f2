"""What one of the doctor's checks found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import psycopg
from psycopg.rows import DictRow

Connection = psycopg.Connection[DictRow]
Status = Literal["ok", "warn", "fail"]

SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """What one check found. advice: what to do about it; None where nothing is to be done."""

    name: str
    status: Status
    detail: str
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)


def one_row(connection: Connection, query: str, *values: object) -> DictRow:
    """The row of a query that always gives one."""
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
