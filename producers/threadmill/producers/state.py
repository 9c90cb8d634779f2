"""A thread's state, read from LangGraph's checkpoint tables without LangGraph.

A service that only enqueues has no LangGraph installed, and must not rebuild objects from what is stored.
So a checkpoint's values are decoded to plain JSON here: the constructor that LangGraph's serialiser names
for a value is not called, and its argument taken (a message becomes what its `model_dump` was); values that
a run's output shows as text (UUIDs, dates, paths) are so shown here, and a secret as asterisks.

Formats: langgraph.checkpoint.serde.jsonplus (msgpack with extension types 0 to 7) and the tables of
langgraph.checkpoint.postgres, version 3.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import ormsgpack
from sqlalchemy import select, text

from threadmill.core.errors import ThreadNotFound
from threadmill.core.keys import check_tenant, check_thread_id, thread_key
from threadmill.core.models import SCHEMA, Thread, table_of
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import bind_tenant
from threadmill.producers.run import timestamp

_CONSTRUCTORS = range(6)  # the extension types that hold (module, name, argument, …)
_NUMPY_ARRAY = 6
_DELTA_SNAPSHOT = 7

# What LangGraph keeps for itself: its own channels, and what edges wait for.
# The one channel of a graph whose state is no mapping is named as if it were LangGraph's.
_ROOT = "__root__"
_INTERNAL = ("__", "branch:", "join:")

_threads = table_of(Thread)

# What a checkpoint's values are decoded from; see `values_of`.
CHECKPOINT_VALUES = f"""
    select checkpoint_id, parent_checkpoint_id, checkpoint, metadata,
        (select jsonb_object_agg(b.channel, b.type) from {SCHEMA}.checkpoint_blobs b
            join jsonb_each_text(c.checkpoint -> 'channel_versions') v
                on b.channel = v.key and b.version = v.value
            where b.thread_id = c.thread_id and b.checkpoint_ns = c.checkpoint_ns) as types,
        (select array_agg(array[convert_to(b.channel, 'UTF8'), b.blob]) from {SCHEMA}.checkpoint_blobs b
            join jsonb_each_text(c.checkpoint -> 'channel_versions') v
                on b.channel = v.key and b.version = v.value
            where b.thread_id = c.thread_id and b.checkpoint_ns = c.checkpoint_ns) as blobs
    from {SCHEMA}.checkpoints c
    where thread_id = :key and checkpoint_ns = ''
"""  # noqa: S608 - the schema's name is a constant

_CHECKPOINT = text(f"{CHECKPOINT_VALUES} order by checkpoint_id desc limit 1")

_HISTORY = text(
    f"""
    select checkpoint_id, parent_checkpoint_id, metadata, checkpoint ->> 'ts' as created_at
    from {SCHEMA}.checkpoints
    where thread_id = :key and checkpoint_ns = ''
        and (cast(:after as text) is null or checkpoint_id < :after)
    order by checkpoint_id desc limit :limit
    """  # noqa: S608 - the schema's name is a constant
)


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What a thread has come to.

    values: the state's channels as JSON. next: the nodes that are to run when the thread goes on.
    interrupts: the questions that wait for a person, [{"id", "value"}, …].
    checkpoint_id: None before the first checkpoint.
    """

    tenant: str
    thread_id: str
    status: str
    values: dict[str, Any]
    next: tuple[str, ...]
    interrupts: tuple[Any, ...]
    checkpoint_id: str | None
    created_at: str | None
    metadata: dict[str, Any]
    updated_at: datetime.datetime

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "tenant": self.tenant,
            "thread_id": self.thread_id,
            "status": self.status,
            "values": self.values,
            "next": list(self.next),
            "interrupts": list(self.interrupts),
            "checkpoint_id": self.checkpoint_id,
            "created_at": self.created_at,
            "metadata": self.metadata,
            "updated_at": timestamp(self.updated_at),
        }


def read_state(tenant: str, thread_id: str) -> Plan[ThreadState]:
    """The thread's newest state. Raises ThreadNotFound, also for another tenant's thread."""
    thread = select(
        _threads.c.status,
        _threads.c.next_nodes,
        _threads.c.interrupts,
        _threads.c.metadata,
        _threads.c.updated_at,
    ).where(_threads.c.tenant == check_tenant(tenant), _threads.c.thread_id == check_thread_id(thread_id))
    steps = [
        Step(bind_tenant(), {"tenant": tenant}),
        Step(thread, {}),
        Step(_CHECKPOINT, {"key": thread_key(tenant, thread_id)}),
    ]
    _, threads, checkpoints = yield Batch(steps)
    if not threads:
        raise ThreadNotFound(tenant, thread_id)
    row = threads[0]
    checkpoint = checkpoints[0] if checkpoints else None
    return ThreadState(
        tenant=tenant,
        thread_id=thread_id,
        status=row["status"],
        values=values_of(checkpoint) if checkpoint else {},
        next=tuple(row["next_nodes"]),
        interrupts=tuple(row["interrupts"] or ()),
        checkpoint_id=checkpoint["checkpoint_id"] if checkpoint else None,
        created_at=checkpoint["checkpoint"].get("ts") if checkpoint else None,
        metadata=row["metadata"],
        updated_at=row["updated_at"],
    )


def read_history(tenant: str, thread_id: str, limit: int, after: str | None) -> Plan[list[dict[str, Any]]]:
    """The thread's checkpoints, newest first: ids, step, source, time, and the run that wrote each."""
    known = select(_threads.c.tenant).where(
        _threads.c.tenant == check_tenant(tenant), _threads.c.thread_id == check_thread_id(thread_id)
    )
    steps = [
        Step(bind_tenant(), {"tenant": tenant}),
        Step(known, {}),
        Step(_HISTORY, {"key": thread_key(tenant, thread_id), "after": after, "limit": limit}),
    ]
    _, threads, rows = yield Batch(steps)
    if not threads:
        raise ThreadNotFound(tenant, thread_id)
    return [
        {
            "checkpoint_id": row["checkpoint_id"],
            "parent_checkpoint_id": row["parent_checkpoint_id"],
            "created_at": row["created_at"],
            "step": row["metadata"].get("step"),
            "source": row["metadata"].get("source"),
            "run_id": row["metadata"].get("run_id"),
        }
        for row in rows
    ]


def values_of(row: Row) -> dict[str, Any]:
    """The state's channels, of a row of CHECKPOINT_VALUES.

    What only the graph's own code can work out is marked as undecoded.
    """
    types: Mapping[str, str] = row["types"] or {}
    values = dict(row["checkpoint"].get("channel_values") or {})
    for channel, blob in row["blobs"] or []:
        name = bytes(channel).decode()
        if types[name] != "empty":
            values[name] = decode(types[name], bytes(blob))
    for name in row["metadata"].get("counters_since_delta_snapshot") or ():
        values[name] = {"$undecoded": "DeltaChannel"}  # kept as the updates since its last snapshot
    return {name: value for name, value in values.items() if name == _ROOT or not name.startswith(_INTERNAL)}


def decode(kind: str, blob: bytes) -> Any:
    """A value that LangGraph's serialiser wrote, as JSON."""
    match kind:
        case "msgpack":
            return _plain(ormsgpack.unpackb(blob, ext_hook=_argument, option=ormsgpack.OPT_NON_STR_KEYS))
        case "json":
            return json.loads(blob)
        case "bytes" | "bytearray":
            return base64.b64encode(blob).decode()
        case "null":
            return None
        case _:
            return {"$undecoded": kind}


def _argument(code: int, data: bytes) -> Any:
    """What an extension value was made from: (module, name, argument, …) → argument."""
    if code == _NUMPY_ARRAY:
        return {"$undecoded": "numpy array"}
    if code not in (*_CONSTRUCTORS, _DELTA_SNAPSHOT):
        return {"$undecoded": f"extension {code}"}
    value = ormsgpack.unpackb(data, ext_hook=_argument, option=ormsgpack.OPT_NON_STR_KEYS)
    match value:
        case _ if code == _DELTA_SNAPSHOT:
            return value
        case [module, name, argument, *_]:
            return _shown(module, name, argument)
        case _:
            return {"$undecoded": f"extension {code}"}


def _shown(module: object, name: object, argument: Any) -> Any:
    """The argument as a run's output shows such a value."""
    try:
        match module, name:
            case "uuid", "UUID":
                return str(uuid.UUID(argument))
            case "datetime", "date":
                return datetime.date(*argument).isoformat()
            case "datetime", "time":
                return datetime.time(**argument).isoformat()
            case "datetime", "timedelta":
                return str(datetime.timedelta(*argument))
            case "pathlib" | "pathlib._local", _:
                return str(PurePosixPath(*argument))
            case "pydantic.types", "SecretStr" | "SecretBytes":
                return "**********"
    except (TypeError, ValueError, AttributeError, OverflowError):
        pass  # written by something else under that name: shown as it is
    return argument


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return str(value)  # NaN and infinity are no JSON
        case _:
            return value
