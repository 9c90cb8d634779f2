"""What the demo left in the ledger and in the checkpoints, gathered for the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from sqlalchemy import ColumnElement, Select, Text, column, func, literal_column, select, table, union_all

from threadmill.cli.demo_verdict import Accident, Attempt, Evidence, Question, Sight
from threadmill.core.database import Database
from threadmill.core.errors import RunNotFound
from threadmill.core.models import SCHEMA, Run, Thread, table_of
from threadmill.core.models import Attempt as AttemptRow
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import bind_tenant
from threadmill.dlq import Desk
from threadmill.producers import Producer
from threadmill.producers.queries import MAX_PAGE
from threadmill.workers.tables import CHECKPOINT_TABLES

_runs = table_of(Run)
_threads = table_of(Thread)
_attempts = table_of(AttemptRow)


def gather(
    settings: Settings,
    database: Database,
    producer: Producer,
    questions: Sequence[Question],
    accident: Accident | None,
) -> Evidence:
    """The evidence, once no run is under way any more."""
    tenants = sorted({question.tenant for question in questions})
    with Desk(settings) as desk:
        letters = desk.list(limit=MAX_PAGE)
    return Evidence(
        questions=questions,
        runs=[run for tenant in tenants for run in producer.list(tenant=tenant, limit=MAX_PAGE)],
        attempts=database.carry_out(_read_attempts()),
        letters=letters,
        turns={
            place: producer.state(*place).values.get("turns", [])
            for place in dict.fromkeys(question.place for question in questions)
        },
        sights=[
            *_sights_by_id(producer, tenants, questions),
            *(sight for tenant in tenants for sight in database.carry_out(_look_around(tenant))),
        ],
        accident=accident,
    )


def _sights_by_id(
    producer: Producer, tenants: Sequence[str], questions: Sequence[Question]
) -> Iterator[Sight]:
    """What each tenant gets when it asks for a run of every thread of all tenants by its id."""
    first = {question.place: question for question in reversed(questions)}.values()
    for viewer in tenants:
        found = []
        for question in first:
            with suppress(RunNotFound):
                producer.get(question.run_id, tenant=viewer)
                found.append(question.tenant == viewer)
        yield Sight(viewer, "runs by id", own=sum(found), foreign=len(found) - sum(found))


def _look_around(tenant: str) -> Plan[list[Sight]]:
    """What one tenant gets when it selects all rows, with only row-level security in its way."""
    owners: dict[str, ColumnElement[str]] = {"threads": _threads.c.tenant, "runs": _runs.c.tenant}
    for name in CHECKPOINT_TABLES:
        rows = table(name, column("thread_id"), schema=SCHEMA)
        owners[f"rows of {name}"] = func.split_part(rows.c.thread_id, ":", 1)
    counts = [
        Step(select(owner.label("owner"), func.count().label("number")).group_by(literal_column("owner")), {})
        for owner in owners.values()
    ]
    _, *results = yield Batch([Step(bind_tenant(), {"tenant": tenant}), *counts])
    sights = []
    for what, rows_seen in zip(owners, results, strict=True):
        seen = {row["owner"]: int(row["number"]) for row in rows_seen}
        own = seen.pop(tenant, 0)
        sights.append(Sight(tenant, what, own, sum(seen.values())))
    return sights


def _read_attempts() -> Plan[list[Attempt]]:
    """All attempts: those that did not succeed have rows of their own, the last one of a success has none."""
    where = (_runs.c.id, _runs.c.tenant, _runs.c.thread_id, _runs.c.seq)
    ended: Select[tuple[object, ...]] = select(
        *where,
        # Unknown only for one that ended before it started.
        func.coalesce(_attempts.c.started_at, _attempts.c.ended_at).label("started_at"),
        _attempts.c.ended_at,
        _attempts.c.attempt,
        _attempts.c.outcome,
    ).join(_attempts, _attempts.c.run_id == _runs.c.id)
    # The claim sets dispatched_at; started_at is the first attempt's.
    succeeded: Select[tuple[object, ...]] = select(
        *where, _runs.c.dispatched_at, _runs.c.finished_at, _runs.c.attempt, literal_column("'success'", Text)
    ).where(_runs.c.status == literal_column("'success'"))
    (rows,) = yield Batch([Step(union_all(ended, succeeded), {})])
    return [
        Attempt(
            str(row["id"]),
            (row["tenant"], row["thread_id"]),
            row["seq"],
            row["started_at"],
            row["ended_at"],
            row["attempt"],
            row["outcome"],
        )
        for row in rows
    ]
