"""The JSON schema of a graph's input, as wide as what LangGraph itself takes.

LangGraph checks an input late and little: a TypedDict not at all, a message in any of five spellings. A schema
that says more than that would refuse runs which succeed, so where LangGraph takes anything, `{}` stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NotRequired, Required, get_args, get_origin, is_typeddict

import jsonschema_rs
from langgraph.channels import BinaryOperatorAggregate, LastValue
from langgraph.channels.base import BaseChannel
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import get_type_hints
from typing_extensions import is_typeddict as is_extended_typeddict

Schema = dict[str, Any]

# The forms in which LangGraph takes an update of a channel that has a reducer past that reducer.
_OVERWRITE = {
    "type": "object",
    "anyOf": [{"required": ["__overwrite__"]}, {"properties": {"type": {"const": "__overwrite__"}}, "required": ["type"]}],
}
