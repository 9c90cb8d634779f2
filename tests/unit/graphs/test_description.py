"""What is said of a graph is the same in every process, and changes when the graph does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from threadmill.core.policy import GraphPolicy
from threadmill.graphs import GraphDescription, Registry, check

WITH_BRANCHES = """
    def choose(state):
        return "yes"

    graph = (
        StateGraph(State)
        .add_node("ask", say).add_node("yes", say).add_node("no", say).add_node("sub", builder.compile())
        .add_edge(START, "ask")
        .add_conditional_edges("ask", choose, {"agreed": "yes", "refused": "no"})
        .add_edge("yes", "sub")
    )
"""


async def described(project: Any, source: str) -> GraphDescription:
    return await project.agent(source).describe("agent")


async def test_a_description_holds_what_a_producer_needs(project: Any) -> None:
    registry = project.agent("")
    registry = project.read(
        graphs={"agent": "./agent.py:graph"}, threadmill={"graphs": {"agent": {"max_attempts": 7}}}
    )
    description = await registry.describe("agent")
    assert description.name == "agent"
    assert description.channels == ("text",)
    assert description.input_schema["anyOf"] == [{"required": ["text"]}]
    assert description.policy == GraphPolicy(max_attempts=7)
    json.dumps(description.input_schema)


async def test_a_comment_changes_the_version_and_not_the_topology(
    project: Any, forget_modules: Callable[[], None]
) -> None:
    one = await described(project, WITH_BRANCHES)
    forget_modules()
    two = await described(project, WITH_BRANCHES + "\n    # a comment\n")
    assert one.version != two.version
    assert one.topology_hash == two.topology_hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"yes", "sub"', '"no", "sub"'),
        ('"refused": "no"', '"declined": "no"'),
        ("builder.compile()", 'builder.add_node("more", say).add_edge("say", "more").compile()'),
        ('.add_edge("yes", "sub")', '.add_edge("yes", "sub").add_node("late", say).add_edge("sub", "late")'),
    ],
    ids=["edge", "condition", "subgraph", "node"],
)
async def test_a_change_of_shape_changes_the_topology(
    project: Any, forget_modules: Callable[[], None], old: str, new: str
) -> None:
    one = await described(project, WITH_BRANCHES)
    forget_modules()
    assert old in WITH_BRANCHES
    two = await described(project, WITH_BRANCHES.replace(old, new))
    assert one.topology_hash != two.topology_hash


async def test_a_description_is_the_same_in_every_process(project: Any) -> None:
    here = await described(project, WITH_BRANCHES)
    program = (
        "import asyncio; from pathlib import Path; from threadmill.graphs import Registry;"
        "d = asyncio.run(Registry.read(Path('langgraph.json')).describe('agent'));"
        "print(d.version, d.topology_hash)"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.split() == [here.version, here.topology_hash]


async def test_a_factory_that_takes_a_config_is_described_without_one(project: Any) -> None:
    await described(
        project, 'def graph(config): return builder.compile(name=config["configurable"].get("n"))'
    )


async def test_all_graphs_of_this_repository_can_be_served() -> None:
    checks = await check(Registry.read(Path(__file__).parents[3] / "langgraph.json"))
    assert [(found.name, found.error) for found in checks] == [
        ("librarian", None),
        ("approval", None),
        ("assistant", None),
    ]


async def test_a_check_tells_the_good_from_the_bad(project: Any) -> None:
    project.agent("")
    project.write("bad.py", "raise LookupError('no such luck')\n")
    registry: Registry = project.read(graphs={"bad": "./bad.py:graph", "good": "./agent.py:graph"})
    bad, good = await check(registry)
    assert (bad.name, bad.location, bad.ok, bad.description) == ("bad", "./bad.py:graph", False, None)
    assert bad.error == "graph 'bad' (bad.py:1): LookupError: no such luck"
    assert (good.name, good.ok, good.error) == ("good", True, None)
    assert good.description is not None
    assert good.description.name == "good"
