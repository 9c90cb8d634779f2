"""The enqueue: requests in, committed runs and the bells to ring out."""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple

from threadmill.core.doorbell import Bell
from threadmill.core.errors import IdempotencyConflict, ThreadBusy
from threadmill.core.floors import BEGINNING, Floors
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    announce_in_transaction,
    bind_tenant,
    borrow_tenant,
    enter_threads,
    find_by_idempotency_key,
    insert_runs,
    notify_cancelled,
    rank_heads,
    return_tenant,
    supersede,
)
from threadmill.producers.cancellation import cancelled, taking_back
from threadmill.producers.catalogue import Catalogue
from threadmill.producers.quotas import Quotas
from threadmill.producers.request import SUPERSEDING, RunRequest
from threadmill.producers.run import Run, run_of

# So many runs go out in one statement: while Postgres inserts them, the next are made into JSON.
AT_ONCE = 250


class Enqueued(NamedTuple):
    """The runs in the order of their requests, and whom to tell once they are committed.

    bells: to be rung. cancelled: the runs that they took the place of.
    """

    runs: list[Run]
    bells: list[Bell]
    cancelled: list[uuid.UUID]


class _Written(NamedTuple):
    """What the statements have given back, by the runs' ids."""

    inserted: dict[str, Row]
    superseded: dict[str, Row]


class _Part(NamedTuple):
    """A statement, and what its rows are: of those inserted, superseded, admitted, or of no interest.

    looks_for: the tenant and the graph of which it looks for what was ready before.
    """

    rows: Literal["inserted", "superseded", "admitted"] | None
    step: Step
    looks_for: tuple[str, str] | None = None


def enqueue(
    requests: Sequence[RunRequest], catalogue: Catalogue, quotas: Quotas, floors: Floors
) -> Plan[Enqueued]:
    """All of the requests or none of them, in a transaction of Threadmill's own.

    One round trip, unless an idempotency key or the strategy reject makes it look before it commits.
    Raises ThreadBusy, IdempotencyConflict and QuotaExceeded.
    """
    certain = all(r.idempotency_key is None and r.multitask_strategy != "reject" for r in requests)
    groups = _by_tenant(requests)
    # All are admitted first: what is bound to a tenant may not count.
    admission = [_Part("admitted", step) for step in quotas.steps(groups, bind=True)]

    def parts() -> Iterator[_Part]:
        yield from admission
        for group in groups:
            if len(groups) > 1:
                yield _Part(None, Step(bind_tenant(), {"tenant": group[0].tenant}))
            yield from _write(group, catalogue, floors)

    sent: list[_Part] = []
    results = yield Batch(_noting(parts(), sent), final=certain)
    written = _read(sent, results, quotas, floors)
    missing = [request for request in requests if request.id not in written.inserted]
    found: dict[str, Row] = {}
    if missing:
        found = yield from _look_up(missing, bind=True)
        yield from _rank_heads(requests, written, bind=True)
    return _enqueued(requests, written, found)


def enqueue_within(
    requests: Sequence[RunRequest], catalogue: Catalogue, quotas: Quotas, floors: Floors
) -> Plan[Enqueued]:
    """`enqueue` in a transaction of the caller's, as the caller's role.

    The bells, and the ids of the runs that were cancelled, are handed to Postgres, which gives them to the
    leader if and when the transaction commits.
    """
    written = _Written({}, {})
    groups = _by_tenant(requests)
    admission = [_Part("admitted", step) for step in quotas.steps(groups, bind=False)]
    for group in groups:
        sent: list[_Part] = []
        parts = chain(admission, _write(group, catalogue, floors))
        batch = Batch(_noting(parts, sent), final=False)
        supersedes = any(request.multitask_strategy in SUPERSEDING for request in group)
        results = yield from _borrowing(group[0].tenant, batch) if supersedes else _sending(batch)
        admission = []
        more = _read(sent, results, quotas, floors)
        written.inserted.update(more.inserted)
        written.superseded.update(more.superseded)
    missing = [request for request in requests if request.id not in written.inserted]
    found: dict[str, Row] = {}
    if missing:
        found = yield from _look_up(missing, bind=False)
        yield from _rank_heads(requests, written, bind=False)
    enqueued = _enqueued(requests, written, found)
    steps = [Step(announce_in_transaction(), {"bell": bell.to_json()}) for bell in enqueued.bells]
    steps += [Step(notify_cancelled(), {"run_id": str(run_id)}) for run_id in enqueued.cancelled]
    if steps:
        yield Batch(steps, final=False)
    return enqueued


def _noting(parts: Iterable[_Part], sent: list[_Part]) -> Iterator[Step]:
    """The parts' statements, each made when the one before is on its way, and noted down in `sent`."""
    for part in parts:
        sent.append(part)
        yield part.step


def _sending(batch: Batch) -> Plan[list[Rows]]:
    return (yield batch)


def _borrowing(tenant: str, batch: Batch) -> Plan[list[Rows]]:
    """Sends what reads checkpoints, which row-level security shows to a transaction that is bound."""
    ((standing,),) = yield Batch([Step(borrow_tenant(), {"tenant": tenant})], final=False)
    results = yield batch
    yield Batch([Step(return_tenant(), {"before": standing["before"]})], final=False)
    return results


def _read(parts: Sequence[_Part], results: Sequence[Rows], quotas: Quotas, floors: Floors) -> _Written:
    written = _Written({}, {})
    for part, rows in zip(parts, results, strict=True):
        match part.rows:
            case "inserted":
                written.inserted.update({row["id"]: row for row in rows})
                if rows and part.looks_for is not None:
                    floors.learn(part.looks_for, part.step.parameters["floor"], rows[0]["found"])
            case "superseded":
                written.superseded.update({str(row["id"]): row for row in rows})
            case "admitted":
                quotas.learn(part.step, rows[0])
    return written


def _by_tenant(requests: Sequence[RunRequest]) -> list[list[RunRequest]]:
    """The requests of each tenant, by the tenants' names, so that all callers lock lanes in one order."""
    groups: dict[str, list[RunRequest]] = defaultdict(list)
    for request in requests:
        groups[request.tenant].append(request)
    return [groups[tenant] for tenant in sorted(groups)]


def _write(group: Sequence[RunRequest], catalogue: Catalogue, floors: Floors) -> Iterator[_Part]:
    """The statements for the requests of one tenant, to the effect of one enqueue after the other."""
    for wave in _waves(group):
        yield from _write_wave(wave, catalogue, floors)


def _waves(group: Sequence[RunRequest]) -> list[list[RunRequest]]:
    """The requests in as few lots as can be written at once.

    A request that ends what is unfinished on its thread also ends the runs of those before it, which must
    therefore be there. The first wave has all of the threads, and locks them in one order.
    """
    waves: list[list[RunRequest]] = [[]]
    wave_of: dict[str, int] = {}
    for request in group:
        last = wave_of.get(request.thread_id)
        number = 0 if last is None else last + (request.multitask_strategy in SUPERSEDING)
        wave_of[request.thread_id] = number
        if number == len(waves):
            waves.append([])
        waves[number].append(request)
    return waves


def _write_wave(wave: Sequence[RunRequest], catalogue: Catalogue, floors: Floors) -> Iterator[_Part]:
    tenant = wave[0].tenant
    counts = Counter(request.thread_id for request in wave)
    firsts: dict[str, RunRequest] = {}
    for request in wave:
        firsts.setdefault(request.thread_id, request)
    superseding = [request for request in firsts.values() if request.multitask_strategy in SUPERSEDING]
    certain = {r.thread_id for r in wave if r.surely_enters} - {r.thread_id for r in superseding}
    enter = Step(
        enter_threads(),
        {
            "tenant": tenant,
            "thread_ids": list(counts),
            "counts": list(counts.values()),
            "enters": [thread_id in certain for thread_id in counts],
        },
    )
    yield _Part(None, enter)
    yield from _supersede(superseding)
    for start in range(0, len(wave), AT_ONCE):
        lot = wave[start : start + AT_ONCE]
        records = []
        for request in lot:
            counts[request.thread_id] -= 1
            first = firsts[request.thread_id] is request
            policy = catalogue.graph(request.graph).policy
            records.append(request.record(counts[request.thread_id], first=first, policy=policy))
        graphs = {request.graph for request in lot}
        looks_for = (tenant, graphs.pop()) if len(graphs) == 1 else None
        insert = Step(
            insert_runs(),
            {
                "floor": BEGINNING if looks_for is None else floors.of(looks_for),
                "the_tenant": tenant,
                "runs": f"[{','.join(records)}]",
                "uncertain": list({request.thread_id for request in lot} - certain) or None,
            },
        )
        yield _Part("inserted", insert, looks_for)


def _supersede(requests: Sequence[RunRequest]) -> Iterator[_Part]:
    """The statements that end what is unfinished on the threads of these requests, one for each thread."""
    if not requests:
        return
    parameters = {
        "the_tenant": requests[0].tenant,
        "thread_ids": [request.thread_id for request in requests],
        "actions": [request.multitask_strategy for request in requests],
        "keys": [request.idempotency_key for request in requests],
        "errors": [json.dumps(cancelled(r.multitask_strategy, "for a newer run")) for r in requests],
        "causes": [f"multitask {request.multitask_strategy}" for request in requests],
    }
    yield _Part("superseded", Step(supersede(), parameters))
    for request in requests:
        for step in taking_back(request.multitask_strategy, request.tenant, request.thread_id):
            yield _Part(None, step)


def _look_up(missing: Sequence[RunRequest], *, bind: bool) -> Plan[dict[str, Row]]:
    """The runs that already have the idempotency keys of those that were not inserted."""
    found: dict[str, Row] = {}
    for request in missing:
        if request.idempotency_key is None:
            continue
        steps = [Step(find_by_idempotency_key(), {
            "tenant": request.tenant, "idempotency_key": request.idempotency_key,
        })]  # fmt: skip
        if bind:
            steps.insert(0, Step(bind_tenant(), {"tenant": request.tenant}))
        results = yield Batch(steps, final=False)
        if results[-1]:
            found[request.id] = results[-1][0]
    return found


def _rank_heads(requests: Sequence[RunRequest], written: _Written, *, bind: bool) -> Plan[None]:
    """Sees to the runs that follow, on the same threads, those that were left out."""
    left_out = {(r.tenant, r.thread_id) for r in requests if r.id not in written.inserted}
    followed = [r for r in requests if r.id in written.inserted and (r.tenant, r.thread_id) in left_out]
    steps = []
    for group in _by_tenant(followed):
        tenant = group[0].tenant
        if bind:
            steps.append(Step(bind_tenant(), {"tenant": tenant}))
        thread_ids = sorted({request.thread_id for request in group})
        steps.append(Step(rank_heads(), {"the_tenant": tenant, "thread_ids": thread_ids}))
    if steps:
        yield Batch(steps, final=False)


def _enqueued(requests: Sequence[RunRequest], written: _Written, found: dict[str, Row]) -> Enqueued:
    inserted, superseded = written
    runs, bells = [], []
    for request in requests:
        row = inserted.get(request.id)
        if row is None:
            runs.append(_known(request, found.get(request.id)))
        elif request.id in superseded:
            runs.append(run_of(superseded[request.id]))
        else:
            runs.append(_entered(request, row))
            if row["rings"]:
                bells.append(Bell(uuid.UUID(request.id), request.tenant, request.thread_id, request.graph))
    return Enqueued(runs, bells, [row["id"] for row in superseded.values()])


def _entered(request: RunRequest, row: Row) -> Run:
    """The run of a request that was inserted, of which Postgres tells only what it has added."""
    return Run(
        id=request.id,
        tenant=request.tenant,
        thread_id=request.thread_id,
        graph=request.graph,
        status="pending",
        seq=row["seq"],
        attempt=0,
        created_at=row["created_at"],
        started_at=None,
        finished_at=None,
        output=None,
        error=None,
        metadata=row["metadata"] or {},
    )


def _known(request: RunRequest, row: Row | None) -> Run:
    """The run that has the request's idempotency key. Raises ThreadBusy and IdempotencyConflict."""
    if row is None:
        raise ThreadBusy(request.tenant, request.thread_id)
    if bytes(row["payload_hash"]).hex() != request.payload_hash:
        raise IdempotencyConflict(str(request.idempotency_key), str(row["id"]))
    return run_of(row)
