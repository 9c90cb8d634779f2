"""Admitting and binding a tenant's transaction, and what puts runs in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    exists,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, UUID
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.terms import (
    DOORBELL_CHANNEL,
    HELD,
    KEEP_PLANS,
    RUNS,
    TENANT_SETTING,
    THREADS,
    WORKERS,
    another_running,
    counts_as,
    earlier_unfinished,
    is_held,
    is_unfinished,
    rank_at,
    word,
)


@cache
def bind_tenant() -> Executable:
    """Goes down to the tenant-bound role for the rest of the transaction. Parameter: tenant."""
    return select(
        func.set_config("role", f"{SCHEMA}_tenant", true()),
        func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()),
    )


@cache
def borrow_tenant() -> Executable:
    """Binds a caller's transaction to a tenant, in the caller's own role. Parameter: tenant.

    Returns `before`, to which `return_tenant` sets it back.
    """
    # Materialised, so that it is read before it is set.
    before = select(func.current_setting(TENANT_SETTING, true()).label("before")).cte("standing")
    before = before.prefix_with("materialized")
    return select(before.c.before, func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()))


@cache
def return_tenant() -> Executable:
    """Parameter: before."""
    return select(func.set_config(TENANT_SETTING, func.coalesce(bindparam("before", type_=Text), ""), true()))


# ---------------------------------------------------------------------------------------------------
# Enqueue

# The SQLSTATE with which `admit` refuses; the figures are the error's detail, as JSON.
QUOTA_EXCEEDED = "TM002"
CANCELLED_CHANNEL = "threadmill_cancelled"
WORKERS_SETTING = "threadmill.workers"
# No more bells of one tenant are unanswered at once.
MAX_BELLS = 64
# What has not answered a bell for so many seconds will not: it is lost, and the leader rings again. So those
# that were answered since long ago are not read, which beside a transaction held open are still in the index.
BELL_LASTS = 10


def _admitted(*, fleet: bool) -> list[ColumnElement[Any]]:
    """What the function `admit` (of migration 0002, where it is explained) says of each bound."""
    keys, superseding = (bindparam(name, type_=ARRAY(Text)) for name in ("keys", "superseding"))

    def pending(bound: str) -> ColumnElement[Any]:
        function: ColumnElement[Any] = getattr(func, SCHEMA).admit(
            literal(bound == "fleet"),
            bindparam("tenant", type_=Text),
            bindparam(f"{bound}_adding", type_=BigInteger),
            keys,
            superseding,
            bindparam(f"{bound}_allowed", type_=BigInteger),
            bindparam(f"{bound}_known", type_=BigInteger),
            bindparam(f"{bound}_since", type_=UUID(as_uuid=True)),
            bindparam("mark", type_=UUID(as_uuid=True)),
            type_=ARRAY(BigInteger),
        )
        return function.label(f"{bound}_pending")

    return [pending(bound) for bound in (("tenant", "fleet") if fleet else ("tenant",))]


def _workers_counted() -> ColumnElement[str]:
    """Keeps for `insert_runs` how many workers there are, as a tenant may not count them."""
    workers = select(func.greatest(1, func.least(func.count(), MAX_BELLS))).select_from(WORKERS)
    return func.set_config(WORKERS_SETTING, cast(workers.scalar_subquery(), Text), true())


@cache
def admit(*, fleet: bool) -> Executable:
    """Fails with QUOTA_EXCEEDED where the runs to come are too many for the tenant or for the fleet.

    Returns tenant_pending and, with `fleet`, fleet_pending; null where there is no bound, else an array: how
    many are pending at the most, and where all were counted how many of them have ids before the mark.
    Parameters: tenant, keys and superseding (null for none), mark; tenant_adding, tenant_allowed,
    tenant_known, tenant_since; and with `fleet` the same four of the fleet.
    """
    return select(*_admitted(fleet=fleet), _workers_counted())


@cache
def admit_and_bind(*, fleet: bool) -> Executable:
    """`admit`, then `bind_tenant`: a tenant may not count the others' runs, so it is asked before."""
    admitted = select(*_admitted(fleet=fleet), _workers_counted()).cte("admitted")
    admitted = admitted.prefix_with("materialized")
    return select(
        admitted,
        func.set_config("role", f"{SCHEMA}_tenant", true()),
        func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()),
        literal_column(KEEP_PLANS),
    )


_NEW_RUN: tuple[Column[Any], ...] = (
    Column("id", UUID(as_uuid=True)),
    Column("thread_id", Text),
    Column("back", BigInteger),  # how many runs of the same call follow on the same thread
    Column("first", Boolean),  # no run of the same call goes before it on its thread
    Column("graph", Text),
    Column("input", JSON),
    Column("command", JSON),
    Column("config", JSON),
    Column("context", JSON),
    Column("metadata", JSONB),
    Column("priority", Integer),
    Column("max_attempts", Integer),
    Column("run_at", DateTime(timezone=True)),
    Column("deadline", DateTime(timezone=True)),
    Column("lifetime", Float),  # seconds from when it is due until its deadline, where none is given
    Column("idempotency_key", Text),
    Column("payload_hash", Text),
    Column("multitask_strategy", Text),
    Column("durability", Text),
    Column("on_dead_letter", Text),
    Column("stream_mode", ARRAY(Text)),
    Column("stream_subgraphs", Boolean),
    Column("trace_context", JSON),
)
# What stands for a key that a record does not have; for the others it is null.
WHERE_LEFT_OUT: Mapping[str, Any] = {
    "back": 0,
    "first": True,
    "priority": 0,
    "multitask_strategy": "enqueue",
    "stream_subgraphs": False,
}
# Those that are inserted as they came.
_COPIED = (
    "graph", "input", "command", "config", "context", "metadata", "priority", "max_attempts",
    "idempotency_key", "multitask_strategy", "durability", "on_dead_letter", "stream_mode",
    "stream_subgraphs", "trace_context",
)  # fmt: skip


@cache
def enter_threads() -> Executable:
    """Creates or locks the threads of an enqueue, in the order of their ids, and gives out their seqs.

    Parameters: tenant, thread_ids (distinct), counts (how many runs each gets), enters (whether it is certain
    that one is inserted, so that the thread is busy; `insert_runs` sees to the others).
    """
    entries = (
        func.unnest(
            bindparam("thread_ids", type_=ARRAY(Text)),
            bindparam("counts", type_=ARRAY(BigInteger)),
            bindparam("enters", type_=ARRAY(Boolean)),
        )
        .table_valued("thread_id", "count", "enters")
        .render_derived("entries")
    )
    # Every caller locks in the same order, so that two enqueues of several threads cannot deadlock.
    rows = select(
        bindparam("tenant", type_=Text),
        entries.c.thread_id,
        entries.c.count,
        case((entries.c.enters, word("busy")), else_=word("idle")),
    ).order_by(entries.c.thread_id)
    new = upsert(THREADS).from_select(["tenant", "thread_id", "last_seq", "status"], rows)
    enters = new.excluded.status == word("busy")
    return new.on_conflict_do_update(
        index_elements=[THREADS.c.tenant, THREADS.c.thread_id],
        set_={
            "last_seq": THREADS.c.last_seq + new.excluded.last_seq,
            "status": case((enters, word("busy")), else_=THREADS.c.status),
            "updated_at": case((enters, func.now()), else_=THREADS.c.updated_at),
        },
    )


@cache
def insert_runs() -> Executable:
    """Inserts the runs of one tenant.

    Returns of each that was inserted what its producer does not know: `id` as text, `seq`, `created_at`,
    `metadata` as it is kept (null where it is empty), `rings`, and `found`: the rank of what was ready
    before, or the time of the look where nothing was.

    A run whose idempotency key is taken, or whose strategy is reject on a busy thread, is left out; then
    `rank_heads`, as those that follow in the same call do not know of it.
    `rings`: its doorbell is the caller's to ring. It is at its thread's head and due, the tenant has nothing
    that was ready before, and fewer bells of the tenant's are unanswered than there are workers (`admit`
    counts them). What is not rung for is started when its tenant's turn comes.
    Parameters: the_tenant, runs (a JSON array of objects with the keys of _NEW_RUN, see WHERE_LEFT_OUT),
    uncertain (the threads that `enter_threads` did not make busy; null for none), floor (the rank from which
    to look for what was ready before, see `Floors`).
    """
    # Not `tenant`: SQLAlchemy has an update set the columns that parameters are named as.
    tenant = bindparam("the_tenant", type_=Text)
    # Once for each, as what is worked out is asked for several times below.
    entering = _entering(tenant).cte("entering").prefix_with("materialized")
    is_ready = and_(entering.c.rank.is_not(None), entering.c.run_at <= func.now())
    backlog = _backlog(tenant, entering).cte("backlog").prefix_with("materialized")
    rung = (
        select(entering.c.id)
        .where(is_ready, ~exists(select(backlog.c.rank)))
        .order_by(entering.c.id)
        .limit(func.greatest(0, _bells_left(tenant)))
        .cte("rung")
    )
    names = ("id", "thread_id", "seq", "run_at", "rank", "deadline", *_COPIED)
    rows = select(
        *(entering.c[name] for name in names),
        tenant,
        func.decode(entering.c.payload_hash, "hex"),
        case((entering.c.id.in_(select(rung.c.id)), func.now())),
    )
    insertion = upsert(RUNS).from_select([*names, "tenant", "payload_hash", "dispatched_at"], rows)
    inserted = (
        insertion.on_conflict_do_nothing(
            index_elements=[RUNS.c.tenant, RUNS.c.idempotency_key],
            index_where=RUNS.c.idempotency_key.is_not(None),
        )
        .returning(
            RUNS.c.id,
            RUNS.c.thread_id,
            RUNS.c.seq,
            RUNS.c.created_at,
            func.nullif(RUNS.c.metadata, literal_column("'{}'", JSONB)).label("metadata"),
            RUNS.c.dispatched_at.is_not(None).label("rings"),
        )
        .cte("inserted")
    )
    # A thread whose run was left out stays as it stands.
    entered = select(inserted.c.thread_id).where(
        inserted.c.thread_id == func.any(bindparam("uncertain", type_=ARRAY(Text)))
    )
    occupied = (
        update(THREADS)
        .where(
            THREADS.c.tenant == tenant,
            THREADS.c.thread_id == func.any(func.array(entered.scalar_subquery())),
        )
        .values(status=word("busy"), updated_at=func.now())
        .returning(THREADS.c.thread_id)
        .cte("occupied")
    )
    return select(
        cast(inserted.c.id, Text).label("id"),
        inserted.c.seq,
        inserted.c.created_at,
        inserted.c.metadata,
        inserted.c.rings,
        func.coalesce(select(backlog.c.rank).scalar_subquery(), inserted.c.created_at).label("found"),
    ).add_cte(occupied)


def _entering(tenant: ColumnElement[str]) -> Select[Any]:
    """The runs that are to be inserted, with their places. leads: nothing is before it on its thread."""
    new = (
        func.json_to_recordset(cast(bindparam("runs", type_=Text), JSON))
        .table_valued(*(column(c.name, c.type) for c in _NEW_RUN))
        .render_derived("new", with_types=True)
    )
    given = {
        **new.c,
        **{name: func.coalesce(new.c[name], value) for name, value in WHERE_LEFT_OUT.items()},
    }
    # Looked up row by row, by lateral and scalar subqueries with a limit: Postgres takes the JSON for 100
    # rows, and would rather hash the tenant's every thread and run than use an index for each.
    others = RUNS.alias("others")
    other = (
        select(others.c.id)
        .where(
            others.c.tenant == tenant,
            others.c.thread_id == new.c.thread_id,
            is_unfinished(others.c.status),
        )
        .limit(1)
        .correlate(new)
        .scalar_subquery()
    )
    thread = (
        select(
            THREADS.c.last_seq,
            case((given["first"], other.is_(null())), else_=false()).label("leads"),
        )
        .where(THREADS.c.tenant == tenant, THREADS.c.thread_id == new.c.thread_id)
        .limit(1)
        .lateral("thread")
    )
    run_at = func.coalesce(new.c.run_at, func.now())
    held = exists(select(HELD.c.seq).where(HELD.c.tenant == tenant, HELD.c.thread_id == new.c.thread_id))
    lifetime = func.make_interval(0, 0, 0, 0, 0, 0, new.c.lifetime)
    return (
        select(
            new.c.id,
            new.c.thread_id,
            *(given[name].label(name) for name in _COPIED),
            new.c.payload_hash,
            thread.c.leads,
            (thread.c.last_seq - given["back"]).label("seq"),
            run_at.label("run_at"),
            case((and_(thread.c.leads, ~held), rank_at(run_at, given["priority"]))).label("rank"),
            func.coalesce(new.c.deadline, func.greatest(run_at, func.now()) + lifetime).label("deadline"),
        )
        .select_from(new.join(thread, true()))
        .where(or_(given["multitask_strategy"] != word("reject"), thread.c.leads))
    )


def _backlog(tenant: ColumnElement[str], entering: CTE) -> Select[Any]:
    """A run that the tenant had ready, of a graph that now leads a thread, for which nobody has rung."""
    graphs = select(entering.c.graph).where(entering.c.leads).distinct().subquery("graphs")
    before = RUNS.alias("before")
    ready = (
        select(before.c.rank)
        .where(
            before.c.graph == graphs.c.graph,
            before.c.tenant == tenant,
            before.c.status == word("pending"),
            before.c.rank >= bindparam("floor", type_=DateTime(timezone=True)),
            before.c.rank <= func.now(),
            before.c.run_at <= func.now(),
            before.c.dispatched_at.is_(null()),
        )
        .order_by(before.c.rank)
        .limit(1)
        .lateral("ready")
    )
    return select(ready.c.rank).select_from(graphs.join(ready, true())).limit(1)


@cache
def rank_heads() -> Executable:
    """Gives the first run of each of these threads its rank, where it has none and nothing is before it.

    After `enter_threads`. Parameters: the_tenant, thread_ids.
    """
    return (
        update(RUNS)
        .where(
            RUNS.c.tenant == bindparam("the_tenant", type_=Text),
            RUNS.c.thread_id == func.any(bindparam("thread_ids", type_=ARRAY(Text))),
            RUNS.c.status == word("pending"),
            RUNS.c.rank.is_(null()),
            ~earlier_unfinished(RUNS),
            ~another_running(RUNS),
            ~is_held(RUNS),
        )
        .values(rank=rank_at(RUNS.c.run_at, RUNS.c.priority))
    )


def _bells_left(tenant: ColumnElement[str]) -> ColumnElement[int]:
    """How many bells may be rung for the tenant: one for each worker, so that all that are free are woken."""
    unanswered = (
        select(RUNS.c.id)
        .where(
            RUNS.c.tenant == tenant,
            counts_as(RUNS.c.status, "pending"),
            RUNS.c.dispatched_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, BELL_LASTS),
        )
        # So that the index of what was rung for is the cheapest, whatever the tables are like.
        .order_by(RUNS.c.dispatched_at.desc())
        .limit(MAX_BELLS)
        .subquery("unanswered")
    )
    workers = func.coalesce(cast(func.nullif(func.current_setting(WORKERS_SETTING, true()), ""), Integer), 1)
    return workers - select(func.count()).select_from(unanswered).scalar_subquery()


# What is shown of a run: everything but its input, command, config and context.
RUN_COLUMNS = (
    RUNS.c.id,
    RUNS.c.tenant,
    RUNS.c.thread_id,
    RUNS.c.graph,
    RUNS.c.status,
    RUNS.c.seq,
    RUNS.c.attempt,
    RUNS.c.created_at,
    RUNS.c.started_at,
    RUNS.c.finished_at,
    RUNS.c.output,
    RUNS.c.error,
    RUNS.c.metadata,
    RUNS.c.checkpoint_id,
)


@cache
def find_by_idempotency_key() -> Executable:
    """The run that has the key, with its payload's hash. Parameters: tenant, idempotency_key."""
    return select(*RUN_COLUMNS, RUNS.c.payload_hash).where(
        RUNS.c.tenant == bindparam("tenant"), RUNS.c.idempotency_key == bindparam("idempotency_key")
    )


@cache
def notify_cancelled() -> Executable:
    """Tells the leader, when the transaction commits, that a run is cancelled. Parameter: run_id (text)."""
    return select(func.pg_notify(CANCELLED_CHANNEL, bindparam("run_id", type_=Text)))


@cache
def announce_in_transaction() -> Executable:
    """Tells the leader, when the transaction commits, that a bell is to be rung. Parameter: bell (JSON)."""
    return select(func.pg_notify(DOORBELL_CHANNEL, bindparam("bell", type_=Text)))
