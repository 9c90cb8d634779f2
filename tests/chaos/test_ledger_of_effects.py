"""Number 1: under every fault at once, no run is lost, doubled or out of order, and no zombie writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.chaos.arena import arena
from tests.chaos.evidence import Kind
from tests.chaos.faults import Storm, after, prelude, schedule
from tests.chaos.form import Form
from tests.chaos.load import Load
from tests.chaos.report import as_json, figures, late, table
from tests.chaos.verdict import judge, told

from threadmill.core.policy import History

# The short form has no time to wait for the default lease.
IMPATIENT = {"heartbeat_interval": 0.5, "heartbeat_timeout": 3.0}
# Nor workers enough for another SIGTERM, which the calm before the storm has already.
EACH_ONCE = tuple(kind for kind in Kind if kind is not Kind.TERM)


@pytest.mark.chaos
def test_no_fault_costs_a_run_an_order_or_a_message(form: Form, tmp_path: Path) -> None:
    history: History = "durable" if form.seed % 2 else "full"
    print(f"\n--chaos-seed={form.seed} (history {history}) in {tmp_path}")
    settings: dict[str, Any] = {} if form.long else IMPATIENT
    workers, nap = (4, 1.5) if form.long else (3, 0.6)
    with arena(tmp_path, workers, nap, history, **settings) as place:
        lease = place.settings.heartbeat_timeout
        place.fleet.start()
        calm = prelude(form.seed, 8, lease) if form.long else prelude(form.seed, 1, lease)[:3]
        kinds = (*Kind, Kind.KILL) if form.long else EACH_ONCE
        count = round(form.seconds / 4) if form.long else len(kinds)
        plan = after(calm, schedule(form.seed, form.seconds, count, lease, kinds))
        seconds = max(planned.at for planned in plan)
        load = Load(
            place.settings,
            form.seed,
            tenants=5,
            threads=300 if form.long else 100,
            runs=max(4, round(seconds / 30)),
            seconds=seconds,
        )
        storm = Storm(place.fleet, place.postgres, place.redis, place.ours, load, form.seed)
        load.start()
        storm.rage(plan, until=lambda: load.is_done)
        load.join()
        place.settle(60 + 5 * lease)
        place.fleet.stop()
        evidence = place.gather()
        evidence.sent, evidence.refusals = load.sent, dict(load.refusals)
        evidence.enqueues = load.enqueues
        evidence.faults = storm.faults
    offences = judge(evidence, slack=lease)
    report = {
        "seed": form.seed,
        "seconds": round(seconds),
        "skipped": [str(kind) for kind in storm.skipped],
        **figures(evidence, offences),
    }
    print(table(report))
    if form.report is not None:
        form.report.write_text(as_json(report))
    offences["figures are within their limits"] = late(report)
    if any(offences.values()):
        pytest.fail(told(offences), pytrace=False)
