"""A conversation that grows, a kilobyte each way, kept as a list that is written whole, or as its changes."""

from __future__ import annotations

import random
import string
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph, add_messages
from langgraph.graph.message import _messages_delta_reducer

SIZE = 1_000  # characters of a message


class Whole(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


class Changes(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer)]


def noise() -> str:
    """Text that hardly compresses."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=SIZE))


async def answer(state: Any) -> dict[str, Any]:  # noqa: ARG001 - whatever was said
    return {"messages": [AIMessage(noise())]}


whole = StateGraph(Whole).add_node("answer", answer).add_edge(START, "answer")
whole_durable = whole_short = whole
changes = StateGraph(Changes).add_node("answer", answer).add_edge(START, "answer")
