"""A folder with a langgraph.json of the test's own."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from threadmill.graphs import Registry

# A state, a node and a builder that needs no more than START → say.
AGENT = """
    from typing import TypedDict
    from langgraph.graph import START, StateGraph

    class State(TypedDict):
        text: str

    def say(state):
        return {"text": state["text"] + "!"}

    builder = StateGraph(State).add_node("say", say).add_edge(START, "say")
    graph = builder.compile()
"""


class Project:
    """Writes files beneath a folder and reads its langgraph.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def read(self, **content: Any) -> Registry:
        """The registry of a langgraph.json that holds these keys."""
        return Registry.read(self.write("langgraph.json", json.dumps(content)))

    def agent(self, source: str, value: str = "./agent.py:graph") -> Registry:
        """The registry of one graph, `agent`, out of agent.py."""
        self.write("agent.py", textwrap.dedent(AGENT) + textwrap.dedent(source))
        return self.read(graphs={"agent": value})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    # The path is written to langgraph.json as the user would see it: relative to where the command runs.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Project(Path())


@pytest.fixture
def forget_modules() -> Callable[[], None]:
    """Makes the process forget the graphs' files, as another process has never seen them."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("graph_")]:
            del sys.modules[name]

    return forget
