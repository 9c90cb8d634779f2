"""A checkpoint rebuilds the types of the graph's own state, and nothing else that a blob may name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

PROGRAM = """
import asyncio
from pathlib import Path

from threadmill.graphs import Registry
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

async def main():
    graph = await Registry.read(Path("langgraph.json")).graph("agent")
    graph.checkpointer = InMemorySaver()
    thread = {"configurable": {"thread_id": "1"}}
    await graph.ainvoke({"text": "a"}, thread)
    values = (await graph.aget_state(thread)).values
    print(type(values["known"]).__name__, type(values["smuggled"]).__name__)

asyncio.run(main())
"""
STATE = """
    from dataclasses import dataclass
    from typing import Any

    @dataclass
    class Known:
        text: str

    @dataclass
    class Smuggled:
        text: str

    class Notes(TypedDict):
        text: str
        known: Known
        smuggled: Any

    def note(state):
        return {"known": Known("a"), "smuggled": Smuggled("b")}

    graph = StateGraph(Notes).add_node("note", note).add_edge(START, "note")
"""


def test_only_types_that_the_state_declares_come_back_from_a_checkpoint(project: Any) -> None:
    # In a fresh interpreter: what is strict is decided when langgraph is first imported.
    project.agent(STATE)
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["Known", "dict"]
