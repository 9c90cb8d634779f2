"""The demo's accident: one of its workers is killed while it executes runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Integer, bindparam, func, literal_column, select

from threadmill.cli.demo_fleet import DemoFleet
from threadmill.cli.demo_verdict import Accident
from threadmill.core.database import Database
from threadmill.core.models import Run, Worker, table_of
from threadmill.core.statement import Batch, Plan, Rows, Step

_runs = table_of(Run)
_workers = table_of(Worker)

# What a worker had sent when it was frozen, or died, has taken effect within this time, in seconds.
SETTLE = 0.1

_HELD = (
    select(_runs.c.id, _runs.c.attempt, func.now().label("now"))
    .join(_workers, _workers.c.id == _runs.c.worker_id)
    .where(_runs.c.status == literal_column("'running'"), _workers.c.pid == bindparam("pid", type_=Integer))
    .order_by(_runs.c.id)
)

_BUSIEST = (
    select(_workers.c.pid)
    .join(_runs, _workers.c.id == _runs.c.worker_id)
    .where(_runs.c.status == literal_column("'running'"))
    .group_by(_workers.c.pid)
    .order_by(func.count().desc())
)


def cause_accident(
    fleet: DemoFleet, database: Database, workers: Sequence[str], *, successor: str
) -> Accident | None:
    """Kills the worker that holds the most runs with SIGKILL, and starts its successor.

    It is frozen first, so that it does not finish what it holds while it is looked at. None where it holds no
    run then; it lives on.
    """
    names = {fleet.pid_of(worker): worker for worker in workers}
    busiest = [row["pid"] for row in database.carry_out(_ask(Step(_BUSIEST, {}))) if row["pid"] in names]
    if not busiest:
        return None
    pid = busiest[0]
    worker = names[pid]
    fleet.freeze(worker)
    held = _look(database, pid)
    if not held:
        fleet.thaw(worker)
        return None
    fleet.kill(worker, successor=successor)
    killed_at = held[0]["now"]
    # Again: on a slow machine something that it had sent may have taken effect since.
    return Accident(worker, killed_at, [(str(row["id"]), row["attempt"]) for row in _look(database, pid)])


def _look(database: Database, pid: int) -> Rows:
    time.sleep(SETTLE)
    return database.carry_out(_ask(Step(_HELD, {"pid": pid})))


def _ask(step: Step) -> Plan[Rows]:
    (rows,) = yield Batch([step])
    return rows
