"""A graph to try a deployment with, and to be replaced: it knows who has been on its thread before."""

from __future__ import annotations

import operator
from typing import Annotated

from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict  # LangGraph reads no schema off the one of typing before 3.12


class Visit(TypedDict):
    name: str


class Greeting(TypedDict):
    greeting: str


class Guestbook(Visit, Greeting):
    visits: Annotated[list[str], operator.add]


def sign(state: Guestbook) -> dict[str, list[str]]:
    return {"visits": [state["name"]]}


def greet(state: Guestbook) -> Greeting:
    name = state["name"]
    visit = state["visits"].count(name)
    return {"greeting": f"Welcome, {name}." if visit == 1 else f"Welcome back, {name}: visit {visit}."}


graph = (
    StateGraph(Guestbook, input_schema=Visit, output_schema=Greeting)
    .add_node("sign", sign)
    .add_node("greet", greet)
    .add_edge(START, "sign")
    .add_edge("sign", "greet")
    .add_edge("greet", END)
    .compile()
)
