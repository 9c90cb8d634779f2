"""Replays of many dead letters, as jobs that can be watched, stopped and continued."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, bindparam, exists, func, literal, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY, UUID
from sqlalchemy.sql import Executable
from uuid_utils.compat import uuid7

from threadmill.core.doorbell import Bell
from threadmill.core.errors import (
    DeadLetterNotFound,
    InvalidOption,
    JobNotFound,
    JobNotRunning,
    NothingMatches,
    NotReplayable,
)
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.models import ReplayJob as ReplayJobRow
from threadmill.core.models import table_of
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    JOB_COLUMNS,
    advance_job,
    begin_job,
    hold_job,
    lock_threads,
    take_turns,
)
from threadmill.dlq.filter import LetterFilter
from threadmill.dlq.preview import REPLAYABLE, check_mode, parse_letter_id, preview_of, standings
from threadmill.dlq.replaying import replay_locked, waking
from threadmill.dlq.velocity import admit, check_rate
from threadmill.producers.queries import check_page
from threadmill.producers.run import timestamp

# So many dead letters are replayed in one transaction at the most, and so many are counted and named.
BATCH = 100
MOST = 100_000
MAX_IDS = 10_000
# Seconds: what a job's rate lets through at once; until room is looked for again; and how long a limit is
# waited for at the most, as it may be lifted and the job be stopped.
BEAT = 0.1
LOOK_AGAIN = 0.1
LONGEST_WAIT = 1.0
# Milliseconds that a batch waits for a lock; then it is begun anew.
PATIENCE = "5000"
LANES = (("tenants", "tenant"), ("thread_ids", "thread_id"))

_letters, _jobs = table_of(DeadLetterRow), table_of(ReplayJobRow)
_BY_ID = select(*JOB_COLUMNS).where(_jobs.c.id == bindparam("job_id", type_=UUID(as_uuid=True)))


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """A replay of many dead letters, at one moment.

    filter: what selects them, as `LetterFilter.to_dict` gives it, or {"ids": […]}. total: how many there were
    when it began, bounded. replayed, skipped: of those that were looked at so far. status: running, stopped
    or done. position: the id of the last one that was looked at.
    """

    id: str
    filter: dict[str, Any]
    mode: str
    rate: float | None
    by: str
    status: str
    total: int
    replayed: int
    skipped: int
    position: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON values."""
        return {
            "id": self.id,
            "filter": self.filter,
            "mode": self.mode,
            "rate": self.rate,
            "by": self.by,
            "status": self.status,
            "total": self.total,
            "replayed": self.replayed,
            "skipped": self.skipped,
            "position": self.position,
            "created_at": timestamp(self.created_at),
            "updated_at": timestamp(self.updated_at),
        }


def job_of(row: Row) -> ReplayJob:
    """The job of a row with JOB_COLUMNS."""
    return ReplayJob(
        id=str(row["id"]),
        filter=row["filter"],
        mode=row["mode"],
        rate=row["rate"],
        by=row["by"],
        status=row["status"],
        total=row["total"],
        replayed=row["replayed"],
        skipped=row["skipped"],
        position=None if row["position"] is None else str(row["position"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


# -- beginning, reading, stopping -------------------------------------------------------------------


def start_job(
    which: LetterFilter | Sequence[str], mode: str, rate: float | None, by: str, tenant: str | None
) -> Plan[ReplayJob]:
    """The plan of `Desk.start_job`. tenant: to whom the desk is bound."""
    check_mode(mode)
    if rate is not None:
        check_rate(rate)
    if isinstance(which, LetterFilter):
        chosen = (replace(which, tenant=tenant) if tenant is not None else which).to_dict()
        if tenant is not None and which.tenant not in (None, tenant):
            raise NothingMatches(_words(which.to_dict()))
    else:
        ids = yield from _check_each(which, tenant)
        chosen = {"ids": ids, **({} if tenant is None else {"tenant": tenant})}
    (found,) = yield Batch([Step(_extent(chosen), {})], final=False)
    if not found[0]["total"]:
        raise NothingMatches(_words(chosen))
    parameters = {"filter": chosen, "mode": mode, "rate": rate, "by": by}
    extent = {"last": uuid.UUID(str(found[0]["last"])), "total": found[0]["total"]}
    (rows,) = yield Batch([Step(begin_job(), {"job_id": uuid7(), **parameters, **extent})])
    return job_of(rows[0])


def read_job(job_id: str, tenant: str | None, *, final: bool = True) -> Plan[ReplayJob]:
    """The job. Raises JobNotFound, also for one of more than the tenant's dead letters."""
    (rows,) = yield Batch([Step(_BY_ID, {"job_id": _parse(job_id)})], final)
    if not rows or (tenant is not None and rows[0]["filter"].get("tenant") != tenant):
        raise JobNotFound(job_id)
    return job_of(rows[0])


def list_jobs(limit: int, after: str | None, tenant: str | None) -> Plan[list[ReplayJob]]:
    """A page of jobs, newest first. Raises InvalidOption."""
    check_page(limit, after)
    query = select(*JOB_COLUMNS).order_by(_jobs.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(_jobs.c.id < uuid.UUID(after))
    if tenant is not None:
        query = query.where(_jobs.c.filter["tenant"].astext == tenant)
    (rows,) = yield Batch([Step(query, {})])
    return [job_of(row) for row in rows]


def restatus_job(job_id: str, transition: Executable, tenant: str | None) -> Plan[ReplayJob]:
    """The job after `stop_job` or `continue_job`. Raises JobNotFound and JobNotRunning."""
    before = yield from read_job(job_id, tenant, final=False)
    (rows,) = yield Batch([Step(transition, {"job_id": uuid.UUID(before.id)})])
    if not rows:
        raise JobNotRunning(before.id, before.status)
    return job_of(rows[0])


def _parse(job_id: str) -> uuid.UUID:
    try:
        return uuid.UUID(job_id)
    except (ValueError, AttributeError, TypeError):
        raise JobNotFound(str(job_id)) from None


def _words(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in chosen.items())


def _check_each(letter_ids: Sequence[str], tenant: str | None) -> Plan[list[str]]:
    """The ids, each once, if each can be replayed. Raises what `Desk.start_job` raises for ids."""
    if isinstance(letter_ids, str) or not 1 <= len(letter_ids) <= MAX_IDS:
        raise InvalidOption("ids", "…", f"must be 1 to {MAX_IDS} ids; a filter selects more")
    keys = {parse_letter_id(letter_id): letter_id for letter_id in letter_ids}
    query = select(_letters.c.id, _letters.c.status, _letters.c.tenant, _letters.c.run_id)
    (rows,) = yield Batch([Step(query.where(_letters.c.id == _any(list(keys))), {})], final=False)
    found = {row["id"]: row for row in rows}
    for key, shown in keys.items():
        row = found.get(key)
        if row is None or tenant not in (None, row["tenant"]):
            raise DeadLetterNotFound(shown)
        if row["status"] not in REPLAYABLE:
            raise NotReplayable(shown, row["status"])
        if row["run_id"] is None:
            raise NotReplayable(shown, row["status"], "its message could not be delivered, so it has no run")
    return [str(key) for key in keys]


def _selected(chosen: dict[str, Any]) -> list[ColumnElement[bool]]:
    """What the job may replay. chosen: its filter."""
    open_ones = [_letters.c.status.in_([literal_column(f"'{status}'") for status in REPLAYABLE])]
    if "ids" in chosen:
        meant = [_letters.c.id == _any([uuid.UUID(letter_id) for letter_id in chosen["ids"]])]
        if "tenant" in chosen:
            meant.append(_letters.c.tenant == chosen["tenant"])
    else:
        meant = LetterFilter.from_dict(chosen).conditions()
    return [*meant, *open_ones, _letters.c.run_id.is_not(None)]


def _any(ids: Sequence[uuid.UUID]) -> ColumnElement[uuid.UUID]:
    return func.any(literal(ids, ARRAY(UUID(as_uuid=True))))


def _extent(chosen: dict[str, Any]) -> Executable:
    """The newest id, and how many there are, counted up to MOST."""
    counted = select(_letters.c.id).where(*_selected(chosen)).limit(MOST).subquery("counted")
    newest = (
        select(_letters.c.id).where(*_selected(chosen)).order_by(_letters.c.id.desc()).limit(1)
    ).scalar_subquery()
    return select(func.count().label("total"), newest.label("last")).select_from(counted)


# -- going forward ----------------------------------------------------------------------------------


class Progress(NamedTuple):
    """What one batch of a job has come to.

    bells: to be rung once it is committed. wait: seconds until there may be more to do; 0 for at once.
    """

    job: ReplayJob
    bells: list[Bell]
    wait: float


class Runner:
    """Takes a job forward, batch by batch, each in a transaction of its own.

    As many dead letters are under way at once as the replay worker may have (`replay_window`), and what one
    thread has goes one after the other: whether a later one can resume shows when an earlier one is done.
    """

    def __init__(self, settings: Settings) -> None:
        self._window = settings.replay_window

    def advance(self, job_id: uuid.UUID) -> Plan[Progress]:
        """The next batch. Raises JobNotFound."""
        (held,) = yield Batch([Step(hold_job(), {"job_id": job_id})], final=False)
        if not held:
            raise JobNotFound(str(job_id))
        row = held[0]
        if row["status"] != "running":
            return Progress(job_of(row), [], 0)
        size, wait = _pace(row)
        if wait > 0:
            return Progress(job_of(row), [], min(wait, LONGEST_WAIT))
        # Drainers and jobs count one after the other what is under way, or two would fill the last place.
        turn = Step(take_turns(), {"patience": PATIENCE})
        _, (under_way,) = yield Batch([turn, Step(_UNDER_WAY, {"most": self._window})], final=False)
        size = min(size, self._window - under_way["count"])
        if size <= 0:
            return Progress(job_of(row), [], LOOK_AGAIN)
        (found,) = yield Batch([Step(_candidates(row, size), {})], final=False)
        batch = _one_a_thread(found)
        if found and not batch:
            return Progress(job_of(row), [], LOOK_AGAIN)
        batch, spent, wait = yield from _admitted(batch)
        if found and not batch:
            return Progress(job_of(row), [], min(wait or LOOK_AGAIN, LONGEST_WAIT))
        bells = yield from _replay(batch, row, spent)
        to = batch[-1]["id"] if batch else None
        return (yield from _advanced(row, to, len(batch), bells, is_done=not found))


def _pace(row: Row) -> tuple[int, float]:
    """How many the job's own rate lets through at once, and in how many seconds. row: of `hold_job`."""
    if row["rate"] is None:
        return BATCH, 0.0
    size = max(1, min(BATCH, int(row["rate"] * BEAT)))
    if row["position"] is None:
        return size, 0.0
    return size, max(0.0, size / row["rate"] - row["rested"])


def _one_a_thread(found: Rows) -> list[Row]:
    """Those before the first one whose thread has another under way, or in the same batch."""
    batch: list[Row] = []
    threads = set()
    for row in found:
        place = (row["tenant"], row["thread_id"])
        if row["behind"] or place in threads:
            break
        threads.add(place)
        batch.append(row)
    return batch


def _admitted(batch: list[Row]) -> Plan[tuple[list[Row], list[Step], float]]:
    """Those before the first that the ledger's limits hold back, what they spend, and how long that is."""
    if not batch:
        return [], [], 0.0
    admission = yield from admit(batch)
    wait = min(admission.waits, default=0.0)
    let_through = {row["id"] for row in admission.letters}
    first = list(takewhile(lambda row: row["id"] in let_through, batch))
    if len(first) < len(let_through):
        admission = yield from admit(first)
    return first, admission.steps, wait


def _under_way_query() -> Executable:
    taken = (
        select(_letters.c.id)
        .where(_letters.c.status == literal_column("'replaying'"))
        .limit(bindparam("most"))
        .subquery("taken")
    )
    return select(func.count().label("count")).select_from(taken)


_UNDER_WAY = _under_way_query()


def _candidates(job: Row, size: int) -> Executable:
    """The job's next dead letters in the order of their ids. job: with JOB_COLUMNS."""
    earlier = _letters.alias("earlier")
    behind = exists(
        select(earlier.c.id).where(
            earlier.c.tenant == _letters.c.tenant,
            earlier.c.thread_id == _letters.c.thread_id,
            earlier.c.seq < _letters.c.seq,
            earlier.c.status == literal_column("'replaying'"),
        )
    )
    query = (
        select(
            _letters.c.id,
            _letters.c.tenant,
            _letters.c.thread_id,
            _letters.c.graph,
            behind.label("behind"),
        )
        .where(*_selected(job["filter"]), _letters.c.id <= job["last"])
        .order_by(_letters.c.id)
        .limit(size)
    )
    return query if job["position"] is None else query.where(_letters.c.id > job["position"])


def _replay(batch: Sequence[Row], job: Row, spent: Sequence[Step]) -> Plan[list[Bell]]:
    """Replays those of the batch that can be, under the locks of their threads, taken in one order.

    spent: what the batch takes of the limits in the ledger.
    """
    if not batch:
        return []
    lanes = {name: [row[column] for row in batch] for name, column in LANES}
    look = Step(standings(), {"letter_ids": [row["id"] for row in batch]})
    _, stands = yield Batch([Step(lock_threads(), lanes), look], final=False)
    may_be = [row for row in stands if preview_of(row, job["mode"]).refusal is None]
    replayed = yield from replay_locked(may_be, job["mode"], job["by"], job=str(job["id"]), ahead=spent)
    return list(replayed.values())


def _advanced(
    job: Row, to: uuid.UUID | None, looked_at: int, bells: list[Bell], *, is_done: bool
) -> Plan[Progress]:
    (rows,) = yield Batch(
        [
            Step(
                advance_job(),
                {
                    "job_id": job["id"],
                    "before": job["position"],
                    "to": to,
                    "more_replayed": len(bells),
                    "more_skipped": looked_at - len(bells),
                    "is_done": is_done,
                },
            )
        ],
        final=False,
    )
    if not rows:  # its row is held, so nobody can have
        raise JobNotRunning(str(job["id"]), "advanced by another")
    return Progress(job_of(rows[0]), waking(bells), 0)
