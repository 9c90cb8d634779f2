"""The enqueue: requests in, committed runs and the bells to ring out."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from threadmill.core.doorbell import Bell, bell_of
from threadmill.core.errors import IdempotencyConflict, ThreadBusy
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import (
    announce_in_transaction,
    bind_tenant,
    enter_threads,
    find_by_idempotency_key,
    insert_runs,
)
from threadmill.producers.catalogue import Catalogue
from threadmill.producers.request import RunRequest
from threadmill.producers.run import Run, run_of


class Enqueued(NamedTuple):
    """The runs in the order of their requests, and whom to ring for once they are committed."""

    runs: list[Run]
    bells: list[Bell]


def enqueue(requests: Sequence[RunRequest], catalogue: Catalogue) -> Plan[Enqueued]:
    """All of the requests or none of them, in a transaction of Threadmill's own.

    One round trip, unless an idempotency key or the strategy reject makes it look before it commits.
    Raises ThreadBusy and IdempotencyConflict.
    """
    certain = all(r.idempotency_key is None and r.multitask_strategy == "enqueue" for r in requests)
    steps = [
        step
        for group in _by_tenant(requests)
        for step in (_bind(group[0].tenant), *_insert(group, catalogue))
    ]
    results = yield Batch(steps, final=certain)
    rows = {row["id"]: row for result in results[2::3] for row in result}
    missing = [request for request in requests if request.id not in rows]
    found: dict[uuid.UUID, Row] = {}
    if missing:
        found = yield from _look_up(missing, bind=True)
    return _enqueued(requests, rows, found)


def enqueue_within(requests: Sequence[RunRequest], catalogue: Catalogue) -> Plan[Enqueued]:
    """`enqueue` in a transaction of the caller's, as the caller's role.

    The bells are handed to Postgres, which gives them to the leader if and when the transaction commits.
    """
    rows: dict[uuid.UUID, Row] = {}
    for group in _by_tenant(requests):
        results = yield Batch(_insert(group, catalogue), final=False)
        rows.update({row["id"]: row for row in results[1]})
    missing = [request for request in requests if request.id not in rows]
    found: dict[uuid.UUID, Row] = {}
    if missing:
        found = yield from _look_up(missing, bind=False)
    enqueued = _enqueued(requests, rows, found)
    if enqueued.bells:
        steps = [Step(announce_in_transaction(), {"bell": bell.to_json()}) for bell in enqueued.bells]
        yield Batch(steps, final=False)
    return enqueued


def _by_tenant(requests: Sequence[RunRequest]) -> Iterator[list[RunRequest]]:
    """The requests of each tenant, by the tenants' names, so that all callers lock lanes in one order."""
    groups: dict[str, list[RunRequest]] = defaultdict(list)
    for request in requests:
        groups[request.tenant].append(request)
    for tenant in sorted(groups):
        yield groups[tenant]


def _bind(tenant: str) -> Step:
    return Step(bind_tenant(), {"tenant": tenant})


def _insert(group: Sequence[RunRequest], catalogue: Catalogue) -> list[Step]:
    counts = Counter(request.thread_id for request in group)
    left = dict(counts)
    records = []
    for request in group:
        first = left[request.thread_id] == counts[request.thread_id]
        left[request.thread_id] -= 1
        default = catalogue.graph(request.graph).policy.max_attempts
        records.append(request.record(left[request.thread_id], first=first, default_max_attempts=default))
    tenant = group[0].tenant
    return [
        Step(
            enter_threads(),
            {"tenant": tenant, "thread_ids": list(counts), "counts": list(counts.values())},
        ),
        Step(insert_runs(), {"the_tenant": tenant, "runs": f"[{','.join(records)}]"}),
    ]


def _look_up(missing: Sequence[RunRequest], *, bind: bool) -> Plan[dict[uuid.UUID, Row]]:
    """The runs that already have the idempotency keys of those that were not inserted."""
    found: dict[uuid.UUID, Row] = {}
    for request in missing:
        if request.idempotency_key is None:
            continue
        steps = [Step(find_by_idempotency_key(), {
            "tenant": request.tenant, "idempotency_key": request.idempotency_key,
        })]  # fmt: skip
        if bind:
            steps.insert(0, _bind(request.tenant))
        results = yield Batch(steps, final=False)
        if results[-1]:
            found[request.id] = results[-1][0]
    return found


def _enqueued(
    requests: Sequence[RunRequest], rows: dict[uuid.UUID, Row], found: dict[uuid.UUID, Row]
) -> Enqueued:
    runs = []
    for request in requests:
        row = rows.get(request.id)
        if row is None:
            row = found.get(request.id)
            if row is None:
                raise ThreadBusy(request.tenant, request.thread_id)
            if bytes(row["payload_hash"]).hex() != request.payload_hash:
                raise IdempotencyConflict(str(request.idempotency_key), str(row["id"]))
        runs.append(run_of(row))
    return Enqueued(runs, [bell_of(row) for row in rows.values() if row["rings"]])
