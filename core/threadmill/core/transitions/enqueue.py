"""Admitting and binding a tenant's transaction, and what puts runs in."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Float,
    Integer,
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
    RUNS,
    TENANT_SETTING,
    THREADS,
    WORKERS,
    another_running,
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
    Parameters: tenant, keys, superseding, mark; tenant_adding, tenant_allowed, tenant_known, tenant_since;
    and with `fleet` the same four of the fleet.
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
# Those that are inserted as they came.
_COPIED = (
    "graph", "input", "command", "config", "context", "metadata", "priority", "max_attempts",
    "idempotency_key", "multitask_strategy", "durability", "on_dead_letter", "stream_mode",
    "stream_subgraphs", "trace_context",
)  # fmt: skip


@cache
def enter_threads() -> Executable:
    """Creates or locks the threads of an enqueue, in the order of their ids, and gives out their seqs.

    Parameters: tenant, thread_ids (distinct), counts (how many runs each gets).
    """
    entries = (
        func.unnest(bindparam("thread_ids", type_=ARRAY(Text)), bindparam("counts", type_=ARRAY(BigInteger)))
        .table_valued("thread_id", "count")
        .render_derived("entries")
    )
    # Every caller locks in the same order, so that two enqueues of several threads cannot deadlock.
    rows = select(bindparam("tenant", type_=Text), entries.c.thread_id, entries.c.count).order_by(
        entries.c.thread_id
    )
    new = upsert(THREADS).from_select(["tenant", "thread_id", "last_seq"], rows)
    return new.on_conflict_do_update(
        index_elements=[THREADS.c.tenant, THREADS.c.thread_id],
        set_={"last_seq": THREADS.c.last_seq + new.excluded.last_seq},
    )


@cache
def insert_runs() -> Executable:
    """Inserts the runs of one tenant. Returns RUN_COLUMNS and `rings` for each that was inserted.

    A run whose idempotency key is taken, or whose strategy is reject on a busy thread, is left out; then
    `rank_heads`, as those that follow in the same call do not know of it.
    `rings`: its doorbell is the caller's to ring. It is at its thread's head and due, the tenant has nothing
    that was ready before, and fewer bells of the tenant's are unanswered than there are workers (`admit`
    counts them). What is not rung for is started when its tenant's turn comes.
    Parameters: the_tenant, runs (a JSON array of objects with the keys of _NEW_RUN).
    """
    new = (
        func.json_to_recordset(cast(bindparam("runs", type_=Text), JSON))
        .table_valued(*(column(c.name, c.type) for c in _NEW_RUN))
        .render_derived("new", with_types=True)
    )
    # Not `tenant`: SQLAlchemy has an update set the columns that parameters are named as.
    tenant = bindparam("the_tenant", type_=Text)
    # Looked up row by row, by lateral and scalar subqueries with a limit: Postgres takes the JSON for 100
    # rows, and would rather hash the tenant's every thread and run than use an index for each.
    thread = (
        select(THREADS.c.last_seq)
        .where(THREADS.c.tenant == tenant, THREADS.c.thread_id == new.c.thread_id)
        .limit(1)
        .lateral("thread")
    )
    others, before = RUNS.alias("others"), RUNS.alias("before")
    other = (
        select(others.c.id)
        .where(
            others.c.tenant == tenant,
            others.c.thread_id == new.c.thread_id,
            is_unfinished(others.c.status),
        )
        .limit(1)
        .scalar_subquery()
    )
    ready = (
        select(before.c.id)
        .where(
            before.c.graph == new.c.graph,
            before.c.tenant == tenant,
            before.c.status == word("pending"),
            before.c.rank <= func.now(),
            before.c.run_at <= func.now(),
            before.c.dispatched_at.is_(null()),
        )
        .order_by(before.c.rank)
        .limit(1)
        .scalar_subquery()
    )
    leads = and_(new.c.first, other.is_(null()))
    # Once for each, as they are asked for several times below.
    entering = (
        select(
            *new.c,
            (thread.c.last_seq - new.c.back).label("seq"),
            leads.label("leads"),
            case((leads, ready.is_not(null())), else_=false()).label("backlog"),
        )
        .select_from(new.join(thread, true()))
        .cte("entering")
        .prefix_with("materialized")
    )
    run_at = func.coalesce(entering.c.run_at, func.now())
    held = exists(select(HELD.c.seq).where(HELD.c.tenant == tenant, HELD.c.thread_id == entering.c.thread_id))
    values = {
        "id": entering.c.id,
        "tenant": tenant,
        "thread_id": entering.c.thread_id,
        "seq": entering.c.seq,
        "run_at": run_at,
        "rank": case((and_(entering.c.leads, ~held), rank_at(run_at, entering.c.priority))),
        "backlog": entering.c.backlog,
        "deadline": func.coalesce(
            entering.c.deadline,
            func.greatest(run_at, func.now()) + func.make_interval(0, 0, 0, 0, 0, 0, entering.c.lifetime),
        ),
        "payload_hash": func.decode(entering.c.payload_hash, "hex"),
        **{name: entering.c[name] for name in _COPIED},
    }
    rows = (
        select(*(value.label(name) for name, value in values.items()))
        .where(or_(entering.c.multitask_strategy != word("reject"), entering.c.leads))
        .cte("new_run")
    )
    is_ready = and_(rows.c.rank.is_not(None), rows.c.run_at <= func.now())
    rings = and_(
        is_ready,
        ~func.bool_or(rows.c.backlog).over(),
        func.count().filter(is_ready).over(order_by=rows.c.id) <= _bells_left(tenant),
    )
    columns = [name for name in values if name != "backlog"]
    insertion = upsert(RUNS).from_select(
        [*columns, "dispatched_at"], select(*(rows.c[name] for name in columns), case((rings, func.now())))
    )
    inserted = (
        insertion.on_conflict_do_nothing(
            index_elements=[RUNS.c.tenant, RUNS.c.idempotency_key],
            index_where=RUNS.c.idempotency_key.is_not(None),
        )
        .returning(*RUN_COLUMNS, RUNS.c.dispatched_at.is_not(None).label("rings"))
        .cte("inserted")
    )
    # A thread whose run was left out stays as it stands.
    occupied = (
        update(THREADS)
        .where(
            THREADS.c.tenant == tenant,
            THREADS.c.thread_id == func.any(func.array(select(inserted.c.thread_id).scalar_subquery())),
        )
        .values(status=word("busy"), updated_at=func.now())
        .returning(THREADS.c.thread_id)
        .cte("occupied")
    )
    return select(inserted).add_cte(occupied)


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
            RUNS.c.status == word("pending"),
            RUNS.c.dispatched_at.is_not(None),
        )
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
