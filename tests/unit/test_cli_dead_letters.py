"""What `threadmill dlq` makes of its arguments, and how it draws groups. No service runs here."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import typer

from threadmill.cli.dead_letter_detail import diff_view, document_view
from threadmill.cli.dead_letter_options import counted, parse_moment, parts_of
from threadmill.cli.dead_letter_views import drain_state, rate_words, sparkline
from threadmill.dlq.detail import Change
from threadmill.dlq.filter import LetterFilter
from threadmill.dlq.groups import Group, Sample

NOW = datetime.datetime.now(datetime.UTC)


def group(**fields: Any) -> Group:
    """A group of which ten letters wait, and nothing was tried yet."""
    return Group(
        **{
            "fingerprint": "f" * 16,
            "graph": "agent",
            "node": "call",
            "exception_type": "ConnectionError",
            "reason": "exhausted",
            "counts": {"waiting": 10},
            "first_seen": NOW,
            "last_seen": NOW,
            "tenants": 1,
            "sample": Sample("id", "nobody there"),
            "trend": (0,) * 6,
            "window": 1,
            "backoffs": 0,
            "next_at": None,
            "paused": None,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("span", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("15min", 900),
        ("2h", 7200),
        ("1.5 h", 5400),
        ("7d", 604_800),
        ("1w", 604_800),
    ],
)
def test_a_span_is_so_long_ago(span: str, seconds: float) -> None:
    ago = datetime.datetime.now(datetime.UTC) - parse_moment(span)

    assert ago.total_seconds() == pytest.approx(seconds, abs=5)


def test_a_time_is_iso_8601_and_local_without_an_offset() -> None:
    moment = datetime.datetime(2030, 1, 31, 12, tzinfo=datetime.UTC)

    assert parse_moment("2030-01-31T13:00:00+01:00") == moment
    assert parse_moment("2030-01-31T12:00:00") == datetime.datetime(2030, 1, 31, 12).astimezone()


@pytest.mark.parametrize("text", ["", "h", "2 fortnights", "-2h", "yesterday", "9" * 400 + "w", "2h30"])
def test_what_is_neither_is_bad_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="nor a span"):
        parse_moment(text)


def test_a_filter_is_split_by_the_statuses_that_matter() -> None:
    chosen = LetterFilter(tenant="acme")

    assert parts_of(chosen, ("waiting", "parked")) == [
        LetterFilter(tenant="acme", status="waiting"),
        LetterFilter(tenant="acme", status="parked"),
    ]
    assert parts_of(LetterFilter(status="parked"), ("waiting", "parked")) == [LetterFilter(status="parked")]
    assert parts_of(LetterFilter(status="resolved"), ("waiting", "parked")) == []


def test_a_count_that_is_bounded_says_so() -> None:
    assert (counted(9_999), counted(10_000)) == ("9999", "10,000 or more")


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [
        ((0, 0, 0), "···"),
        ((1, 1, 1), "███"),
        ((0, 1, 100), "·▂█"),
        ((10, 50, 100), "▂▅█"),
        ((), ""),
    ],
)
def test_a_trend_is_drawn_by_shares_of_its_highest(counts: tuple[int, ...], drawn: str) -> None:
    assert sparkline(counts) == drawn


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "canary next"),
        ({"window": 16}, "window 16"),
        ({"counts": {"waiting": 10, "replaying": 3}, "window": 4}, "3/4 replaying"),
        ({"backoffs": 2, "next_at": NOW + datetime.timedelta(days=10)}, "2 failed, canary in 10 d"),
        ({"backoffs": 1, "next_at": NOW - datetime.timedelta(hours=1)}, "1 failed, canary next"),
        ({"reason": "permanent"}, "by hand"),
        ({"paused": "graph", "backoffs": 2}, "paused (graph)"),
        ({"counts": {"parked": 3, "resolved": 2}}, "parked"),
        ({"counts": {"resolved": 12}}, "drained"),
    ],
)
def test_the_state_of_a_drain_is_told_in_words(fields: dict[str, Any], says: str) -> None:
    assert str(drain_state(group(**fields))) == says


@pytest.mark.parametrize(
    ("rate", "words"), [(50, "50/s"), (0.5, "30/min"), (1 / 360, "10/h"), (2.5, "2.5/s")]
)
def test_a_rate_is_told_in_a_unit_that_fits(rate: float, words: str) -> None:
    assert rate_words(rate) == words


def test_what_a_run_has_changed_is_told_a_place_a_line() -> None:
    diff = [
        Change("/words/1", "added", after="[new]"),
        Change("/old", "removed", before={"a": 1}),
        Change("/n", "changed", before=1, after=2),
    ]

    assert str(diff_view(diff)).splitlines() == ['+ /words/1 "[new]"', '- /old {"a": 1}', "~ /n 1 → 2"]
    assert diff_view([]) is None


def test_what_is_long_is_cut_off() -> None:
    diff = [Change(f"/{n}", "added", after="x" * 500) for n in range(100)]

    lines = str(diff_view(diff)).splitlines()

    assert len(lines) == 41
    assert lines[-1] == "… 60 places more; --json has them"
    assert max(map(len, lines)) < 220
    assert str(document_view(list(range(100)))).splitlines()[-1] == "… 62 lines more; --json has them"
