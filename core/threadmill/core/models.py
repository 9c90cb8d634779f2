"""The ledger's tables. All of them live in the schema `threadmill`, beside LangGraph's own.

A value that a user handed over (input, command, config, context) or that a graph gave back (output) is
`json`, not `jsonb`: the text is kept as it came, with the order of its keys, and is cheaper to write.
"""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "threadmill"

RUN_STATUSES = ("pending", "running", "success", "error", "timeout", "interrupted")
TERMINAL_STATUSES = ("success", "error", "timeout", "interrupted")
THREAD_STATUSES = ("idle", "busy", "interrupted", "error")
DEAD_LETTER_STATUSES = ("waiting", "replaying", "resolved", "parked", "discarded")
BREAKER_KINDS = ("graph", "dependency")
ATTEMPT_OUTCOMES = ("failed", "lost", "drained", "fenced", "timeout", "cancelled")

_NAMES = {
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "pk": "%(table_name)s_pkey",
}


def one_of(column: str, values: tuple[str, ...]) -> str:
    """The SQL of a check that a text column holds one of these words."""
    return f"{column} in ({', '.join(repr(value) for value in values)})"


class Base(DeclarativeBase):
    metadata = MetaData(schema=SCHEMA, naming_convention=_NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        str: Text,
        int: Integer,
        datetime.datetime: DateTime(timezone=True),
        uuid.UUID: UUID(as_uuid=True),
    }


def table_of(model: type[Base]) -> Table:
    """The table of a model, for statements of SQLAlchemy Core."""
    assert isinstance(model.__table__, Table)
    return model.__table__


def _now() -> Mapped[datetime.datetime]:
    return mapped_column(server_default=func.now())


class Thread(Base):
    """One conversation of a tenant. Its row's lock is the lane: who changes what may run here holds it."""

    __tablename__ = "threads"
    __table_args__ = (CheckConstraint(one_of("status", THREAD_STATUSES), name="status"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    thread_id: Mapped[str] = mapped_column(primary_key=True)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    status: Mapped[str] = mapped_column(server_default="idle")
    last_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    held_by: Mapped[uuid.UUID | None]
    next_nodes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    interrupts: Mapped[list[Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime.datetime] = _now()
    updated_at: Mapped[datetime.datetime] = _now()


class Run(Base):
    """One invocation of a graph on a thread.

    attempt numbers the attempts, and is what fences them; failures counts those that were spent, out of
    max_attempts; worker_losses those whose worker was lost; throttled is how many seconds the run has
    waited because it was told to.
    """

    __tablename__ = "runs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "thread_id"], ["threads.tenant", "threads.thread_id"]),
        UniqueConstraint("tenant", "thread_id", "seq"),
        CheckConstraint(one_of("status", RUN_STATUSES), name="status"),
        # Promise 2: on one thread at most one attempt runs.
        Index(
            "runs_one_running_per_thread",
            "tenant",
            "thread_id",
            unique=True,
            postgresql_where=text("status = 'running'"),
        ),
        # Who is at the head of a thread, and what may the leader ring for.
        Index(
            "runs_unfinished_idx",
            "tenant",
            "thread_id",
            "seq",
            postgresql_where=text("status in ('pending', 'running')"),
        ),
        Index("runs_due_idx", "run_at", postgresql_where=text("status = 'pending'")),
        Index(
            "runs_deadline_idx",
            "deadline",
            postgresql_where=text("status = 'pending' and deadline is not null"),
        ),
        Index("runs_worker_idx", "worker_id", postgresql_where=text("status = 'running'")),
        Index("runs_output_idx", "finished_at", postgresql_where=text("output is not null")),
        # What is past its time, and how fast runs end at present.
        Index("runs_finished_idx", "finished_at", postgresql_where=text("finished_at is not null")),
        Index("runs_tenant_id_idx", "tenant", "id"),
        Index(
            "runs_idempotency_key",
            "tenant",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key is not null"),
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    thread_id: Mapped[str]
    seq: Mapped[int] = mapped_column(BigInteger)
    graph: Mapped[str]
    graph_version: Mapped[str | None]
    input: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    command: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    config: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    context: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    status: Mapped[str] = mapped_column(server_default="pending")
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    attempt: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int] = mapped_column(server_default="3")
    failures: Mapped[int] = mapped_column(server_default="0")
    worker_losses: Mapped[int] = mapped_column(server_default="0")
    throttled: Mapped[float] = mapped_column(Float, server_default="0")
    run_at: Mapped[datetime.datetime] = _now()
    deadline: Mapped[datetime.datetime | None]
    worker_id: Mapped[uuid.UUID | None]
    created_at: Mapped[datetime.datetime] = _now()
    dispatched_at: Mapped[datetime.datetime | None]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]
    output: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    checkpoint_id: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    payload_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    multitask_strategy: Mapped[str] = mapped_column(server_default="enqueue")
    durability: Mapped[str | None]
    webhook: Mapped[str | None]
    trace_context: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Attempt(Base):
    """One execution of a run that did not simply succeed.

    cause: what led to the outcome, in a few words. fenced_writes: what it went on to write when its lease
    was lost, and was refused.
    """

    __tablename__ = "attempts"
    __table_args__ = (CheckConstraint(one_of("outcome", ATTEMPT_OUTCOMES), name="outcome"),)

    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str]
    worker_id: Mapped[uuid.UUID | None]
    started_at: Mapped[datetime.datetime | None]
    ended_at: Mapped[datetime.datetime] = _now()
    outcome: Mapped[str]
    cause: Mapped[str | None]
    fenced_writes: Mapped[int] = mapped_column(server_default="0")
    node: Mapped[str | None]
    checkpoint_id: Mapped[str | None]
    exception_type: Mapped[str | None]
    message: Mapped[str | None]
    traceback: Mapped[str | None]


class DeadLetter(Base):
    """The record of a run that failed for good. A run has one; failing again brings it back to waiting."""

    __tablename__ = "dead_letters"
    __table_args__ = (
        UniqueConstraint("run_id"),
        CheckConstraint(one_of("status", DEAD_LETTER_STATUSES), name="status"),
        Index("dead_letters_due_idx", "next_replay_at", postgresql_where=text("status = 'waiting'")),
        Index("dead_letters_tenant_id_idx", "tenant", "id"),
        Index("dead_letters_fingerprint_idx", "fingerprint", "id"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    tenant: Mapped[str]
    thread_id: Mapped[str]
    graph: Mapped[str]
    reason: Mapped[str]
    error: Mapped[dict[str, Any]] = mapped_column(JSON)
    traceback: Mapped[str | None]
    node: Mapped[str | None]
    checkpoint_id: Mapped[str | None]
    fingerprint: Mapped[str]
    replays: Mapped[int] = mapped_column(server_default="0")
    replay_mode: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="waiting")
    next_replay_at: Mapped[datetime.datetime | None]
    notes: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    created_at: Mapped[datetime.datetime] = _now()
    updated_at: Mapped[datetime.datetime] = _now()


class Worker(Base):
    """One worker process. The lease of every run that it holds is its heartbeat."""

    __tablename__ = "workers"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text))
    concurrency: Mapped[int]
    versions: Mapped[dict[str, Any]] = mapped_column(JSONB)
    started_at: Mapped[datetime.datetime] = _now()
    heartbeat_at: Mapped[datetime.datetime] = _now()


class Graph(Base):
    """What the workers have announced that they serve, so that a producer can check without importing it.

    pruned_to: the threads of all its runs that finished until then have been pruned.
    """

    __tablename__ = "graphs"

    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    topology_hash: Mapped[str]
    input_schema: Mapped[dict[str, Any]] = mapped_column(JSON)
    channels: Mapped[list[str]] = mapped_column(ARRAY(Text))
    policy: Mapped[dict[str, Any]] = mapped_column(JSONB)
    announced_at: Mapped[datetime.datetime] = _now()
    pruned_to: Mapped[datetime.datetime | None]


class Tenant(Base):
    """What differs from the defaults for one tenant; most have no row."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float] = mapped_column(Float, server_default="1")
    max_running: Mapped[int | None]
    max_pending: Mapped[int | None]
    rate: Mapped[float | None] = mapped_column(Float)
    paused: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))


class Breaker(Base):
    """What has failed lately, a graph or a dependency; without a row all is well.

    graphs: whose runs are held back while it is open. It is open until `open_until`, and from then on
    half-open: a few runs are let through, and the first that comes out decides.
    """

    __tablename__ = "breakers"
    __table_args__ = (CheckConstraint(one_of("kind", BREAKER_KINDS), name="kind"),)

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    graphs: Mapped[list[str]] = mapped_column(ARRAY(Text))
    failures: Mapped[int] = mapped_column(server_default="0")
    open_until: Mapped[datetime.datetime | None]
    opened_at: Mapped[datetime.datetime | None]
    reason: Mapped[str | None]


class Cron(Base):
    """A run that is to be enqueued again and again."""

    __tablename__ = "crons"
    __table_args__ = (Index("crons_next_run_at_idx", "next_run_at", postgresql_where=text("enabled")),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    thread_id: Mapped[str | None]
    graph: Mapped[str]
    schedule: Mapped[str]
    timezone: Mapped[str] = mapped_column(server_default="UTC")
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    enabled: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    next_run_at: Mapped[datetime.datetime | None]
    end_at: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime] = _now()
    updated_at: Mapped[datetime.datetime] = _now()


class ApiKey(Base):
    """A key of the HTTP gateway; only its hash is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("key_hash"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime.datetime] = _now()
    expires_at: Mapped[datetime.datetime | None]
    revoked_at: Mapped[datetime.datetime | None]
