"""What `enqueue` takes, checked at the door."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import pydantic_core
from uuid_utils import uuid7

from threadmill.core.document import to_json
from threadmill.core.errors import InvalidInput, InvalidOption, ReservedKey
from threadmill.core.event_stream import StreamMode
from threadmill.core.keys import check_tenant, check_thread_id
from threadmill.core.policy import Durability, GraphPolicy, OnDeadLetter
from threadmill.core.settings import Settings
from threadmill.core.transitions import WHERE_LEFT_OUT

MultitaskStrategy = Literal["enqueue", "reject", "interrupt", "rollback"]
# Those that end what is unfinished on the thread; each is the action of its name, as `cancel` takes it.
SUPERSEDING = ("interrupt", "rollback")

# Keys with which a caller could reach another thread's state, or another run's place in this one.
RESERVED_KEYS = frozenset(
    {"tenant", "thread_id", "run_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map"}
)
CONFIG_KEYS = frozenset(
    {"configurable", "tags", "metadata", "recursion_limit", "max_concurrency", "run_name"}
)
COMMAND_KEYS = frozenset({"resume", "update", "goto"})
MAX_PRIORITY = 100

DURABILITIES = (None, *get_args(Durability))
STRATEGIES = get_args(MultitaskStrategy)
EFFECTS = (None, *get_args(OnDeadLetter))


class RunOptions(TypedDict, total=False):
    """The keyword arguments of `enqueue` that have a default."""

    command: Mapping[str, Any] | None
    config: Mapping[str, Any] | None
    context: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None
    priority: int
    run_at: datetime.datetime | None
    deadline: datetime.datetime | None
    max_attempts: int | None
    durability: Durability | None
    multitask_strategy: MultitaskStrategy
    on_dead_letter: OnDeadLetter | None
    stream_mode: StreamMode | Sequence[StreamMode] | None
    stream_subgraphs: bool


class RunRequest(NamedTuple):
    """One run to be inserted; every value is checked but the input against the graph's schema.

    It keeps no object of the caller's: of a thousand inputs Python's garbage collector would read each again
    and again until they have been sent.
    """

    id: str  # a UUIDv7
    graph: str
    tenant: str
    thread_id: str
    documents: dict[str, str]  # input, command, config, context and metadata as JSON text
    idempotency_key: str | None
    payload_hash: str | None
    priority: int
    run_at: datetime.datetime | None
    deadline: datetime.datetime | None
    max_attempts: int | None
    durability: str | None
    multitask_strategy: str
    on_dead_letter: str | None
    stream_mode: list[str] | None
    stream_subgraphs: bool

    @property
    def surely_enters(self) -> bool:
        """Whether it is inserted whatever the thread and its runs are like, and ends none of them."""
        return self.idempotency_key is None and self.multitask_strategy == "enqueue"

    def record(self, back: int, *, first: bool, policy: GraphPolicy) -> str:
        """The row as a JSON object, for `transitions.insert_runs`. policy: for what is left open."""
        scalars = {
            "id": self.id,
            "thread_id": self.thread_id,
            "back": back,
            "first": first,
            "graph": self.graph,
            "priority": self.priority,
            "max_attempts": self.max_attempts or policy.max_attempts,
            "run_at": self.run_at.isoformat() if self.run_at else None,
            "deadline": self.deadline.isoformat() if self.deadline else None,
            "lifetime": policy.deadline,
            "idempotency_key": self.idempotency_key,
            "payload_hash": self.payload_hash,
            "multitask_strategy": self.multitask_strategy,
            "durability": self.durability,
            "on_dead_letter": self.on_dead_letter,
            "stream_mode": self.stream_mode,
            "stream_subgraphs": self.stream_subgraphs,
        }
        # Most are what is taken where one is left out, and reading each of a thousand records costs Postgres.
        given = {name: value for name, value in scalars.items() if value != WHERE_LEFT_OUT.get(name)}
        # The documents are JSON text already: they are set into the object, not encoded again.
        documents = "".join(f',"{name}":{text}' for name, text in self.documents.items())
        return pydantic_core.to_json(given).decode()[:-1] + documents + "}"


def check_request(
    settings: Settings,
    graph: str,
    input: Any = None,  # noqa: A002 - the field's word
    *,
    tenant: str,
    thread_id: str,
    command: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
    priority: int = 0,
    run_at: datetime.datetime | None = None,
    deadline: datetime.datetime | None = None,
    max_attempts: int | None = None,
    durability: Durability | None = None,
    multitask_strategy: MultitaskStrategy = "enqueue",
    on_dead_letter: OnDeadLetter | None = None,
    stream_mode: StreamMode | Sequence[StreamMode] | None = None,
    stream_subgraphs: bool = False,
) -> RunRequest:
    """The request, if everything in it can be accepted. Raises the errors under InvalidRequest."""
    if not isinstance(graph, str) or not graph:
        raise InvalidOption("graph", graph, "must be the name of a graph")
    check_tenant(tenant)
    check_thread_id(thread_id)
    if command is not None and input is not None:
        raise InvalidOption("command", "…", "give either input or command, not both")
    _check_command(command)
    _check_config(config)
    for name, value in (("context", context), ("metadata", metadata)):
        if value is not None:
            _check_mapping(name, value)
    _check_choice("durability", durability, DURABILITIES)
    _check_choice("multitask_strategy", multitask_strategy, STRATEGIES)
    _check_choice("on_dead_letter", on_dead_letter, EFFECTS)
    modes = _checked_modes(stream_mode)
    _check_number("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
    if max_attempts is not None:
        _check_number("max_attempts", max_attempts, 1, 100)
    _check_time("run_at", run_at)
    _check_time("deadline", deadline)
    if deadline is not None and deadline <= datetime.datetime.now(datetime.UTC):
        raise InvalidOption("deadline", deadline.isoformat(), "lies in the past")
    if deadline is not None and run_at is not None and deadline <= run_at:
        raise InvalidOption("deadline", deadline.isoformat(), "lies before run_at")
    documents = {
        name: to_json(name, value, max_bytes=settings.max_input_bytes)
        for name, value in (
            ("input", input),
            ("command", command),
            ("config", config),
            ("context", context),
            ("metadata", metadata or {}),
        )
        if value is not None
    }
    payload_hash = None
    if idempotency_key is not None:
        _check_idempotency_key(idempotency_key)
        payload_hash = _payload_hash(graph, thread_id, documents)
    return RunRequest(
        id=str(uuid7()),
        graph=graph,
        tenant=tenant,
        thread_id=thread_id,
        documents=documents,
        idempotency_key=idempotency_key,
        payload_hash=payload_hash,
        priority=priority,
        run_at=run_at,
        deadline=deadline,
        max_attempts=max_attempts,
        durability=durability,
        multitask_strategy=multitask_strategy,
        on_dead_letter=on_dead_letter,
        stream_mode=modes,
        stream_subgraphs=bool(stream_subgraphs),
    )


def _checked_modes(stream_mode: object) -> list[str] | None:
    if stream_mode is None:
        return None
    modes = [stream_mode] if isinstance(stream_mode, str) else stream_mode
    if not isinstance(modes, Sequence) or not modes:
        raise InvalidOption("stream_mode", stream_mode, "must be a mode or a list of modes")
    for mode in modes:
        _check_choice("stream_mode", mode, get_args(StreamMode))
    return sorted(set(modes))


def _check_command(command: Mapping[str, Any] | None) -> None:
    if command is None:
        return
    _check_mapping("command", command)
    if unknown := sorted(set(command) - COMMAND_KEYS):
        raise InvalidInput(
            "command", f".{unknown[0]}", f"unknown; known are {', '.join(sorted(COMMAND_KEYS))}"
        )
    if not command:
        raise InvalidInput("command", "", "is empty; give resume, update or goto")
    goto = command.get("goto")
    targets = goto if isinstance(goto, list | tuple) else [] if goto is None else [goto]
    for index, target in enumerate(targets):
        named = isinstance(target, str) or (isinstance(target, Mapping) and set(target) == {"node", "input"})
        if not named:
            raise InvalidInput("command", f".goto[{index}]", 'must be a node or {"node": …, "input": …}')


def _check_config(config: Mapping[str, Any] | None) -> None:
    if config is None:
        return
    _check_mapping("config", config)
    if unknown := sorted(set(config) - CONFIG_KEYS):
        raise InvalidInput("config", f".{unknown[0]}", f"unknown; known are {', '.join(sorted(CONFIG_KEYS))}")
    for name in ("configurable", "metadata"):
        if name not in config:
            continue
        part = config[name]
        _check_mapping(f"config.{name}", part)
        for key in part:
            if key in RESERVED_KEYS or str(key).startswith("__"):
                raise ReservedKey(str(key), name)


def _check_mapping(field: str, value: object) -> None:
    if not isinstance(value, dict):
        raise InvalidInput(field, "", f"must be an object, not {type(value).__name__}")


def _check_choice(option: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise InvalidOption(option, value, f"must be one of {', '.join(str(c) for c in choices if c)}")


def _check_number(option: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidOption(option, value, f"must be a whole number from {low} to {high}")


def _check_time(option: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, datetime.datetime):
        raise InvalidOption(option, value, "must be a datetime")
    if value.tzinfo is None:
        raise InvalidOption(option, value.isoformat(), "has no time zone")


def _check_idempotency_key(key: object) -> None:
    if not isinstance(key, str) or not 1 <= len(key) <= 255 or not key.isprintable():
        raise InvalidOption("idempotency_key", key, "must be 1 to 255 printable characters")


def _payload_hash(graph: str, thread_id: str, documents: Mapping[str, str]) -> str:
    """SHA-256 of what the run would do, the order of keys left out."""
    parsed = {name: json.loads(text) for name, text in documents.items() if name != "metadata"}
    canonical = json.dumps([graph, thread_id, parsed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
