"""What a graph gave back, as the JSON that the ledger keeps."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import json
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from threadmill.core.policy import GraphPolicy

INTERRUPT_KEY = "__interrupt__"


def select_output(value: Any, policy: GraphPolicy) -> Any:
    """The part of a graph's output that its policy keeps."""
    if policy.output == "none":
        return None
    if isinstance(value, Mapping):
        value = {key: item for key, item in value.items() if key != INTERRUPT_KEY}
        if policy.output != "all":
            value = {key: value[key] for key in policy.output if key in value}
    return value


def as_json(value: Any, max_bytes: int) -> Any:
    """The value as `plain` JSON data, or a marker that says how large it was."""
    document = plain(value)
    # Escaped to ASCII, so that no lone surrogate in a model's answer can keep a run from finishing.
    size = len(json.dumps(document, ensure_ascii=True))
    if size > max_bytes:
        return {"$omitted": {"reason": "larger than max_output_bytes", "bytes": size, "limit": max_bytes}}
    return document


def interrupts_of(output: Any) -> list[dict[str, Any]] | None:
    """The questions at which the graph stopped, [{"id", "value"}, …]; None if it ran to its end."""
    if not isinstance(output, Mapping) or not output.get(INTERRUPT_KEY):
        return None
    return [{"id": item.id, "value": plain(item.value)} for item in output[INTERRUPT_KEY]]


def plain(value: Any) -> Any:
    """The value as JSON data.

    Messages and other pydantic models become what `model_dump` gives, dataclasses their fields, sets and
    tuples arrays, bytes base64, times ISO 8601; what is none of these becomes its `str`.
    """
    match value:
        case enum.Enum():
            return plain(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if value - value == 0 else str(value)  # NaN and infinity are no JSON
        case BaseModel():
            return plain(value.model_dump())
        case Mapping():
            return {_key(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset() | deque():
            return [plain(item) for item in value]
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return str(value)


def _key(key: Any) -> str:
    return str(key.value if isinstance(key, enum.Enum) else key)
