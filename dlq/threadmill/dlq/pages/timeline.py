"""A thread's runs as bars over time: when each waited, ran and failed."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from threadmill.core.statement import Row
from threadmill.dlq.pages.words import span

Moment = datetime.datetime

# Of the whole, in per cent: what is shorter could not be seen.
NARROWEST = 0.6


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a run. left, width: in per cent of the timeline. kind: waits, or what the attempt came to."""

    left: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A run with its bars."""

    run: Row
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Runs, the newest first, between two moments. lines: empty for no runs."""

    start: Moment
    end: Moment
    lines: tuple[Line, ...]


def timeline(runs: Sequence[Row], attempts: Mapping[Any, Sequence[Row]], now: Moment) -> Timeline:
    """The timeline of these runs. attempts: by run, those that ended without success. now: the ledger's."""
    spans = [(run, list(_spans(run, attempts.get(run["id"], ()), now))) for run in runs]
    moments = [moment for _, found in spans for start, end, _, _ in found for moment in (start, end)]
    first, last = min(moments, default=now), max(moments, default=now)
    whole = max((last - first).total_seconds(), 1e-6)

    def bar(start: Moment, end: Moment, kind: str, what: str) -> Bar:
        width = max((end - start).total_seconds() / whole * 100, NARROWEST)
        left = min((start - first).total_seconds() / whole * 100, 100 - width)
        return Bar(round(max(left, 0), 3), round(min(width, 100), 3), kind, f"{what}, {_length(start, end)}")

    return Timeline(
        first, last, tuple(Line(run, tuple(bar(*part) for part in found)) for run, found in spans)
    )


def _spans(run: Row, attempts: Sequence[Row], now: Moment) -> list[tuple[Moment, Moment, str, str]]:
    """(start, end, kind, in words) of each part of the run, in the order of time.

    A run's `started_at` is its first attempt's; that of its present or last one is `dispatched_at`.
    """
    begun = run["started_at"] or run["finished_at"] or now
    found = [(run["created_at"], max(begun, run["created_at"]), "waits", "waited")]
    for attempt in attempts:
        start = attempt["started_at"] or attempt["ended_at"]
        what = f"attempt {attempt['attempt']} {attempt['outcome']}"
        if attempt["replay"]:
            what += f" (replay {attempt['replay']})"
        if attempt["node"]:
            what += f" at {attempt['node']}"
        found.append((start, attempt["ended_at"], attempt["outcome"], what))
    if run["status"] == "running":
        found.append((run["dispatched_at"] or begun, now, "running", f"attempt {run['attempt']} running"))
    elif run["status"] == "success" and run["finished_at"]:
        found.append((run["dispatched_at"] or begun, run["finished_at"], "success", "success"))
    elif run["status"] == "pending" and attempts:
        found.append((attempts[-1]["ended_at"], now, "waits", "waits for its next attempt"))
    return found


def _length(start: Moment, end: Moment) -> str:
    return span((end - start).total_seconds())
