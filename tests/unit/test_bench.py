"""What the benchmark's table says of its figures, without measuring any."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from bench.growth_of_ledger import AIMED_RUNS, AIMED_SECONDS, Compared, ComparedCost, GrowthOfLedger, Stage
from bench.growth_of_ledger import rows as rows_of_ledger
from bench.load import QUICK
from bench.loss import ENOUGH, SLOTS, Look, summed_up
from bench.replays import AIMED, Drained
from bench.replays import rows as rows_of_replays
from bench.report import Report
from bench.row import Aim, Row, at_least, at_most, compared, ratio_at_least, ratio_at_most


@pytest.mark.parametrize(
    ("aim", "met"),
    [(at_least(8), True), (at_least(9), False), (at_most(8), True), (at_most(7), False)],
)
def test_an_aim_of_a_figure_is_met_at_its_bound_and_not_beyond(aim: Aim, met: bool) -> None:
    assert Row("section", "figure", 8, aim=aim).met is met


def test_an_aim_of_a_ratio_looks_at_the_ratio_and_not_at_the_figure() -> None:
    assert compared("section", "figure", 3, "ms", "base", 2, ratio_at_least(1.5)).met is True
    assert compared("section", "figure", 3, "ms", "base", 2, ratio_at_most(1.4)).met is False


def test_a_ratio_to_nothing_is_neither_met_nor_missed() -> None:
    assert compared("section", "figure", 3, "ms", "base", 0, ratio_at_most(1)).met is None


@pytest.mark.parametrize(
    ("letters", "rate", "met"), [(AIMED, 500, True), (AIMED, 499, False), (AIMED - 1, 499, None)]
)
def test_of_the_replays_the_rate_with_the_ramp_is_aimed_at_where_there_are_enough(
    letters: int, rate: float, met: bool | None
) -> None:
    found = Drained(letters, 64, rate, 64, 900, 0.3, 0.4, 2, 0.5)

    assert [row.met for row in rows_of_replays([found])] == [met, None, None, None, None, None]


def test_a_window_that_was_at_its_widest_for_too_short_a_time_has_no_rate_of_its_own() -> None:
    found = Drained(400, 64, 300, 64, None, 0.3, 0.4, 2, 0.5)

    assert not any("widest" in row.figure for row in rows_of_replays([found]))


@pytest.mark.parametrize(
    ("runs", "held", "p50", "met"),
    [
        (AIMED_RUNS, AIMED_SECONDS, 1.2, True),
        (AIMED_RUNS, AIMED_SECONDS, 1.3, False),
        (AIMED_RUNS - 1, AIMED_SECONDS, 1.3, None),
        (AIMED_RUNS, AIMED_SECONDS - 1, 1.3, None),
    ],
)
def test_of_a_ledger_that_has_grown_the_median_of_a_claim_is_aimed_at_and_not_its_p99(
    runs: int, held: float, p50: float, met: bool | None
) -> None:
    claim = Compared(Stage.HELD, "claim", False, p50, 9.0, 1.0, 1.0)
    found = GrowthOfLedger(runs, 5 * runs, held, 1_000, [claim], [])

    assert [row.met for row in rows_of_ledger(found)] == [None, None, None, met]


def test_of_a_ledger_that_has_grown_what_has_no_aim_is_told_where_it_is_dearest() -> None:
    loaded = [Compared(stage, "finish", True, 9.0, 9.0, 1.0, 1.0) for stage in Stage]
    inside = [ComparedCost(stage, "ring", 9.0, 99, 1.0, 9) for stage in Stage]
    found = GrowthOfLedger(AIMED_RUNS, 5 * AIMED_RUNS, AIMED_SECONDS, 1_000, loaded, inside)

    assert [row.figure for row in rows_of_ledger(found)[3:]] == [
        "transaction held open, at the end: 150 at once: finish",
        "  inside Postgres: ring",
    ]
    assert {row.met for row in rows_of_ledger(found)} == {None}


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = Report.of("2026-01-01T00:00:00+00:00", {}, QUICK)
    report.add("name", [QUICK], [compared("section", "figure", 3, "ms", "base", 2, ratio_at_least(1.5, 2))])
    report.write(tmp_path / "result.json")

    found = Report.read(tmp_path / "result.json")

    assert found.rows == report.rows
    assert found.measured == json.loads(json.dumps(report.measured))


def _looks(living: dict[float, int], dead_until: float) -> list[Look]:
    """A look every 0.1 s: `living` says from when on so many runs were those of the living."""
    looks = []
    for tenth in range(1, 200):
        at = tenth / 10
        running = next(count for since, count in sorted(living.items(), reverse=True) if at >= since)
        looks.append(Look(at, running, 16 if at <= dead_until else 0, ENOUGH if at < 15 else 0))
    return looks


def test_the_slots_are_busy_again_once_the_living_fill_them_though_the_dead_hold_rows_still() -> None:
    loss = summed_up(_looks({0: 16, 4: SLOTS}, dead_until=6), running=0, failed=0)

    # A little earlier than filled, as a share of the window may be idle.
    assert loss.busy_again == pytest.approx(4, abs=0.25)
    assert loss.rescued == 6
    assert loss.busy == 1


def test_a_slot_that_was_leaked_shows_in_the_share_of_busy_slots() -> None:
    loss = summed_up(_looks({0: 16, 4: SLOTS, 8: SLOTS - 4}, dead_until=6), running=0, failed=0)

    assert loss.busy < 0.95


def test_slots_that_are_never_busy_again_are_said_to_be_so() -> None:
    loss = summed_up(_looks({0: 16}, dead_until=6), running=0, failed=0)

    assert loss.busy_again == math.inf
    assert loss.busy == 0
