"""What the model is made of: runs, lanes, dead letters and the rest, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

LaneId = tuple[str, str]  # tenant, thread

QUARANTINE_LOSSES = 2
BREAKER_TRIALS = 3
CONCURRENCY = 1  # of each worker: so few that tenants' shares of them matter
SILENCE = 0.5  # ticks after which a heartbeat is stale, and a bell counts as lost
UNFINISHED = ("pending", "running")
FAILED = ("error", "timeout")
SUPERSEDING = ("interrupt", "rollback")
TERMINAL = ("success", "error", "timeout", "interrupted")
OPEN = ("waiting", "parked", "replaying")
DRAINED = ("exhausted", "timeout")  # the reasons whose letters are replayed by themselves
MAX_REPLAYS = 2


class Broken(AssertionError):
    """The ledger and the model disagree, or a promise is broken."""


class Bell(NamedTuple):
    run_id: UUID
    alone: bool


class Outcome(NamedTuple):
    """What became of a move: a word, the bells that are its caller's to ring, and what else it was told."""

    word: str
    bells: tuple[Bell, ...] = ()
    told: object = None


@dataclass
class Run:
    """due, deadline, rung: in ticks. rung: when it was rung for, or claimed; None if neither."""

    id: UUID
    name: str
    lane: LaneId
    seq: int
    graph: str
    max_attempts: int
    due: float
    deadline: float | None
    key: str | None
    rung: float | None
    status: str = "pending"
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    throttled: float = 0
    replays: int = 0
    worker: UUID | None = None
    started: bool = False
    action: str | None = None  # with which it was cancelled
    ended: int = 0  # a number that grows with each run that ends

    @property
    def is_unfinished(self) -> bool:
        return self.status in UNFINISHED

    @property
    def runs_alone(self) -> bool:
        return self.losses >= QUARANTINE_LOSSES

    @property
    def bell(self) -> Bell:
        return Bell(self.id, self.runs_alone)


@dataclass
class Lane:
    status: str = "idle"
    last_seq: int = 0
    asks: bool = False  # its last run stopped with a question
    at_node: bool = False  # it stands before a node that is still to be run
    base: str | None = None  # after this checkpoint, and up to the next one, all is of no effect
    dead: str | None = None


@dataclass
class Record:
    """Of one attempt that did not succeed."""

    outcome: str
    cause: str | None
    worker: UUID | None
    began: float | None
    refused: int = 0


@dataclass
class Letter:
    """Of the run under whose id it is kept."""

    status: str
    reason: str
    hold: bool
    checkpoint: str | None
    base: str | None = None  # before its run's input
    replays: int = 0
    mode: str | None = None
    due: float | None = None


@dataclass
class Breaker:
    graphs: list[str]
    failures: int
    open_until: float | None


class Checkpoint(NamedTuple):
    lane: LaneId
    run_id: UUID
    attempt: int
    parent: str | None


class Beside(NamedTuple):
    """A pending write beside a checkpoint, which may be another run's, or none's."""

    lane: LaneId
    run_id: UUID
    checkpoint: str


class Request(NamedTuple):
    """A run to be enqueued. delay, deadline: in ticks from now."""

    id: UUID
    lane: LaneId
    graph: str
    max_attempts: int
    delay: float
    deadline: float | None
    key: str | None
    strategy: str


class Trip(NamedTuple):
    kind: str
    name: str
    threshold: int
    cooldown: float


class Ending(NamedTuple):
    """How an attempt that did not succeed is ended. delay None: with a dead letter."""

    outcome: str
    cause: str
    delay: float | None = None
    status: str = "error"  # of the run, where it is buried
    spent: int = 0
    lost: int = 0
    waits: float = 0
    reason: str = "permanent"
    trip: Trip | None = None
