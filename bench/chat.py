"""The graph that everybody runs: two nodes that cost nothing, so what is measured is what carries them."""

from __future__ import annotations

import time
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph import START, StateGraph, add_messages


class State(TypedDict):
    """The conversation, what the last message was taken to be about, and when its run had begun.

    began: the clock when the turn's first node was entered, so that it is told alike of everybody.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    intent: str
    began: float


def reply(text: str, messages: int) -> str:
    """What the graph answers to a text that is the thread's message number `messages`."""
    return f"{messages}: you said {text!r}"


def think(state: State) -> dict[str, Any]:
    return {"intent": f"message {len(state['messages'])}", "began": time.time()}


def answer(state: State) -> dict[str, Any]:
    messages = state["messages"]
    return {"messages": [AIMessage(reply(str(messages[-1].content), len(messages)))]}


async def think_async(state: State) -> dict[str, Any]:
    return think(state)


async def answer_async(state: State) -> dict[str, Any]:
    return answer(state)


# A plain function under `ainvoke` costs a hop to a thread, and a coroutine function cannot be invoked
# blocking; so each contestant gets the form that suits it.
chat = (
    StateGraph(State)
    .add_node("think", think_async)
    .add_node("answer", answer_async)
    .add_edge(START, "think")
    .add_edge("think", "answer")
)

chat_blocking = (
    StateGraph(State)
    .add_node("think", think)
    .add_node("answer", answer)
    .add_edge(START, "think")
    .add_edge("think", "answer")
)
