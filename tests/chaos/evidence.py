"""What is known after an attack: what was asked for, what the ledger and the states say, what was done.

The database keeps a diary of its own for the harness, in the schema `chaos`: the nodes' effects, and by
triggers every change of a run's status and every worker that ever enlisted.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import class_row

from threadmill.core.keys import split_thread_key
from threadmill.producers import Producer

DIARY = """
    create schema chaos;
    create table chaos.effects (
        run_id uuid not null,
        node text not null,
        kind text not null,
        nonce text not null,
        pid integer not null,
        attempt integer not null,
        held boolean not null,
        at timestamptz not null,
        primary key (nonce, kind)
    );
    create table chaos.transitions (
        number bigint generated always as identity,
        run_id uuid not null,
        attempt integer not null,
        was text,
        status text not null,
        worker_id uuid,
        at timestamptz not null default clock_timestamp()
    );
    create table chaos.workers (id uuid primary key, pid integer not null, at timestamptz not null);

    create function chaos.note_run() returns trigger language plpgsql security definer as $$
    begin
        insert into chaos.transitions (run_id, attempt, was, status, worker_id)
        values (new.id, new.attempt, case when tg_op = 'UPDATE' then old.status end,
            new.status, new.worker_id);
        return null;
    end $$;
    create trigger chaos_update after update of status on threadmill.runs
        for each row when (old.status is distinct from new.status) execute function chaos.note_run();
    create trigger chaos_insert after insert on threadmill.runs
        for each row execute function chaos.note_run();

    create function chaos.note_worker() returns trigger language plpgsql security definer as $$
    begin
        insert into chaos.workers values (new.id, new.pid, clock_timestamp()) on conflict do nothing;
        return null;
    end $$;
    create trigger chaos_insert after insert on threadmill.workers
        for each row execute function chaos.note_worker();
"""
NONCE = re.compile(rb" ([0-9a-f]{32})")

Lane = tuple[str, str]  # tenant, thread id


class Kind(StrEnum):
    """What the harness does to the fleet, in the report's words."""

    KILL = "SIGKILL of a worker"
    FREEZE = "SIGSTOP past the lease, then SIGCONT"
    TERM = "SIGTERM"
    POSTGRES_RESTART = "Postgres restart -m immediate"
    POSTGRES_TERMINATE = "pg_terminate_backend"
    POSTGRES_CUT = "Postgres cut off"
    POSTGRES_SILENT = "Postgres silent, then heard"
    POSTGRES_SILENT_CUT = "Postgres silent, then cut"
    POSTGRES_SLOW = "Postgres slow"
    REDIS_FLUSH = "Redis FLUSHALL"
    REDIS_RESTART = "Redis SHUTDOWN NOSAVE, restart"
    REDIS_CUT = "Redis cut off"
    REDIS_SILENT = "Redis silent, then heard"
    REDIS_SILENT_CUT = "Redis silent, then cut"
    REDIS_SLOW = "Redis slow"


@dataclass(frozen=True)
class Fault:
    """One thing done: to one worker process (pid), to the connections of one slot, or (slot None) to all."""

    kind: Kind
    begins: datetime.datetime
    ends: datetime.datetime
    slot: int | None = None
    pid: int | None = None


@dataclass
class Life:
    """One worker process. asked: the harness ended it. children: the processes that it started."""

    slot: int
    pid: int
    began: datetime.datetime
    ready: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    status: int | None = None
    asked: bool = False
    last_words: str = ""
    children: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Sent:
    """A run as the load asked for it. run_id: None while no enqueue has returned."""

    key: str
    tenant: str
    thread_id: str
    run_id: str | None


@dataclass(frozen=True)
class RunRow:
    id: uuid.UUID
    tenant: str
    thread_id: str
    seq: int
    key: str | None
    status: str
    attempt: int
    durability: str = "async"

    @property
    def lane(self) -> Lane:
        return self.tenant, self.thread_id


@dataclass(frozen=True)
class AttemptRow:
    run_id: uuid.UUID
    attempt: int
    worker_id: uuid.UUID | None
    pid: int | None
    started_at: datetime.datetime | None
    ended_at: datetime.datetime
    outcome: str
    cause: str | None = None
    exception_type: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Effect:
    """held: its attempt had the lease, judged under a lock of the run's row."""

    run_id: uuid.UUID
    node: str
    kind: str
    nonce: str
    pid: int
    attempt: int
    held: bool
    at: datetime.datetime


@dataclass(frozen=True)
class Transition:
    run_id: uuid.UUID
    attempt: int
    was: str | None
    status: str
    worker_id: uuid.UUID | None
    pid: int | None
    at: datetime.datetime


@dataclass(frozen=True)
class CheckpointRow:
    lane: Lane
    id: str
    parent: str | None
    run_id: str | None
    attempt: int | None = None


@dataclass
class Evidence:
    """letters: run id to reason. states: each thread's messages.

    stored: the nonces in any checkpoint or pending write. found: those of them that an attempt which goes on
    finds: a pending write may hang on a checkpoint that was never stored (durability `async`, where the
    connection broke between the two). enqueues: when each that returned began, and the seconds it took.
    """

    sent: list[Sent] = field(default_factory=list)
    runs: list[RunRow] = field(default_factory=list)
    letters: dict[uuid.UUID, str] = field(default_factory=dict)
    attempts: list[AttemptRow] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    checkpoints: list[CheckpointRow] = field(default_factory=list)
    states: dict[Lane, list[str]] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    enqueues: list[tuple[datetime.datetime, float]] = field(default_factory=list)

    def life_of(self, pid: int | None) -> Life | None:
        """The worker that is this process, or started it."""
        return next((life for life in self.lives if pid == life.pid or pid in life.children), None)

    def lanes(self) -> dict[Lane, list[RunRow]]:
        """Each thread's runs in the order of their seq."""
        lanes: defaultdict[Lane, list[RunRow]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: run.seq):
            lanes[run.lane].append(run)
        return lanes


def gather(connection: psycopg.Connection[Any], producer: Producer) -> Evidence:
    """What the database says. What was sent and done is the caller's to add."""
    evidence = Evidence(
        runs=_read(
            connection,
            RunRow,
            "select id, tenant, thread_id, seq, idempotency_key as key, status, attempt, durability"
            " from threadmill.runs",
        ),
        attempts=_read_attempts(connection),
        effects=_read(connection, Effect, "select * from chaos.effects order by at"),
        transitions=_read(
            connection,
            Transition,
            "select t.run_id, t.attempt, t.was, t.status, t.worker_id, w.pid, t.at from chaos.transitions t"
            " left join chaos.workers w on w.id = t.worker_id order by t.number",
        ),
        checkpoints=_read_checkpoints(connection),
        stored=_read_nonces(connection, ""),
        found=_read_nonces(connection, _ON_A_CHECKPOINT),
    )
    letters = connection.execute("select run_id, reason from threadmill.dead_letters").fetchall()
    evidence.letters = dict(letters)
    evidence.states = {
        (tenant, thread_id): producer.state(tenant, thread_id).values.get("said", [])
        for tenant, thread_id in evidence.lanes()
    }
    return evidence


def _read(connection: psycopg.Connection[Any], row: type[Any], query: str) -> list[Any]:
    with connection.cursor(row_factory=class_row(row)) as cursor:
        return cursor.execute(query.encode()).fetchall()


def _read_attempts(connection: psycopg.Connection[Any]) -> list[AttemptRow]:
    return _read(
        connection,
        AttemptRow,
        "select a.run_id, a.attempt, a.worker_id, w.pid, a.started_at, a.ended_at, a.outcome,"
        " to_jsonb(a) ->> 'cause' as cause, a.exception_type, a.message"
        " from threadmill.attempts a left join chaos.workers w on w.id = a.worker_id order by a.ended_at",
    )


def _read_checkpoints(connection: psycopg.Connection[Any]) -> list[CheckpointRow]:
    rows = connection.execute(
        "select thread_id, checkpoint_id, parent_checkpoint_id, metadata ->> 'run_id',"
        " (metadata ->> 'attempt')::int"
        " from threadmill.checkpoints where checkpoint_ns = '' order by thread_id, checkpoint_id"
    ).fetchall()
    return [CheckpointRow(split_thread_key(key), *rest) for key, *rest in rows]


_ON_A_CHECKPOINT = """
    and exists (select from threadmill.checkpoints c where c.thread_id = w.thread_id
        and c.checkpoint_ns = w.checkpoint_ns and c.checkpoint_id = w.checkpoint_id)
"""


def _read_nonces(connection: psycopg.Connection[Any], which: str) -> set[str]:
    blobs: Iterable[tuple[bytes]] = connection.execute(
        f"""select blob from threadmill.checkpoint_writes w where blob is not null {which}
            union all select blob from threadmill.checkpoint_blobs where blob is not null""".encode()
    )
    return {nonce.decode() for (blob,) in blobs for nonce in NONCE.findall(bytes(blob))}
