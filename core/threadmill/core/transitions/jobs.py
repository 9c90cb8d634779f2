"""What happens to a replay job: begun, advanced batch by batch, stopped, continued.

Who advances a job holds its row from the beginning of the batch until the batch is committed with the job's
new position. So two who run it take turns, a stop comes between two batches, and what is killed within one
leaves the job as it stood before it.

    running ── advance ──► running ... done
      │  ▲
     stop continue
      ▼  │
    stopped
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Integer,
    Text,
    bindparam,
    case,
    cast,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.sql import Executable

from threadmill.core.transitions.terms import JOBS, word

_ID = bindparam("job_id", type_=UUID(as_uuid=True))
JOB_COLUMNS: tuple[Column[object], ...] = tuple(JOBS.c)


@cache
def begin_job() -> Executable:
    """Returns JOB_COLUMNS. Parameters: job_id, filter (a JSON object), mode, rate, by, last, total."""
    return (
        insert(JOBS)
        .values(
            id=_ID,
            filter=bindparam("filter", type_=JSONB),
            mode=bindparam("mode", type_=Text),
            rate=bindparam("rate", type_=Float),
            by=bindparam("by", type_=Text),
            last=bindparam("last", type_=UUID(as_uuid=True)),
            total=bindparam("total", type_=Integer),
        )
        .returning(*JOB_COLUMNS)
    )


@cache
def hold_job() -> Executable:
    """Takes the job for a batch, whatever its status is. Parameter: job_id.

    Returns JOB_COLUMNS and `rested`: seconds since it was last advanced.
    """
    rested = cast(func.extract("epoch", func.clock_timestamp() - JOBS.c.updated_at), Float)
    return select(*JOB_COLUMNS, rested.label("rested")).where(JOBS.c.id == _ID).with_for_update()


@cache
def advance_job() -> Executable:
    """running → running or done: a batch further. Returns JOB_COLUMNS.

    Parameters: job_id, before (the position that it is to stand at), to (its next; None for the same),
    more_replayed, more_skipped, is_done.
    No row: it was stopped, or another has advanced it.
    """
    before = bindparam("before", type_=UUID(as_uuid=True))
    return (
        update(JOBS)
        .where(
            JOBS.c.id == _ID, JOBS.c.status == word("running"), JOBS.c.position.is_not_distinct_from(before)
        )
        .values(
            position=func.coalesce(bindparam("to", type_=UUID(as_uuid=True)), JOBS.c.position),
            replayed=JOBS.c.replayed + bindparam("more_replayed", type_=Integer),
            skipped=JOBS.c.skipped + bindparam("more_skipped", type_=Integer),
            status=case((bindparam("is_done", type_=Boolean), word("done")), else_=word("running")),
            updated_at=func.clock_timestamp(),
        )
        .returning(*JOB_COLUMNS)
    )


@cache
def stop_job() -> Executable:
    """running → stopped. Returns JOB_COLUMNS. Parameter: job_id. No row: its status was another."""
    return _restatus("stopped", "running")


@cache
def continue_job() -> Executable:
    """running | stopped → running: also of one whose runner is gone. Returns JOB_COLUMNS.

    Parameter: job_id. No row: its status was another.
    """
    return _restatus("running", "running", "stopped")


def _restatus(after: str, *before: str) -> Executable:
    return (
        update(JOBS)
        .where(JOBS.c.id == _ID, JOBS.c.status.in_([word(status) for status in before]))
        .values(status=word(after), updated_at=func.now())
        .returning(*JOB_COLUMNS)
    )
