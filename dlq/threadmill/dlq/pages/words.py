"""How the pages put things: times, counts, JSON values and statuses. Nothing here is markup."""

from __future__ import annotations

import datetime
import json
from typing import Any

# Bootstrap's colours, as Flower uses them for the states of its tasks.
_COLOURS = {
    "pending": "secondary",
    "running": "primary",
    "success": "success",
    "error": "danger",
    "timeout": "danger",
    "interrupted": "warning",
    "waiting": "warning",
    "replaying": "primary",
    "resolved": "success",
    "parked": "danger",
    "discarded": "secondary",
    "failed": "danger",
    "lost": "danger",
    "drained": "info",
    "fenced": "warning",
    "cancelled": "warning",
    "stopped": "warning",
    "done": "success",
}
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def colour(status: str | None) -> str:
    """Bootstrap's name of a status's colour."""
    return _COLOURS.get(status or "", "secondary")


def iso(moment: datetime.datetime | None) -> str:
    """The moment for machines; empty for none."""
    return moment.isoformat() if moment else ""


def moment(moment: datetime.datetime | None) -> str:
    """The moment for people, in UTC; empty for none."""
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else ""


def count(value: int, most: int | None = None) -> str:
    """The number; with a plus where counting ended at the most."""
    return f"{value:,}" if most is None or value < most else f"{most:,}+"


def span(seconds: float | None) -> str:
    """A length of time in its largest unit; empty for none."""
    if seconds is None:
        return ""
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0) * 1000:.0f} ms"


def headline(message: str | None) -> str:
    """The first line of an error's text, short enough for a table."""
    line = (message or "").strip().partition("\n")[0]
    return line if len(line) <= 160 else line[:159] + "…"


def pretty(value: Any) -> str:
    """A JSON value over several lines; empty for none."""
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=2, default=str)
