"""The graph whose runs wait, as a run does that has asked a model."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

from langgraph.graph import START, StateGraph


class State(TypedDict, total=False):
    """seconds: of waiting. waited: that it is over."""

    seconds: float
    waited: bool


async def wait(state: State) -> dict[str, Any]:
    await asyncio.sleep(state["seconds"])
    return {"waited": True}


waiting = StateGraph(State).add_node("wait", wait).add_edge(START, "wait")
