"""A thread's runs as bars."""

from __future__ import annotations

import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from threadmill.dlq.pages.timeline import NARROWEST, timeline

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def at(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def run(status: str, **times: float | None) -> dict[str, Any]:
    moments = {name: None if value is None else at(value) for name, value in times.items()}
    empty = dict.fromkeys(("started_at", "dispatched_at", "finished_at"))
    return {"id": 1, "status": status, "attempt": 1, **empty, **moments}


def attempt(started: float, ended: float, outcome: str, **more: Any) -> dict[str, Any]:
    times = {"started_at": at(started), "ended_at": at(ended)}
    return {"attempt": 1, "replay": 0, "node": None, "outcome": outcome, **times, **more}


def test_a_run_waits_fails_and_succeeds_where_it_did() -> None:
    replayed = run("success", created_at=0, started_at=10, dispatched_at=60, finished_at=100)
    found = timeline([replayed], {1: [attempt(10, 30, "failed", node="fetch")]}, at(500))

    assert (found.start, found.end) == (at(0), at(100))
    (line,) = found.lines
    assert [(bar.kind, bar.left, bar.width) for bar in line.bars] == [
        ("waits", 0, 10),
        ("failed", 10, 20),
        ("success", 60, 40),
    ]
    assert line.bars[1].title == "attempt 1 failed at fetch, 20 s"


def test_what_is_under_way_goes_on_until_now() -> None:
    found = timeline([run("running", created_at=0, started_at=50, dispatched_at=50)], {}, at(100))
    assert [(bar.kind, bar.width) for bar in found.lines[0].bars] == [("waits", 50), ("running", 50)]


def test_a_thread_without_runs_has_an_empty_timeline() -> None:
    assert timeline([], {}, at(0)).lines == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["pending", "running", "success", "error"]),
            st.floats(0, 1e8),
            st.floats(0, 1e4),
            st.floats(0, 1e4),
        ),
        max_size=5,
    )
)
def test_every_bar_can_be_seen_and_lies_within(made: list[tuple[str, float, float, float]]) -> None:
    runs = [
        run(
            status,
            created_at=created,
            started_at=created + waited,
            dispatched_at=created + waited,
            finished_at=created + waited + took if status in ("success", "error") else None,
        )
        for status, created, waited, took in made
    ]
    for line in timeline(runs, {}, at(2e8)).lines:
        for bar in line.bars:
            assert bar.width >= NARROWEST
            assert bar.left >= 0
            assert bar.left + bar.width <= 100.01
