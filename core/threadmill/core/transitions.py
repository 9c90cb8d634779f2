"""Everything that can happen to a run, each as one SQLAlchemy Core statement.

A transition is a compare-and-set: its `where` names the state that it starts from, and no row back means
that the state was another. Whoever changes what may run on a thread first takes the lock of the thread's
row (`lock_thread`, or the upsert of `enter_thread`) in a statement of its own, so that the statement after
it, whose snapshot is newer than the lock, sees everything that was committed on that thread. That makes
the thread's row its lane:

- `seq` is given out under the lock, so the order of `seq` is the order of the commits;
- what ends a run looks for the thread's next run after it has the lock, and what enqueues a run looks
  whether it is at the head after it has the lock, so one of the two sees the other and rings.

Time is the database's clock throughout.

    pending ── claim ──► running ── succeed ──► success
       ▲  │                 │
       │  └── cancel ──► interrupted ◄── cancel
       │                    │
       └── replay ── error ◄┴── bury
"""

from __future__ import annotations

import datetime
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
    Interval,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
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

from threadmill.core.models import SCHEMA, DeadLetter, Graph, Run, Tenant, Thread, Worker, table_of
from threadmill.core.models import Attempt as AttemptRow

TENANT_SETTING = "threadmill.tenant"
DOORBELL_CHANNEL = "threadmill_doorbell"

_threads = table_of(Thread)
_runs = table_of(Run)
_letters = table_of(DeadLetter)
_attempts = table_of(AttemptRow)
_tenants = table_of(Tenant)
_workers = table_of(Worker)
_graphs = table_of(Graph)


def _word(value: str) -> ColumnElement[str]:
    """A status as a literal in the SQL, so that predicates of partial indexes are recognised."""
    return literal_column(f"'{value}'", Text)


def _seconds(parameter: str) -> ColumnElement[datetime.timedelta]:
    """An interval from a parameter in seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, bindparam(parameter, type_=Float), type_=Interval)


def _is_unfinished(status: Column[str] | ColumnElement[str]) -> ColumnElement[bool]:
    return status.in_([_word("pending"), _word("running")])


def _earlier_unfinished(run: Any) -> ColumnElement[bool]:
    """Whether the run's thread has an unfinished run before it."""
    earlier = _runs.alias("earlier")
    return exists(
        select(earlier.c.id).where(
            earlier.c.tenant == run.c.tenant,
            earlier.c.thread_id == run.c.thread_id,
            earlier.c.seq < run.c.seq,
            _is_unfinished(earlier.c.status),
        )
    )


def _lane_is_free() -> ColumnElement[bool]:
    """The run's thread is held by no dead letter, or by the run's own."""
    return exists(
        select(_threads.c.tenant).where(
            _threads.c.tenant == _runs.c.tenant,
            _threads.c.thread_id == _runs.c.thread_id,
            or_(
                _threads.c.held_by.is_(null()),
                _threads.c.held_by.in_(select(_letters.c.id).where(_letters.c.run_id == _runs.c.id)),
            ),
        )
    )


def _tenant_is_paused() -> ColumnElement[bool]:
    return exists(select(_tenants.c.name).where(_tenants.c.name == _runs.c.tenant, _tenants.c.paused))


# ---------------------------------------------------------------------------------------------------
# Binding a transaction


@cache
def bind_tenant() -> Executable:
    """Goes down to the tenant-bound role for the rest of the transaction. Parameter: tenant."""
    return select(
        func.set_config("role", f"{SCHEMA}_tenant", true()),
        func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()),
    )


# ---------------------------------------------------------------------------------------------------
# Enqueue

_NEW_RUN = (
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
    Column("idempotency_key", Text),
    Column("payload_hash", Text),
    Column("multitask_strategy", Text),
    Column("durability", Text),
    Column("trace_context", JSON),
)
# Those that are inserted as they came.
_COPIED = (
    "graph", "input", "command", "config", "context", "metadata", "priority", "max_attempts", "deadline",
    "idempotency_key", "multitask_strategy", "durability", "trace_context",
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
    rows = select(
        bindparam("tenant", type_=Text), entries.c.thread_id, _word("busy"), entries.c.count
    ).order_by(entries.c.thread_id)
    new = upsert(_threads).from_select(["tenant", "thread_id", "status", "last_seq"], rows)
    return new.on_conflict_do_update(
        index_elements=[_threads.c.tenant, _threads.c.thread_id],
        set_={
            "last_seq": _threads.c.last_seq + new.excluded.last_seq,
            "status": _word("busy"),
            "updated_at": func.now(),
        },
    )


@cache
def insert_runs() -> Executable:
    """Inserts the runs of one tenant. Returns RUN_COLUMNS and `rings` for each that was inserted.

    A run whose idempotency key is taken, or whose strategy is reject on a busy thread, is left out.
    `rings`: the run is at its thread's head and due, so its doorbell is the caller's to ring.
    Parameters: tenant, runs (a JSON array of objects with the keys of _NEW_RUN).
    """
    new = (
        func.json_to_recordset(cast(bindparam("runs", type_=Text), JSON))
        .table_valued(*(column(c.name, c.type) for c in _NEW_RUN))
        .render_derived("new", with_types=True)
    )
    tenant = bindparam("tenant", type_=Text)
    seq = _threads.c.last_seq - new.c.back
    run_at = func.coalesce(new.c.run_at, func.now())
    others = _runs.alias("others")
    busy = exists(
        select(others.c.id).where(
            others.c.tenant == tenant,
            others.c.thread_id == new.c.thread_id,
            _is_unfinished(others.c.status),
        )
    )
    rings = and_(new.c.first, ~busy, _threads.c.held_by.is_(null()), run_at <= func.now())
    values = {
        "id": new.c.id,
        "tenant": tenant,
        "thread_id": new.c.thread_id,
        "seq": seq,
        "run_at": run_at,
        "dispatched_at": case((rings, func.now())),
        "payload_hash": func.decode(new.c.payload_hash, "hex"),
        **{name: new.c[name] for name in _COPIED},
    }
    rows = (
        select(*values.values())
        .select_from(
            new.join(_threads, and_(_threads.c.tenant == tenant, _threads.c.thread_id == new.c.thread_id))
        )
        .where(or_(new.c.multitask_strategy != _word("reject"), and_(new.c.first, ~busy)))
    )
    inserted = upsert(_runs).from_select(list(values), rows)
    return inserted.on_conflict_do_nothing(
        index_elements=[_runs.c.tenant, _runs.c.idempotency_key],
        index_where=_runs.c.idempotency_key.is_not(None),
    ).returning(*RUN_COLUMNS, _runs.c.dispatched_at.is_not(None).label("rings"))


# What is shown of a run: everything but its input, command, config and context.
RUN_COLUMNS = (
    _runs.c.id,
    _runs.c.tenant,
    _runs.c.thread_id,
    _runs.c.graph,
    _runs.c.status,
    _runs.c.seq,
    _runs.c.attempt,
    _runs.c.created_at,
    _runs.c.started_at,
    _runs.c.finished_at,
    _runs.c.output,
    _runs.c.error,
    _runs.c.metadata,
    _runs.c.checkpoint_id,
)


@cache
def find_by_idempotency_key() -> Executable:
    """The run that has the key, with its payload's hash. Parameters: tenant, idempotency_key."""
    return select(*RUN_COLUMNS, _runs.c.payload_hash).where(
        _runs.c.tenant == bindparam("tenant"), _runs.c.idempotency_key == bindparam("idempotency_key")
    )


@cache
def announce_in_transaction() -> Executable:
    """Tells the leader, when the transaction commits, that a bell is to be rung. Parameter: bell (JSON)."""
    return select(func.pg_notify(DOORBELL_CHANNEL, bindparam("bell", type_=Text)))


# ---------------------------------------------------------------------------------------------------
# Claim


@cache
def lock_thread() -> Executable:
    """Takes the lane. Parameters: tenant, thread_id."""
    return (
        select(_threads.c.status)
        .where(_threads.c.tenant == bindparam("tenant"), _threads.c.thread_id == bindparam("thread_id"))
        .with_for_update()
    )


@cache
def claim() -> Executable:
    """pending → running: gives the run to one attempt of one worker, after `lock_thread`.

    Returns the run's row; none where it is not due, not at its thread's head, held back by a dead letter,
    or its tenant is paused. Parameters: run_id, tenant, thread_id, worker_id,
    graph_version.
    """
    return (
        update(_runs)
        .where(
            _runs.c.id == bindparam("run_id"),
            _runs.c.tenant == bindparam("tenant"),
            _runs.c.thread_id == bindparam("thread_id"),
            _runs.c.status == _word("pending"),
            _runs.c.run_at <= func.now(),
            ~_earlier_unfinished(_runs),
            _lane_is_free(),
            ~_tenant_is_paused(),
        )
        .values(
            status=_word("running"),
            attempt=_runs.c.attempt + 1,
            worker_id=bindparam("worker_id", type_=UUID(as_uuid=True)),
            graph_version=bindparam("graph_version", type_=Text),
            started_at=func.coalesce(_runs.c.started_at, func.now()),
            dispatched_at=func.now(),
        )
        .returning(
            _runs.c.id,
            _runs.c.tenant,
            _runs.c.thread_id,
            _runs.c.seq,
            _runs.c.graph,
            _runs.c.attempt,
            _runs.c.max_attempts,
            _runs.c.input,
            _runs.c.command,
            _runs.c.config,
            _runs.c.context,
            _runs.c.metadata,
            _runs.c.durability,
            _runs.c.deadline,
        )
    )


# ---------------------------------------------------------------------------------------------------
# The end of a run


def _held_run() -> ColumnElement[bool]:
    """The attempt still holds its lease: compare-and-set by status and attempt."""
    return and_(
        _runs.c.id == bindparam("run_id"),
        _runs.c.attempt == bindparam("attempt", type_=Integer),
        _runs.c.status == _word("running"),
    )


def _next_of(ended: CTE) -> CTE:
    """The thread's next run, whether due or not."""
    return (
        select(_runs.c.id, _runs.c.run_at)
        .join(ended, and_(_runs.c.tenant == ended.c.tenant, _runs.c.thread_id == ended.c.thread_id))
        .where(_is_unfinished(_runs.c.status), _runs.c.id != ended.c.id)
        .order_by(_runs.c.seq)
        .limit(1)
        .cte("following")
    )


def _ring_for(following: CTE, *, unless: ColumnElement[bool] | None = None) -> CTE:
    """Marks the next run as rung for, if it is due, so that the caller rings."""
    due = [_runs.c.id == following.c.id, _runs.c.status == _word("pending"), following.c.run_at <= func.now()]
    if unless is not None:
        due.append(~unless)
    return (
        update(_runs)
        .where(*due)
        .values(dispatched_at=func.now())
        .returning(_runs.c.id, _runs.c.tenant, _runs.c.thread_id, _runs.c.graph)
        .cte("rung")
    )


def _bells(*extra: CTE, rung: CTE, ended: CTE) -> Executable:
    """One row if the run was ended, with the bell that is the caller's to ring, if there is one."""
    statement = select(
        ended.c.id.label("run_id"),
        rung.c.id.label("next_id"),
        rung.c.tenant.label("next_tenant"),
        rung.c.thread_id.label("next_thread_id"),
        rung.c.graph.label("next_graph"),
    ).select_from(ended.outerjoin(rung, true()))
    return statement.add_cte(*extra) if extra else statement


def _update_thread(ended: CTE, **values: Any) -> CTE:
    return (
        update(_threads)
        .where(_threads.c.tenant == ended.c.tenant, _threads.c.thread_id == ended.c.thread_id)
        .values(updated_at=func.now(), **values)
        .returning(_threads.c.tenant)
        .cte("thread")
    )


def _status_after(following: CTE, status: ColumnElement[str]) -> ColumnElement[str]:
    """busy while the thread has another run to do, else what its last run left it in."""
    return case((exists(select(following.c.id)), _word("busy")), else_=status)


@cache
def succeed() -> Executable:
    """running → success: keeps the output, frees the thread, resolves the run's dead letter if it has one.

    After `lock_thread`. No row: the lease is lost and nothing was written.
    Parameters: run_id, attempt, output, checkpoint_id, thread_status, interrupts, next_nodes.
    """
    ended = (
        update(_runs)
        .where(_held_run())
        .values(
            status=_word("success"),
            finished_at=func.now(),
            output=bindparam("output", type_=JSON(none_as_null=True)),
            error=null(),
            checkpoint_id=bindparam("checkpoint_id", type_=Text),
        )
        .returning(_runs.c.id, _runs.c.tenant, _runs.c.thread_id)
        .cte("ended")
    )
    following = _next_of(ended)
    resolved = (
        update(_letters)
        .where(_letters.c.run_id == ended.c.id, _letters.c.status == _word("replaying"))
        .values(status=_word("resolved"), updated_at=func.now(), next_replay_at=null())
        .returning(_letters.c.id)
        .cte("resolved_letter")
    )
    thread = _update_thread(
        ended,
        status=_status_after(following, bindparam("thread_status", type_=Text)),
        interrupts=bindparam("interrupts", type_=JSON(none_as_null=True)),
        next_nodes=bindparam("next_nodes", type_=ARRAY(Text)),
        held_by=case((_threads.c.held_by.in_(select(resolved.c.id)), null()), else_=_threads.c.held_by),
    )
    return _bells(thread, resolved, rung=_ring_for(following), ended=ended)


@cache
def bury() -> Executable:
    """running → error: the run's end, its attempt's record and its dead letter, all or nothing.

    After `lock_thread`. A replayed run's own dead letter goes back to waiting. With `hold`, the thread's
    later runs wait for the dead letter. No row: the lease is lost and nothing was written.
    Parameters: run_id, attempt, letter_id, reason, error, node, checkpoint_id, exception_type, message,
    traceback, fingerprint, next_nodes, hold (a boolean).
    """
    error = bindparam("error", type_=JSON)
    node = bindparam("node", type_=Text)
    checkpoint_id = bindparam("checkpoint_id", type_=Text)
    traceback = bindparam("traceback", type_=Text)
    hold = cast(bindparam("hold"), _tenants.c.paused.type)
    ended = (
        update(_runs)
        .where(_held_run())
        .values(status=_word("error"), finished_at=func.now(), error=error, checkpoint_id=checkpoint_id)
        .returning(
            _runs.c.id,
            _runs.c.tenant,
            _runs.c.thread_id,
            _runs.c.graph,
            _runs.c.attempt,
            _runs.c.worker_id,
            _runs.c.dispatched_at,
        )
        .cte("ended")
    )
    attempt = (
        insert(_attempts)
        .from_select(
            [
                "run_id", "attempt", "tenant", "worker_id", "started_at", "outcome",
                "node", "checkpoint_id", "exception_type", "message", "traceback",
            ],
            select(
                ended.c.id, ended.c.attempt, ended.c.tenant, ended.c.worker_id, ended.c.dispatched_at,
                _word("failed"), node, checkpoint_id, bindparam("exception_type", type_=Text),
                bindparam("message", type_=Text), traceback,
            ),
        )
        .returning(_attempts.c.run_id)
        .cte("recorded_attempt")
    )  # fmt: skip
    fields = {
        "reason": bindparam("reason", type_=Text),
        "error": error,
        "traceback": traceback,
        "node": node,
        "checkpoint_id": checkpoint_id,
        "fingerprint": bindparam("fingerprint", type_=Text),
    }
    new = upsert(_letters).from_select(
        ["id", "run_id", "tenant", "thread_id", "graph", *fields],
        select(
            bindparam("letter_id", type_=UUID(as_uuid=True)),
            ended.c.id,
            ended.c.tenant,
            ended.c.thread_id,
            ended.c.graph,
            *fields.values(),
        ),
    )
    letter = (
        new.on_conflict_do_update(
            index_elements=[_letters.c.run_id],
            set_={
                **{name: new.excluded[name] for name in fields},
                "status": _word("waiting"),
                "next_replay_at": null(),
                "updated_at": func.now(),
            },
        )
        .returning(_letters.c.id)
        .cte("letter")
    )
    following = _next_of(ended)
    thread = _update_thread(
        ended,
        status=case((hold, _word("error")), else_=_status_after(following, _word("error"))),
        next_nodes=bindparam("next_nodes", type_=ARRAY(Text)),
        held_by=case((hold, select(letter.c.id).scalar_subquery()), else_=_threads.c.held_by),
    )
    return _bells(thread, attempt, rung=_ring_for(following, unless=hold), ended=ended)


@cache
def cancel() -> Executable:
    """pending | running → interrupted, which fences an attempt that is under way. After `lock_thread`.

    Parameters: run_id, error. No row: the run was finished already.
    """
    before = (
        select(_runs.c.id, _runs.c.status)
        .where(_runs.c.id == bindparam("run_id"), _is_unfinished(_runs.c.status))
        .with_for_update()
        .cte("before")
    )
    ended = (
        update(_runs)
        .where(_runs.c.id == before.c.id)
        .values(status=_word("interrupted"), finished_at=func.now(), error=bindparam("error", type_=JSON))
        .returning(
            _runs.c.id,
            _runs.c.tenant,
            _runs.c.thread_id,
            _runs.c.attempt,
            _runs.c.worker_id,
            _runs.c.started_at,
            before.c.status.label("was"),
        )
        .cte("ended")
    )
    attempt = (
        insert(_attempts)
        .from_select(
            ["run_id", "attempt", "tenant", "worker_id", "started_at", "outcome"],
            select(
                ended.c.id,
                ended.c.attempt,
                ended.c.tenant,
                ended.c.worker_id,
                ended.c.started_at,
                _word("cancelled"),
            ).where(ended.c.was == _word("running")),
        )
        .returning(_attempts.c.run_id)
        .cte("recorded_attempt")
    )
    discarded = (
        update(_letters)
        .where(_letters.c.run_id == ended.c.id, _letters.c.status == _word("replaying"))
        .values(status=_word("discarded"), updated_at=func.now(), next_replay_at=null())
        .returning(_letters.c.id)
        .cte("discarded_letter")
    )
    following = _next_of(ended)
    was_running = exists(select(ended.c.id).where(ended.c.was == _word("running")))
    thread = _update_thread(
        ended,
        status=_status_after(following, case((was_running, _word("interrupted")), else_=_word("idle"))),
        held_by=case((_threads.c.held_by.in_(select(discarded.c.id)), null()), else_=_threads.c.held_by),
    )
    return _bells(thread, attempt, discarded, rung=_ring_for(following), ended=ended)


# ---------------------------------------------------------------------------------------------------
# Dead letters


def _acts_on_letter(*statuses: str) -> ColumnElement[bool]:
    return and_(
        _letters.c.id == bindparam("letter_id"), _letters.c.status.in_([_word(status) for status in statuses])
    )


def thread_has_moved() -> ColumnElement[bool]:
    """A later run has started on the dead letter's thread since its run failed."""
    own, later = _runs.alias("own"), _runs.alias("later")
    return exists(
        select(later.c.id)
        .join(own, and_(own.c.tenant == later.c.tenant, own.c.thread_id == later.c.thread_id))
        .where(own.c.id == _letters.c.run_id, later.c.seq > own.c.seq, later.c.started_at.is_not(None))
    )


@cache
def replay() -> Executable:
    """waiting | parked → replaying, and the run back to pending at its own place. After `lock_thread`.

    The run's id stays, so while the thread has not moved LangGraph goes on from the failed checkpoint
    (mode resume); where it has, the input is applied at the thread's head (mode append).
    Parameters: letter_id, note (a JSON object). No row: the letter's status was another.
    """
    letter = (
        update(_letters)
        .where(_acts_on_letter("waiting", "parked"))
        .values(
            status=_word("replaying"),
            replays=_letters.c.replays + 1,
            replay_mode=case((thread_has_moved(), _word("append")), else_=_word("resume")),
            next_replay_at=null(),
            updated_at=func.now(),
            notes=_letters.c.notes.op("||")(bindparam("note", type_=JSONB)),
        )
        .returning(_letters.c.id, _letters.c.run_id, _letters.c.replay_mode)
        .cte("letter")
    )
    ended = (
        update(_runs)
        .where(_runs.c.id == letter.c.run_id, _runs.c.status.in_([_word("error"), _word("timeout")]))
        .values(
            status=_word("pending"),
            run_at=func.now(),
            finished_at=null(),
            error=null(),
            deadline=null(),
            worker_id=null(),
            dispatched_at=null(),
        )
        .returning(_runs.c.id, _runs.c.tenant, _runs.c.thread_id, _runs.c.graph, letter.c.replay_mode)
        .cte("replayed")
    )
    thread = _update_thread(ended, status=_word("busy"))
    return select(ended.c.id, ended.c.tenant, ended.c.thread_id, ended.c.graph, ended.c.replay_mode).add_cte(
        thread
    )


@cache
def discard() -> Executable:
    """waiting | parked → discarded, which frees a held lane. After `lock_thread`.

    Parameters: letter_id, note. No row: the letter's status was another.
    """
    ended = (
        update(_letters)
        .where(_acts_on_letter("waiting", "parked"))
        .values(
            status=_word("discarded"),
            next_replay_at=null(),
            updated_at=func.now(),
            notes=_letters.c.notes.op("||")(bindparam("note", type_=JSONB)),
        )
        .returning(_letters.c.run_id.label("id"), _letters.c.id.label("letter_id"), _letters.c.tenant,
                   _letters.c.thread_id)
        .cte("discarded_letter")
    )  # fmt: skip
    following = _next_of(ended)
    held = _threads.alias("held")
    held_by_other = exists(  # whom the lane is held for after this
        select(held.c.tenant).where(
            held.c.tenant == ended.c.tenant,
            held.c.thread_id == ended.c.thread_id,
            held.c.held_by.is_not(None),
            held.c.held_by != ended.c.letter_id,
        )
    )
    thread = _update_thread(
        ended,
        held_by=case((_threads.c.held_by == ended.c.letter_id, null()), else_=_threads.c.held_by),
        status=case((_threads.c.held_by == ended.c.letter_id, _status_after(following, _word("error"))),
                    else_=_threads.c.status),
    )  # fmt: skip
    return _bells(thread, rung=_ring_for(following, unless=held_by_other), ended=ended)


@cache
def park() -> Executable:
    """waiting → parked: a person has to decide. Parameters: letter_id, note."""
    return (
        update(_letters)
        .where(_acts_on_letter("waiting"))
        .values(
            status=_word("parked"),
            next_replay_at=null(),
            updated_at=func.now(),
            notes=_letters.c.notes.op("||")(bindparam("note", type_=JSONB)),
        )
        .returning(_letters.c.id)
    )


@cache
def schedule_replay() -> Executable:
    """Sets when a waiting dead letter is due. Parameters: letter_id, delay (seconds)."""
    return (
        update(_letters)
        .where(_acts_on_letter("waiting"), _letters.c.next_replay_at.is_(null()))
        .values(next_replay_at=func.now() + _seconds("delay"))
        .returning(_letters.c.id)
    )


# ---------------------------------------------------------------------------------------------------
# The leader's sweep


@cache
def ring_again() -> Executable:
    """Marks ready runs that nobody rang for, or whose bell went unanswered, and returns their bells.

    Parameters: limit, patience (seconds after which a bell counts as lost).
    """
    # A CTE, so that the planner cannot update more rows than the limit.
    ready = (
        select(_runs.c.id)
        .where(
            _runs.c.status == _word("pending"),
            _runs.c.run_at <= func.now(),
            or_(_runs.c.dispatched_at.is_(null()), _runs.c.dispatched_at < func.now() - _seconds("patience")),
            ~_earlier_unfinished(_runs),
            _lane_is_free(),
            ~_tenant_is_paused(),
        )
        .order_by(_runs.c.run_at)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True, of=_runs)
        .cte("ready")
    )
    return (
        update(_runs)
        .where(_runs.c.id == ready.c.id)
        .values(dispatched_at=func.now())
        .returning(_runs.c.id, _runs.c.tenant, _runs.c.thread_id, _runs.c.graph)
    )


@cache
def expire_outputs() -> Executable:
    """Forgets outputs past their time. Parameters: ttl (seconds), limit."""
    old = (
        select(_runs.c.id)
        .where(
            _runs.c.output.is_not(None),
            _runs.c.finished_at < func.now() - _seconds("ttl"),
        )
        .limit(bindparam("limit", type_=Integer))
        .cte("old")
    )
    return update(_runs).where(_runs.c.id == old.c.id).values(output=null()).returning(_runs.c.id)


# ---------------------------------------------------------------------------------------------------
# Workers


@cache
def announce_graph() -> Executable:
    """Says what a graph's workers serve. Parameters: name, version, topology_hash, input_schema, channels,
    policy."""
    new = upsert(_graphs).values(
        name=bindparam("name"),
        version=bindparam("version"),
        topology_hash=bindparam("topology_hash"),
        input_schema=bindparam("input_schema"),
        channels=bindparam("channels"),
        policy=bindparam("policy"),
    )
    fields = ("version", "topology_hash", "input_schema", "channels", "policy")
    return new.on_conflict_do_update(
        index_elements=[_graphs.c.name],
        set_={**{field: new.excluded[field] for field in fields}, "announced_at": func.now()},
    )


@cache
def enlist() -> Executable:
    """Enters a worker process. Parameters: worker_id, host, pid, queues, concurrency, versions."""
    return insert(_workers).values(
        id=bindparam("worker_id"),
        host=bindparam("host"),
        pid=bindparam("pid"),
        queues=bindparam("queues"),
        concurrency=bindparam("concurrency"),
        versions=bindparam("versions"),
    )


@cache
def beat() -> Executable:
    """The worker's heartbeat. Parameter: worker_id. No row: it was struck off."""
    return (
        update(_workers)
        .where(_workers.c.id == bindparam("worker_id"))
        .values(heartbeat_at=func.now())
        .returning(_workers.c.id)
    )


@cache
def strike_off() -> Executable:
    """Removes a worker that has stopped. Parameter: worker_id."""
    return delete(_workers).where(_workers.c.id == bindparam("worker_id"))
