"""What a producer asks and does about runs that exist, each as a plan bound to one tenant."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import get_args

from sqlalchemy import Select, bindparam, select
from sqlalchemy.dialects.postgresql import UUID

from threadmill.core.doorbell import Bell, next_bell
from threadmill.core.errors import InvalidOption, NotCancellable, RunNotFound
from threadmill.core.keys import check_tenant, check_thread_id
from threadmill.core.models import RUN_STATUSES, Run, table_of
from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import RUN_COLUMNS, bind_tenant, cancel, lock_thread
from threadmill.producers.cancellation import CancelAction, cancelled, taking_back
from threadmill.producers.run import Run as RunView
from threadmill.producers.run import run_of

MAX_PAGE = 1000

_runs = table_of(Run)
_BY_ID = select(*RUN_COLUMNS).where(_runs.c.id == bindparam("run_id", type_=UUID(as_uuid=True)))


def parse_run_id(run_id: str | uuid.UUID) -> uuid.UUID:
    """The id as a UUID. Raises RunNotFound for what is none, as no run has it."""
    try:
        return run_id if isinstance(run_id, uuid.UUID) else uuid.UUID(str(run_id))
    except ValueError:
        raise RunNotFound(str(run_id)) from None


def get(run_id: str | uuid.UUID, tenant: str, *, final: bool = True) -> Plan[RunView]:
    """The run. Raises RunNotFound, also for another tenant's. final: nothing follows in its transaction."""
    steps = [
        Step(bind_tenant(), {"tenant": check_tenant(tenant)}),
        Step(_BY_ID, {"run_id": parse_run_id(run_id)}),
    ]
    _, rows = yield Batch(steps, final)
    if not rows:
        raise RunNotFound(str(run_id))
    return run_of(rows[0])


def check_page(limit: int, after: str | None) -> None:
    """Raises InvalidOption for an impossible page."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise InvalidOption("limit", limit, f"must be a whole number from 1 to {MAX_PAGE}")
    if after is not None:
        try:
            uuid.UUID(after)
        except ValueError:
            raise InvalidOption(
                "after", after, "must be the id of the last item of the page before"
            ) from None


def list_runs(
    tenant: str,
    *,
    thread_id: str | None,
    status: str | None,
    graph: str | None,
    limit: int,
    after: str | None,
) -> Plan[list[RunView]]:
    """A page of the tenant's runs, newest first. Raises InvalidOption."""
    check_page(limit, after)
    if status is not None and status not in RUN_STATUSES:
        raise InvalidOption("status", status, f"must be one of {', '.join(RUN_STATUSES)}")
    query: Select[tuple[object, ...]] = select(*RUN_COLUMNS).where(_runs.c.tenant == check_tenant(tenant))
    if thread_id is not None:
        query = query.where(_runs.c.thread_id == check_thread_id(thread_id))
    if status is not None:
        query = query.where(_runs.c.status == status)
    if graph is not None:
        query = query.where(_runs.c.graph == graph)
    if after is not None:
        query = query.where(_runs.c.id < uuid.UUID(after))
    query = query.order_by(_runs.c.id.desc()).limit(limit)
    _, rows = yield Batch([Step(bind_tenant(), {"tenant": tenant}), Step(query, {})])
    return [run_of(row) for row in rows]


def cancel_run(
    run_id: str | uuid.UUID, tenant: str, action: CancelAction = "interrupt"
) -> Plan[tuple[RunView, Sequence[Bell]]]:
    """Ends the run as interrupted; an attempt that is under way is fenced and can write nothing more.

    Raises InvalidOption, RunNotFound, and NotCancellable for a run that is finished.
    """
    if action not in get_args(CancelAction):
        raise InvalidOption("action", action, f"must be one of {', '.join(get_args(CancelAction))}")
    before = yield from get(run_id, tenant, final=False)
    key = {"run_id": uuid.UUID(before.id)}
    error = cancelled(action, "on request")
    results = yield Batch(
        [
            Step(bind_tenant(), {"tenant": tenant}),
            Step(lock_thread(), {"tenant": tenant, "thread_id": before.thread_id}),
            Step(cancel(), {**key, "action": action, "error": error, "cause": "on request"}),
            *taking_back(action, tenant, before.thread_id),
            Step(_BY_ID, key),
        ]
    )
    ended, run = results[2], run_of(results[-1][0])
    if not ended:
        raise NotCancellable(run.id, run.status)
    bell = next_bell(ended[0])
    return run, [bell] if bell else []
