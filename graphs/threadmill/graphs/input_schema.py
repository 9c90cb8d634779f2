"""The JSON schema of a graph's input, as wide as what LangGraph itself takes.

LangGraph checks an input late and little: a TypedDict not at all, a message in any of five spellings, a
channel with a reducer as that reducer pleases. A schema that said more would refuse runs that succeed, so
where LangGraph takes anything, `{}` stands.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NotRequired, Required, cast, get_origin

import jsonschema_rs
from langchain_core import messages
from langgraph.channels import BinaryOperatorAggregate, LastValue
from langgraph.channels.base import BaseChannel
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema
from typing_extensions import TypedDict, get_type_hints, is_typeddict

_MESSAGES = {
    value.__name__
    for value in (getattr(messages, name) for name in messages.__all__)
    if isinstance(value, type) and issubclass(value, messages.BaseMessage)
}
# How a JSON input reaches past a channel's reducer (langgraph.types.Overwrite).
_OVERWRITE = {
    "type": "object",
    "anyOf": [
        {"required": ["__overwrite__"]},
        {"required": ["type", "value"], "properties": {"type": {"const": "__overwrite__"}}},
    ],
}


def input_schema(graph: Pregel[Any, Any, Any, Any]) -> dict[str, Any]:
    """The schema; `{}` where none can be said."""
    try:
        if isinstance(graph, CompiledStateGraph):
            schema = _of_state_graph(graph)
        else:
            schema = _without_messages(graph.get_input_schema().model_json_schema(schema_generator=_Lenient))
        jsonschema_rs.validator_for(schema)  # it has its own mind about regular expressions
    except Exception:
        return {}
    return schema


def _of_state_graph(graph: CompiledStateGraph[Any, Any, Any, Any]) -> dict[str, Any]:
    typ = graph.builder.input_schema
    keys = graph.builder.schemas[typ]
    hints = {key: channel.UpdateType for key, channel in keys.items() if isinstance(channel, BaseChannel)}
    if set(hints) == {"__root__"}:
        return _without_messages(_of_type(hints["__root__"]))
    if isinstance(typ, type) and issubclass(typ, BaseModel):
        schema = typ.model_json_schema(by_alias=False, schema_generator=_Lenient)
    else:
        schema = _of_type(_typed_dict({key: _sayable(hint) for key, hint in hints.items()}))
    definitions = schema.get("$defs", {})
    schema = definitions.get(schema.get("$ref", "").removeprefix("#/$defs/"), schema)  # a recursive model
    properties = {
        key: _widened(schema["properties"].get(key, {}), graph.builder.channels.get(key), definitions)
        for key in hints
    }
    result: dict[str, Any] = {"type": "object", "properties": properties}
    used = {name: definitions[name] for name in _reachable(properties, definitions)}
    if used:
        result["$defs"] = used
    if is_typeddict(typ) and typ is graph.builder.state_schema:
        # A part of the state is input enough, the rest is in the thread; without any key it is a mistake.
        result["anyOf"] = [{"required": [key]} for key in hints]
    elif required := _required(typ, schema, hints):
        result["required"] = required
    return result


def _widened(schema: object, channel: object, definitions: Mapping[str, Any]) -> object:
    if isinstance(channel, LastValue):
        return {} if _mentions_message(schema, definitions) else schema
    if isinstance(channel, BinaryOperatorAggregate) and _is_standard(channel):
        return {} if _mentions_message(schema, definitions) else {"anyOf": [schema, _OVERWRITE]}
    return {}


def _is_standard(channel: BinaryOperatorAggregate[Any]) -> bool:
    """Whether the reducer is one of the module `operator`, which takes the type that it gives."""
    return getattr(channel.operator, "__module__", None) == operator.add.__module__


def _required(typ: Any, schema: Mapping[str, Any], hints: Mapping[str, Any]) -> list[str]:
    if is_typeddict(typ):
        # Under `from __future__ import annotations` `__required_keys__` does not see (Not)Required.
        wrappers: dict[str, object] = {
            key: get_origin(hint) for key, hint in get_type_hints(typ, include_extras=True).items()
        }
        required = (typ.__required_keys__ | {k for k, w in wrappers.items() if w is Required}) - {
            k for k, w in wrappers.items() if w is NotRequired
        }
        return [key for key in hints if key in required]
    if is_dataclass(typ):
        return [f.name for f in fields(typ) if f.name in hints and f.default is f.default_factory is MISSING]
    return list(schema.get("required", []))


def _typed_dict(hints: Mapping[str, Any]) -> Any:
    # Not typing's, which pydantic refuses before Python 3.12.
    return cast(Any, TypedDict)("Input", dict(hints), total=False)


def _sayable(hint: Any) -> Any:
    """The type, or Any where pydantic has no schema for it: `typing.TypedDict` before Python 3.12, say."""
    try:
        _of_type(hint)
    except Exception:
        return Any
    return hint


def _of_type(hint: Any) -> dict[str, Any]:
    return TypeAdapter(hint).json_schema(schema_generator=_Lenient)


def _without_messages(schema: dict[str, Any]) -> dict[str, Any]:
    return {} if _mentions_message(schema, schema.get("$defs", {})) else schema


def _mentions_message(schema: object, definitions: Mapping[str, Any]) -> bool:
    reached = [schema, *(definitions[name] for name in _reachable(schema, definitions))]
    titles = [node.get("title") for part in reached for node in _objects(part)]
    return any(isinstance(title, str) and title in _MESSAGES for title in titles)


def _reachable(schema: object, definitions: Mapping[str, Any]) -> list[str]:
    """The names of the definitions that the schema refers to, directly or through others."""
    found: dict[str, None] = {}
    waiting = [schema]
    while waiting:
        for node in _objects(waiting.pop()):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            if name in definitions and name not in found:
                found[name] = None
                waiting.append(definitions[name])
    return list(found)


def _objects(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _objects(item)


class _Lenient(GenerateJsonSchema):
    """Says nothing, `{}`, about a type that JSON has no word for, where pydantic raises."""

    def handle_invalid_for_json_schema(
        self,
        schema: core_schema.CoreSchema,  # noqa: ARG002
        error_info: str,  # noqa: ARG002
    ) -> JsonSchemaValue:
        return {}

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """A default that is no JSON is left out; that is no news to whoever starts a worker."""
