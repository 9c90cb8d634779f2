"""What langgraph.json may hold, and how it says what it must not."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from threadmill.core.errors import GraphConfigInvalid
from threadmill.core.policy import GraphPolicy
from threadmill.graphs import Registry

GRAPHS = {"agent": "./agent.py:graph"}


def test_a_file_as_langgraphs_own_cli_writes_it_is_read(project: Any) -> None:
    registry = project.read(
        graphs={"agent": "./agent.py:graph", "other": {"path": "package.other:make", "description": "…"}},
        dependencies=[".", "langchain_openai"],
        env={"A": "1"},
        python_version="3.12",
        dockerfile_lines=["RUN true"],
        store={"index": {"embed": "openai:text-embedding-3-small"}},
        auth={"path": "./auth.py:auth"},
        http={"app": "./app.py:app"},
    )
    assert registry.names == ("agent", "other")
    assert registry.location("other") == "package.other:make"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"graphs": {}}, "langgraph.json: line 1: graphs: names no graph"),
        ({}, "langgraph.json: graphs: must be an object"),
        ({"graphs": {"agent": 3}}, "langgraph.json: line 1: graphs.agent: must be a string"),
        (
            {"graphs": {"agent": {"description": "…"}}},
            "langgraph.json: line 1: graphs.agent.path: must be a string",
        ),
        ({"graphs": {"agent": "./agent.py"}}, "langgraph.json: line 1: graphs.agent: './agent.py' must be"),
        ({"graphs": {"agent": ":graph"}}, "langgraph.json: line 1: graphs.agent: ':graph' must be"),
        (
            {"graphs": {"agent": "./agent.py:a b"}},
            "langgraph.json: line 1: graphs.agent: './agent.py:a b' must be",
        ),
        (
            {"graphs": GRAPHS, "dependencies": "."},
            "langgraph.json: line 1: dependencies: must be a list of strings",
        ),
        (
            {"graphs": GRAPHS, "dependencies": ["./x"]},
            "langgraph.json: line 1: dependencies[0]: there is no folder ./x",
        ),
        ({"graphs": GRAPHS, "env": 3}, "langgraph.json: line 1: env: must be an object"),
        ({"graphs": GRAPHS, "threadmill": []}, "langgraph.json: line 1: threadmill: must be an object"),
        (
            {"graphs": GRAPHS, "threadmill": {"grahps": {}}},
            "langgraph.json: line 1: threadmill.grahps: unknown key",
        ),
        (
            {"graphs": GRAPHS, "threadmill": {"graphs": {"agnet": {}}}},
            "langgraph.json: line 1: threadmill.graphs.agnet: no such graph; there are agent",
        ),
        (
            {"graphs": GRAPHS, "threadmill": {"graphs": {"agent": {"max_atempts": 5}}}},
            "langgraph.json: line 1: threadmill.graphs.agent.max_atempts: unknown key; there are durability",
        ),
        (
            {"graphs": GRAPHS, "threadmill": {"graphs": {"agent": {"max_attempts": 0}}}},
            "langgraph.json: line 1: threadmill.graphs.agent.max_attempts: Input should be greater",
        ),
        (
            {"graphs": GRAPHS, "threadmill": {"defaults": {"output": "some"}}},
            "langgraph.json: line 1: threadmill.defaults.output: ",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(project: Any, content: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphConfigInvalid) as error:
        project.read(**content)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "langgraph.json: is no JSON: line 1, column 2: "),
        (b"[]", "langgraph.json: must be an object"),
        (b'{"a": "\xff"}', "langgraph.json: is not UTF-8: "),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(project: Any, content: bytes, message: str) -> None:
    path = project.write("langgraph.json", "")
    path.write_bytes(content)
    with pytest.raises(GraphConfigInvalid) as error:
        Registry.read(path)
    assert str(error.value).startswith(message)


def test_a_missing_file_is_named(project: Any) -> None:
    with pytest.raises(GraphConfigInvalid, match=r"nowhere\.json: cannot be read"):
        Registry.read(Path("nowhere.json"))


POLICIES = """{
  "graphs": {"chat": "./agent.py:graph", "timeout": "./agent.py:graph"},
  "threadmill": {
    "defaults": {
      "timeout": 60
    },
    "graphs": {
      "timeout": {"deadline": 600},
      "chat": {
        "max_attempts": 5,
        "output": ["timeout", "}"],
        %s
      }
    }
  }
}"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('"timeout":\n -1', "line 12: threadmill.graphs.chat.timeout: Input should be greater than 0"),
        ('\n"retry_dealy": 1', "line 13: threadmill.graphs.chat.retry_dealy: unknown key; there are "),
        ('"deadline": 10', "line 9: threadmill.graphs.chat: timeout 60 s is longer than deadline 10 s"),
        ('"retry_delay": 90', "line 9: threadmill.graphs.chat: retry_delay 90 s is longer than retry_"),
        (
            '"timeout": -1,\n"classifier": 3',
            "line 13: threadmill.graphs.chat.classifier: Input should be a valid string; "
            "line 12: threadmill.graphs.chat.timeout: Input should be greater than 0",
        ),
        ('"classifier": "./judge.py"', "line 12: threadmill.graphs.chat.classifier: './judge.py' must be"),
        # The later one is what counts, so the later one is named.
        ('"timeout": 5,\n"timeout": 0', "line 13: threadmill.graphs.chat.timeout: Input should be"),
    ],
)
def test_an_impossible_policy_is_named_with_its_line(project: Any, values: str, message: str) -> None:
    with pytest.raises(GraphConfigInvalid) as error:
        Registry.read(project.write("langgraph.json", POLICIES % values))
    assert str(error.value).startswith(f"langgraph.json: {message}")


@pytest.mark.parametrize(
    ("threadmill", "message"),
    [
        (
            '{"defaults": {"timeout": 9,\n"deadline": 3}}',
            "line 2: threadmill.defaults: timeout 9 s is longer than deadline 3 s",
        ),
        (
            '{"defaults": {\n"classifier": "judge"}}',
            "line 3: threadmill.defaults.classifier: 'judge' must be ",
        ),
    ],
)
def test_an_impossible_default_is_named_with_its_line(project: Any, threadmill: str, message: str) -> None:
    text = '{"graphs": {"chat": "./agent.py:graph"}, "threadmill":\n%s}' % threadmill  # noqa: UP031
    with pytest.raises(GraphConfigInvalid) as error:
        Registry.read(project.write("langgraph.json", text))
    assert str(error.value).startswith(f"langgraph.json: {message}")


def test_a_graphs_policy_stands_on_the_defaults(project: Any) -> None:
    registry = project.read(
        graphs={"a": "./agent.py:graph", "b": "./agent.py:graph"},
        threadmill={
            "defaults": {"max_attempts": 5, "timeout": 60},
            "graphs": {"a": {"max_attempts": 1, "output": ["answer"]}},
        },
    )
    assert registry.policy("a") == GraphPolicy(max_attempts=1, timeout=60, output=("answer",))
    assert registry.policy("b") == GraphPolicy(max_attempts=5, timeout=60)


def test_reading_changes_nothing_in_the_process(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHS_TEST", raising=False)
    before = list(sys.path)
    project.read(graphs=GRAPHS, dependencies=["."], env={"GRAPHS_TEST": "1"})
    assert sys.path == before
    assert "GRAPHS_TEST" not in os.environ


def test_activating_adds_the_folders_once_behind_all_else(project: Any) -> None:
    project.write("src/mine.py", "")
    registry = project.read(graphs=GRAPHS, dependencies=["./src", "requests"])
    before = list(sys.path)
    registry.activate()
    registry.activate()
    assert sys.path == [*before, str(Path("src").resolve())]


@pytest.mark.parametrize("form", ["file", "mapping"])
def test_activating_sets_only_variables_that_are_not_set(
    project: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("GRAPHS_TEST_SET", "mine")
    monkeypatch.setenv("GRAPHS_TEST_NEW", "")  # so that monkeypatch restores it
    monkeypatch.delenv("GRAPHS_TEST_NEW")
    project.write(".env", "GRAPHS_TEST_SET=theirs\nGRAPHS_TEST_NEW='new'\nGRAPHS_TEST_BARE\n")
    env = ".env" if form == "file" else {"GRAPHS_TEST_SET": "theirs", "GRAPHS_TEST_NEW": "new"}
    project.read(graphs=GRAPHS, env=env).activate()
    assert (os.environ["GRAPHS_TEST_SET"], os.environ["GRAPHS_TEST_NEW"]) == ("mine", "new")
    assert "GRAPHS_TEST_BARE" not in os.environ


def test_an_env_file_that_is_not_there_is_no_error(project: Any) -> None:
    project.read(graphs=GRAPHS, env=".env").activate()
