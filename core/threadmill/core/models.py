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
    Computed,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
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
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, TSVECTOR, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "threadmill"

RUN_STATUSES = ("pending", "running", "success", "error", "timeout", "interrupted")
TERMINAL_STATUSES = ("success", "error", "timeout", "interrupted")
THREAD_STATUSES = ("idle", "busy", "interrupted", "error")
DEAD_LETTER_STATUSES = ("waiting", "replaying", "resolved", "parked", "discarded")
DEAD_LETTER_REASONS = ("permanent", "exhausted", "timeout", "worker_lost", "breaker", "undeliverable")
REPLAY_MODES = ("resume", "restart", "append")
REPLAY_PAUSE_KINDS = ("graph", "tenant", "group")
REPLAY_RATE_KINDS = ("all", "graph", "tenant")
REPLAY_JOB_STATUSES = ("running", "stopped", "done")
LIMIT_KINDS = ("graph", "tenant")
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
    """One conversation of a tenant. Its row's lock is the lane: who changes what may run here holds it.

    A run that failed for good has no effect on those that follow it: the checkpoints after
    `base_checkpoint_id` (None: from the beginning) up to `dead_until` are its own, and the next run goes on
    from the base.
    """

    __tablename__ = "threads"
    __table_args__ = (CheckConstraint(one_of("status", THREAD_STATUSES), name="status"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    thread_id: Mapped[str] = mapped_column(primary_key=True)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    status: Mapped[str] = mapped_column(server_default="idle")
    last_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    base_checkpoint_id: Mapped[str | None]
    dead_until: Mapped[str | None]
    next_nodes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    interrupts: Mapped[list[Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime.datetime] = _now()
    updated_at: Mapped[datetime.datetime] = _now()


class Run(Base):
    """One invocation of a graph on a thread.

    attempt numbers the attempts, and is what fences them; failures counts those that were spent, out of
    max_attempts; worker_losses those whose worker was lost; throttled is how many seconds the run has
    waited because it was told to. on_dead_letter: the run's own choice, before its graph's. replays: how
    often it was replayed, at last in replay_mode; state_patch: what is then to be changed in its state first.
    stream_mode: what is told of it while it runs; None for nothing.
    scratch: the dead letter of which this is a trial on a copy; it leaves nothing behind.

    rank: of a pending run that is next on its thread and not held there, its place among its tenant's: when
    it is due, and ten seconds earlier for each point of its priority. None for what waits behind others.
    """

    __tablename__ = "runs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "thread_id"], ["threads.tenant", "threads.thread_id"]),
        UniqueConstraint("tenant", "thread_id", "seq"),
        CheckConstraint(one_of("status", RUN_STATUSES), name="status"),
        CheckConstraint(one_of("replay_mode", REPLAY_MODES), name="replay_mode"),
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
        # What may be started, of a graph and a tenant at a time, in its order.
        Index(
            "runs_ready_idx",
            "graph",
            "tenant",
            "rank",
            postgresql_where=text("status = 'pending' and rank is not null"),
        ),
        # For what a bell was rung that nobody has answered yet. In words of its own, see `terms.counts_as`.
        Index(
            "runs_rung_idx",
            "tenant",
            "dispatched_at",
            postgresql_where=text("'' || status = 'pending' and dispatched_at is not null"),
        ),
        Index(
            "runs_deadline_idx",
            "deadline",
            postgresql_where=text("status = 'pending' and deadline is not null"),
        ),
        # What a worker holds, in the order in which it was claimed. Its condition is no other index's, or the
        # planner may take one for the other.
        Index(
            "runs_worker_idx",
            "worker_id",
            "dispatched_at",
            postgresql_where=text("status = 'running' and worker_id is not null"),
        ),
        # How much each tenant has running. In words of its own, too.
        Index(
            "runs_running_idx",
            "tenant",
            "dispatched_at",
            postgresql_where=text("'' || status = 'running' and dispatched_at is not null"),
        ),
        Index("runs_output_idx", "finished_at", postgresql_where=text("output is not null")),
        # What is past its time, and how fast runs end at present.
        Index("runs_finished_idx", "finished_at", postgresql_where=text("finished_at is not null")),
        # Trials that nobody waits for any more.
        Index("runs_scratch_idx", "created_at", postgresql_where=text("scratch is not null")),
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
    on_dead_letter: Mapped[str | None]
    replays: Mapped[int] = mapped_column(server_default="0")
    replay_mode: Mapped[str | None]
    state_patch: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    scratch: Mapped[uuid.UUID | None]
    run_at: Mapped[datetime.datetime] = _now()
    rank: Mapped[datetime.datetime | None]
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
    stream_mode: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    stream_subgraphs: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    webhook: Mapped[str | None]
    trace_context: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Attempt(Base):
    """One execution of a run that did not simply succeed.

    cause: what led to the outcome, in a few words. fenced_writes: what it went on to write when its lease
    was lost, and was refused. replay: which replay of the run it belonged to; 0 for none.
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
    replay: Mapped[int] = mapped_column(server_default="0")
    node: Mapped[str | None]
    checkpoint_id: Mapped[str | None]
    exception_type: Mapped[str | None]
    message: Mapped[str | None]
    traceback: Mapped[str | None]


# An exception's type is found whole and by its parts: ConnectTimeout, connect, timeout.
WORDS = (
    "strip(to_tsvector('simple'::regconfig, regexp_replace("
    "coalesce(exception_type, '') || ' ' "
    "|| regexp_replace(coalesce(exception_type, ''), '([a-z0-9])([A-Z])', '\\1 \\2', 'g') || ' ' "
    "|| coalesce(node, '') || ' ' || \"left\"(coalesce(error ->> 'message', ''), 2000), "
    "'[^[:alnum:]]+', ' ', 'g')))"
)
# What a dead letter is found by, each beside the column's name, and its span of time: the first digits of its
# id (UUIDv7, so the 24 bits that they have left of 48 are 2**24 ms, 4.7 hours).
SPAN_DIGITS = 6
_MARKED = ("tenant", "thread_id", "graph", "status", "reason", "fingerprint", "node", "exception_type")
MARKS = (
    f"array['span=' || left(cast(id as text), {SPAN_DIGITS}), "
    + ", ".join(f"'{column}=' || {column}" for column in _MARKED)
    + "]"
)


class DeadLetter(Base):
    """The record of a run that failed for good. A run has one; failing again brings it back to waiting.

    A message that could not be delivered has no run, tenant, thread or graph.

    exceptions: the chain, the one raised first, each {"type", "module", "message", "link", "frames"}.
    base_checkpoint_id: before the run's input; None for the beginning of the thread. checkpoint_id: where it
    failed; None where its input was not even applied. replay_mode, replay_why: what was chosen last, and why.
    original_input: of the run, where it was edited since. words: what a search for text looks in.
    """

    __tablename__ = "dead_letters"
    __table_args__ = (
        UniqueConstraint("run_id"),
        CheckConstraint(one_of("status", DEAD_LETTER_STATUSES), name="status"),
        CheckConstraint(one_of("reason", DEAD_LETTER_REASONS), name="reason"),
        # What the replay worker takes next, group by group and tenant by tenant.
        Index(
            "dead_letters_due_idx",
            "fingerprint",
            "tenant",
            "next_replay_at",
            postgresql_where=text("status = 'waiting' and next_replay_at is not null"),
        ),
        # One letter of a thread at a time, the first first.
        Index(
            "dead_letters_lane_idx",
            "tenant",
            "thread_id",
            "seq",
            postgresql_where=text("status in ('waiting', 'replaying')"),
        ),
        # What is past its time.
        Index(
            "dead_letters_closed_idx",
            "updated_at",
            postgresql_where=text("status in ('resolved', 'discarded')"),
        ),
        # A tenant's newest, and all that a connection bound to it may look into.
        Index("dead_letters_tenant_id_idx", "tenant", "id"),
        # How many a group has of each status; what is included spares the look at the row.
        Index(
            "dead_letters_group_idx",
            *("fingerprint", "status", "reason", "id"),
            postgresql_include=["tenant"],
        ),
        Index("dead_letters_status_idx", "status", "reason", "id"),
        # A group's newest and oldest.
        Index("dead_letters_fingerprint_idx", "fingerprint", "id"),
        # What a page is read by; see `threadmill.dlq.walk`. Small steps: what is not yet in the index itself
        # is read in every span.
        Index(
            "dead_letters_marks_idx",
            "words",
            text(f"({MARKS})"),
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": 64},
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    tenant: Mapped[str | None]
    thread_id: Mapped[str | None]
    seq: Mapped[int | None] = mapped_column(BigInteger)
    graph: Mapped[str | None]
    graph_version: Mapped[str | None]
    topology_hash: Mapped[str | None]
    versions: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    reason: Mapped[str]
    error: Mapped[dict[str, Any]] = mapped_column(JSON)
    exception_type: Mapped[str | None]
    exceptions: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    traceback: Mapped[str | None]
    node: Mapped[str | None]
    task: Mapped[str | None]
    next_nodes: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    base_checkpoint_id: Mapped[str | None]
    checkpoint_id: Mapped[str | None]
    fingerprint: Mapped[str]
    original_input: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    replays: Mapped[int] = mapped_column(server_default="0")
    replay_mode: Mapped[str | None]
    replay_why: Mapped[str | None]
    replayed_at: Mapped[datetime.datetime | None]
    status: Mapped[str] = mapped_column(server_default="waiting")
    next_replay_at: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime] = _now()
    updated_at: Mapped[datetime.datetime] = _now()
    words: Mapped[str] = mapped_column(TSVECTOR, Computed(WORDS, persisted=True))


class HeldLane(Base):
    """A dead letter behind which its thread's later runs wait, until it is closed or `until` has passed."""

    __tablename__ = "held_lanes"
    __table_args__ = (
        UniqueConstraint("letter_id"),
        Index("held_lanes_until_idx", "until", postgresql_where=text("until is not null")),
        # Which have been held for long.
        Index("held_lanes_since_idx", "since"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    thread_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    letter_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("dead_letters.id", ondelete="CASCADE"))
    since: Mapped[datetime.datetime] = _now()
    until: Mapped[datetime.datetime | None]


class DeadLetterAction(Base):
    """What was done about a dead letter, or about several, when and by whom; written with what was done."""

    __tablename__ = "dead_letter_actions"
    __table_args__ = (Index("dead_letter_actions_letter_id_idx", "letter_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    letter_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("dead_letters.id", ondelete="CASCADE"))
    tenant: Mapped[str | None]
    at: Mapped[datetime.datetime] = _now()
    by: Mapped[str]
    action: Mapped[str]
    facts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))


class ReplayGroup(Base):
    """Dead letters that share a fingerprint, as the replay worker drains them.

    window: how many may be replayed at once. backoffs: how many canaries have failed as the group has, and
    strays: how many in another way, since the last that succeeded; the group is not
    touched before next_at. drainer: who works on it, until drainer_until.
    """

    __tablename__ = "replay_groups"

    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    graph: Mapped[str | None]
    window: Mapped[int] = mapped_column(server_default="1")
    backoffs: Mapped[int] = mapped_column(server_default="0")
    strays: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime.datetime | None]
    drainer: Mapped[uuid.UUID | None]
    drainer_until: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime] = _now()


class ReplayPause(Base):
    """A graph, a tenant or a group whose dead letters are not drained for the time being."""

    __tablename__ = "replay_pauses"
    __table_args__ = (CheckConstraint(one_of("kind", REPLAY_PAUSE_KINDS), name="kind"),)

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime.datetime] = _now()
    by: Mapped[str]
    reason: Mapped[str | None]


class ReplayRate(Base):
    """How many replays a second there may be, in all, of a graph or of a tenant.

    spent_until: the moment until which what was let through uses the rate up (GCRA, ITU-T I.371).
    """

    __tablename__ = "replay_rates"
    __table_args__ = (CheckConstraint(one_of("kind", REPLAY_RATE_KINDS), name="kind"),)

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    rate: Mapped[float] = mapped_column(Float)
    spent_until: Mapped[datetime.datetime | None]


class ReplayJob(Base):
    """A replay of many dead letters that somebody asked for; it goes through them in the order of their ids.

    filter: what selects them. last: the newest id there was when it began; none after it is replayed.
    position: the last id that was looked at. total: how many there were, bounded.
    """

    __tablename__ = "replay_jobs"
    __table_args__ = (CheckConstraint(one_of("status", REPLAY_JOB_STATUSES), name="status"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    filter: Mapped[dict[str, Any]] = mapped_column(JSONB)
    mode: Mapped[str]
    rate: Mapped[float | None] = mapped_column(Float)
    by: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="running")
    last: Mapped[uuid.UUID]
    position: Mapped[uuid.UUID | None]
    total: Mapped[int]
    replayed: Mapped[int] = mapped_column(server_default="0")
    skipped: Mapped[int] = mapped_column(server_default="0")
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
    nodes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    policy: Mapped[dict[str, Any]] = mapped_column(JSONB)
    announced_at: Mapped[datetime.datetime] = _now()
    pruned_to: Mapped[datetime.datetime | None]


class Limit(Base):
    """What one tenant, or one graph, may; most have no row, and may what they like.

    weight: a tenant's share where not all that is ready can run. max_running, max_pending: runs at once.
    rate: runs that are started in a second; spent_until: the moment until which what was started uses it up
    (GCRA, ITU-T I.371).
    """

    __tablename__ = "limits"
    __table_args__ = (
        CheckConstraint(one_of("kind", LIMIT_KINDS), name="kind"),
        CheckConstraint("weight > 0", name="weight"),
        CheckConstraint("max_running >= 0", name="max_running"),
        CheckConstraint("max_pending >= 0", name="max_pending"),
        CheckConstraint("rate > 0", name="rate"),
    )

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float] = mapped_column(Float, server_default="1")
    max_running: Mapped[int | None]
    max_pending: Mapped[int | None]
    rate: Mapped[float | None] = mapped_column(Float)
    spent_until: Mapped[datetime.datetime | None]
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
