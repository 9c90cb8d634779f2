"""What an operator's patch of a failed run's state comes to, as writes that LangGraph applies itself.

`update_state` is of no use here: it makes a new checkpoint as if a node had run, which clears what the other
edges and pending sends of the step stand for, gives every task another id, and so runs finished siblings
again. What a command's `update` does is what is wanted: LangGraph keeps writes of no task (its "null task")
beside the checkpoint and applies them before it looks what is to run, which stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import AnyValue, BinaryOperatorAggregate, DeltaChannel, LastValue
from langgraph.channels.base import BaseChannel
from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple
from langgraph.constants import CONF
from langgraph.errors import EmptyChannelError
from langgraph.pregel import Pregel
from langgraph.types import Overwrite
from pydantic import BaseModel, TypeAdapter

from threadmill.core.errors import InvalidInput
from threadmill.core.merge_patch import merge
from threadmill.workers.output import plain

# Of a write that is no task's (langgraph._internal._constants).
NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"

Reducer = BinaryOperatorAggregate, DeltaChannel


class PatchWrite(NamedTuple):
    """A write beside the checkpoint. position: among those of no task; what stands there is replaced."""

    position: int
    channel: str
    value: Any


async def patch_writes(
    graph: Pregel[Any, Any, Any, Any], config: RunnableConfig, found: CheckpointTuple | None, patch: Any
) -> list[PatchWrite]:
    """What is to be written beside the checkpoint at which the thread stands.

    found: the checkpoint. patch: a JSON merge patch (RFC 7386) of the state as JSON. Raises InvalidInput.
    """
    if not isinstance(patch, Mapping):
        raise _refused("", "must be an object, with a key for each channel")
    if found is None:
        raise _refused("", "the run has no state yet")
    values = await _values(graph, config, found)
    before = {name: plain(values[name]) for name in patch if name in values}
    after = merge(before, dict(patch))
    standing = [
        (channel, value)
        for task, channel, value in found.pending_writes or []
        if task == NULL_TASK_ID and channel not in WRITES_IDX_MAP
    ]
    writes = []
    free = len(standing)
    for name in patch:
        channel = _channel(graph, name)
        value = _value(channel, values.get(name), after.get(name))
        position = _position(channel, name, standing)
        if position is None:
            position, free = free, free + 1
        writes.append(PatchWrite(position, name, value))
    return writes


async def _values(
    graph: Pregel[Any, Any, Any, Any], config: RunnableConfig, found: CheckpointTuple
) -> Mapping[str, Any]:
    """The state at the checkpoint. Asked for by its id: else what finished siblings wrote is in it already,
    and would be applied once more when the step is done."""
    place = {**config[CONF], "checkpoint_id": found.checkpoint["id"]}
    snapshot = await graph.aget_state({**config, "configurable": place})
    if not isinstance(snapshot.values, Mapping):
        raise _refused("", "the graph's state has no channels by name")
    return snapshot.values


def _channel(graph: Pregel[Any, Any, Any, Any], name: str) -> BaseChannel[Any, Any, Any]:
    channel = graph.channels.get(name) if name in graph.stream_channels_list else None
    if channel is None:
        raise _refused(f".{name}", "the graph's state has no such channel")
    if not isinstance(channel, LastValue | AnyValue | BinaryOperatorAggregate | DeltaChannel):
        raise _refused(f".{name}", f"a {type(channel).__name__} keeps nothing that could be patched")
    return channel


def _position(channel: BaseChannel[Any, Any, Any], name: str, standing: list[tuple[str, Any]]) -> int | None:
    """Where the channel's own write stands beside which it takes no other; None where it takes one more."""
    for position, (written, value) in enumerate(standing):
        if written == name and (not isinstance(channel, Reducer) or isinstance(value, Overwrite)):
            return position
    return None


def _value(channel: BaseChannel[Any, Any, Any], before: Any, after: Any) -> Any:
    """What is written for a channel that is to hold `after` (JSON; None where the patch takes it away)."""
    if isinstance(channel, Reducer):
        made = _empty(channel) if after is None else _reduced(channel, after)
        # Where there is nothing yet, LangGraph takes the first write as it is.
        return made if before is None else Overwrite(made)
    if after is not None and (isinstance(before, BaseModel) or is_dataclass(before)):
        try:
            return TypeAdapter(type(before)).validate_python(after)
        except ValueError as error:
            raise _refused("", f"{after!r:.80} is no {type(before).__name__}") from error
    return after


def _empty(channel: BaseChannel[Any, Any, Any]) -> Any:
    try:
        return channel.copy().get()
    except EmptyChannelError:
        return None


def _reduced(channel: BaseChannel[Any, Any, Any], after: Any) -> Any:
    """The value as the reducer makes it of nothing: messages of what is written as such.

    As it is where a reducer makes something else of it, as one does that appends single items.
    """
    alone = channel.copy()
    try:
        alone.update([after])
        made = alone.get()
    except Exception:  # a reducer is the graph's own code
        return after
    if isinstance(made, list) and made and all(isinstance(item, BaseMessage) for item in made):
        return made
    return made if plain(made) == after else after


def _refused(path: str, reason: str) -> InvalidInput:
    return InvalidInput("state_patch", path, reason)
