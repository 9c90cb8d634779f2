"""A chat agent over any model that LangChain knows, with one tool: the librarian's docstrings.

ASSISTANT_MODEL names the model (default `openai:gpt-4o-mini`), ASSISTANT_TIMEOUT the seconds that one answer
may take (default 60); the key and the address are the provider's own variables, such as OPENAI_API_KEY and
OPENAI_BASE_URL. Neither importing nor describing the graph needs them: the model is made when first asked.
"""

from __future__ import annotations

import asyncio
import os
from functools import cache
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from threadmill.graphs.samples.follow_up import mentioned
from threadmill.graphs.samples.library import library

_INSTRUCTIONS = SystemMessage(
    "You answer questions about Python's standard library. Look the docstrings up before you answer, and "
    "name the functions that you rely on."
)


@tool
async def look_up(question: str) -> str:
    """Find docstrings of Python's standard library that answer a question, which should name a module."""
    books = await library()
    modules = mentioned(question) or list(filter(None, [books.find_module(question)]))
    passages = [passage for module in modules for passage in books.search(question, module)]
    return "\n".join(f"{p.name}: {p.line}" for p in passages) or "Nothing was found."


def graph() -> StateGraph[MessagesState, None, MessagesState, MessagesState]:
    """The agent; it makes its model once, when it is first asked."""
    make_model = cache(_make_model)

    async def think(state: MessagesState) -> dict[str, list[BaseMessage]]:
        # In a thread: the first time it imports the provider's client, which takes a second.
        model = await asyncio.to_thread(make_model)
        return {"messages": [await model.ainvoke([_INSTRUCTIONS, *state["messages"]])]}

    return (
        StateGraph(MessagesState)
        .add_node("think", think)
        .add_node("tools", ToolNode([look_up]))
        .add_edge(START, "think")
        .add_conditional_edges("think", tools_condition)
        .add_edge("tools", "think")
    )


def _make_model() -> Runnable[Any, AIMessage]:
    try:
        from langchain.chat_models import init_chat_model  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the assistant needs langchain: pip install "threadmill[dev]"', name=error.name
        ) from error
    model = init_chat_model(
        os.environ.get("ASSISTANT_MODEL", "openai:gpt-4o-mini"),
        timeout=float(os.environ.get("ASSISTANT_TIMEOUT", "60")),
        # The ledger tries again, with Retry-After honoured, and lets the worker go while it waits.
        max_retries=0,
    )
    return model.bind_tools([look_up])
