"""Number 7: all workers restarted under load, one after the other, cost no attempt and no work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.chaos.arena import Arena, arena
from tests.chaos.evidence import Fault, Kind
from tests.chaos.fleet import Slot, now
from tests.chaos.form import Form
from tests.chaos.load import Load
from tests.chaos.report import figures, late, table
from tests.chaos.verdict import judge, told

RESTART_TIMEOUT = 60.0


@pytest.mark.chaos
def test_a_rolling_restart_under_load_spends_no_attempt(form: Form, tmp_path: Path) -> None:
    size = 4 if form.long else 2
    seconds = 90.0 if form.long else 8.0
    with arena(tmp_path, workers=size, nap=0.6 if form.long else 0.3) as place:
        place.fleet.start()
        load = Load(
            place.settings, form.seed, tenants=5, threads=200, runs=5 if form.long else 1, seconds=seconds
        )
        load.start()
        faults = []
        while not load.is_done:
            faults += [_restart(place, slot) for slot in place.fleet.slots]
        load.join()
        place.settle(30)
        place.fleet.stop()
        evidence = place.gather()
        evidence.sent, evidence.faults = load.sent, faults
    offences = judge(evidence, slack=place.settings.heartbeat_timeout)
    report = figures(evidence, offences)
    offences["figures are within their limits"] = late(report)
    print("\n" + table(report))
    if any(offences.values()):
        pytest.fail(told(offences), pytrace=False)
    assert {run.status for run in evidence.runs} == {"success"}
    assert {row.outcome for row in evidence.attempts} == {"drained"}, "a restart costs no attempt, and drains"


def _restart(place: Arena, slot: Slot) -> Fault:
    """SIGTERM, and the next one serves."""
    assert slot.life is not None
    pid, began = slot.life.pid, now()
    place.fleet.ask_to_end(slot)
    ends_at = time.monotonic() + RESTART_TIMEOUT
    while slot.life.pid == pid or not slot.is_up:
        place.fleet.tick()
        assert time.monotonic() < ends_at, f"worker {pid} did not end, or nobody followed it"
        time.sleep(0.02)
    return Fault(Kind.TERM, began, began, slot.number, pid)
