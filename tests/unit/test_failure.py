"""What is recorded of a failure: all of it that helps, none of it that is secret or without end."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from threadmill.core.errors import WorkerLost
from threadmill.graphs import Project, Registry
from threadmill.workers.failure import (
    MAX_EXCEPTIONS,
    MAX_FRAMES,
    MAX_JSON_BYTES,
    MAX_MESSAGE,
    MAX_TRACEBACK,
    Failure,
    describe,
    describe_bare,
    hooks_of,
)

KEY = "sk" + "-ant-api03-aB3dE6gH9jK2mN5pQ8sT"
_numbers = itertools.count()


def load(folder: Path, source: str, name: str = "app.py") -> ModuleType:
    """The module of this source, in a file of that folder."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source), "utf-8")
    spec = importlib.util.spec_from_file_location(f"app_{next(_numbers)}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raised(call: Callable[..., Any], *arguments: object) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call(*arguments)
    # Python shows the frame of this helper too; the graph's node is called by LangGraph.
    return caught.value.with_traceback(caught.tb.tb_next)


APP = """
    import json

    class Refused(Exception):
        pass

    def ask(text):
        secret_local = "the question of a user"
        return json.loads(text)

    def node(text):
        try:
            return ask(text)
        except ValueError as error:
            raise Refused("no answer") from error
"""


@pytest.fixture
def app(tmp_path: Path) -> ModuleType:
    return load(tmp_path, APP)


def test_the_chain_is_told_from_the_exception_that_was_raised_to_what_it_came_from(
    app: ModuleType, tmp_path: Path
) -> None:
    failure = describe(raised(app.node, "{"), "chat", "ask", task="t1", own=Project(tmp_path))
    outer, inner = failure.exceptions
    assert (outer["type"], outer["message"], outer["link"], outer["of"]) == (
        "Refused",
        "no answer",
        "raised",
        None,
    )
    assert (inner["type"], inner["module"], inner["link"], inner["of"]) == (
        "JSONDecodeError",
        "json.decoder",
        "caused by",
        0,
    )
    assert (failure.node, failure.task, failure.exception_type, failure.message) == (
        "ask",
        "t1",
        "Refused",
        "no answer",
    )
    assert "The above exception was the direct cause" in failure.traceback


def test_a_frame_tells_whose_code_it_is_and_where_without_the_machines_folders(
    app: ModuleType, tmp_path: Path
) -> None:
    failure = describe(raised(app.node, "{"), "chat", "ask", own=Project(tmp_path))
    frames = failure.exceptions[1]["frames"]
    assert frames[:2] == [
        {"file": "app.py", "line": 13, "function": "node", "code": "return ask(text)", "own": True},
        {"file": "app.py", "line": 9, "function": "ask", "code": "return json.loads(text)", "own": True},
    ]
    assert [(frame["file"], frame["own"]) for frame in frames[2:4]] == [
        ("json/__init__.py", False),
        ("json/decoder.py", False),
    ]
    text = json.dumps(failure.exceptions)
    assert str(tmp_path) not in text
    assert sys.prefix not in text
    assert sys.base_prefix not in text


def test_no_variable_is_kept(app: ModuleType, tmp_path: Path) -> None:
    assert "the question of a user" not in repr(describe(raised(app.node, "{"), "chat", None))


def test_what_was_being_handled_and_the_members_of_a_group_are_told_as_such() -> None:
    group = ExceptionGroup("both", [ValueError("a"), TypeError("b")])
    group.__context__ = KeyError("c")
    links = [(e["type"], e["link"], e["of"]) for e in describe(group, "chat", None).exceptions]
    assert links == [
        ("ExceptionGroup", "raised", None),
        ("KeyError", "while handling", 0),
        ("ValueError", "member of", 0),
        ("TypeError", "member of", 0),
    ]


def test_what_was_suppressed_is_not_told() -> None:
    error = ValueError("a")
    error.__context__ = KeyError(KEY)
    error.__suppress_context__ = True
    assert [e["type"] for e in describe(error, "chat", None).exceptions] == ["ValueError"]


def test_a_ring_of_exceptions_ends() -> None:
    first, second = ValueError("a"), TypeError("b")
    first.__cause__, second.__context__ = second, first
    assert [e["type"] for e in describe(first, "chat", None).exceptions] == ["ValueError", "TypeError"]


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(KEY)


class Twisted(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError(KEY)


@pytest.mark.parametrize("kind", [Mute, Twisted])
def test_an_exception_that_cannot_be_asked_is_recorded_all_the_same(kind: type[Exception]) -> None:
    failure = describe(kind("text"), "chat", "ask")
    assert failure.exception_type == kind.__name__
    assert failure.exceptions[0]["type"] == kind.__name__
    assert KEY not in repr(failure)


def test_what_postgres_cannot_keep_is_replaced() -> None:
    failure = describe(ValueError("a\x00b\ud800c"), "chat", None)
    assert failure.message == failure.exceptions[0]["message"] == "a\ufffdb?c"
    assert "\x00" not in failure.traceback
    failure.traceback.encode()


SECRETS = f"""
    def connect():
        raise ConnectionError("postgresql://app:hunter2@db/mill refused the key {KEY}")

    def node():
        try:
            connect()
        except ConnectionError:
            call(api_key="{KEY}")
"""


def test_secrets_are_in_no_field(tmp_path: Path) -> None:
    failure = describe(raised(load(tmp_path, SECRETS).node), "chat", "ask", own=Project(tmp_path))
    assert failure.exceptions[0]["frames"][0]["code"] == 'call(api_key="[redacted]")'
    assert (
        failure.exceptions[1]["message"] == "postgresql://app:[redacted]@db/mill refused the key [redacted]"
    )
    assert KEY not in repr(failure)
    assert "hunter2" not in repr(failure)


@pytest.mark.parametrize("at", [MAX_MESSAGE, MAX_TRACEBACK // 2, MAX_TRACEBACK - 100])
@pytest.mark.parametrize("before", range(0, len(KEY), 5))
def test_no_half_of_a_secret_is_left_where_a_text_is_cut(at: int, before: int) -> None:
    failure = describe(ValueError("x " * ((at - before) // 2) + KEY + " y" * MAX_TRACEBACK), "chat", None)
    assert KEY[:8] not in repr(failure)
    assert KEY[-8:] not in repr(failure)


def test_the_graphs_own_redaction_is_given_all_text(app: ModuleType, tmp_path: Path) -> None:
    def redact(text: str) -> str:
        return text.replace("answer", "[ours]").replace("json.loads", "[ours]")

    failure = describe(raised(app.node, "{"), "chat", "ask", own=Project(tmp_path), redact=redact)
    assert failure.message == failure.exceptions[0]["message"] == "no [ours]"
    assert "answer" not in failure.traceback
    assert failure.exceptions[1]["frames"][1]["code"] == "return [ours](text)"


def broken(_: str) -> str:
    raise ZeroDivisionError


@pytest.mark.parametrize("redact", [broken, lambda text: None, lambda text: 3])
def test_only_the_types_are_kept_where_the_graphs_own_redaction_fails(
    redact: Any, app: ModuleType, tmp_path: Path
) -> None:
    error = raised(app.node, "{")
    failure = describe(error, "chat", "ask", own=Project(tmp_path), redact=redact)
    assert (failure.exception_type, failure.node, failure.message, failure.traceback) == (
        "Refused",
        "ask",
        "",
        "",
    )
    assert [(e["type"], e["message"], e["frames"]) for e in failure.exceptions] == [
        ("Refused", "", []),
        ("JSONDecodeError", "", []),
    ]
    assert failure.fingerprint == describe(error, "chat", "ask", own=Project(tmp_path)).fingerprint


def deep(levels: int) -> None:
    if levels:
        deep(levels - 1)
    raise ValueError("é" * 10_000)


def test_a_deep_recursion_keeps_as_many_frames_as_are_read() -> None:
    (told,) = describe(raised(deep, 0), "chat", None).exceptions
    assert told["omitted"] == 0
    (told,) = describe(raised(deep, 300), "chat", None).exceptions
    assert len(told["frames"]) <= MAX_FRAMES
    assert len(told["frames"]) + told["omitted"] == 301


def test_of_many_frames_the_graphs_own_and_the_last_are_kept(tmp_path: Path) -> None:
    source = "def node(levels, call): return call() if not levels else node(levels - 1, call)"
    nodes = load(tmp_path, source).node
    library = load(tmp_path, "def node(n, call): return call() if not n else node(n - 1, call)", "lib.py")

    def through_the_library() -> None:
        library.node(200, lambda: 1 / 0)

    class Half(Project):
        def _place(self, filename: str) -> Any:
            place = super()._place(filename)
            return place._replace(own=place.file == "app.py")

    (told,) = describe(raised(nodes, 9, through_the_library), "chat", None, own=Half(tmp_path)).exceptions
    assert [frame["own"] for frame in told["frames"]] == [True] * 10 + [False] * 40
    assert told["frames"][-1]["code"] == "library.node(200, lambda: 1 / 0)"


def chained(count: int, text: str) -> BaseException:
    error: BaseException = raised(deep, 60)
    for number in range(count):
        outer = ValueError(f"{number} {text}").with_traceback(error.__traceback__)
        outer.__cause__ = error
        error = outer
    return error


def assert_bounded(failure: Failure) -> None:
    assert len(failure.message) <= MAX_MESSAGE
    assert len(failure.traceback) <= MAX_TRACEBACK
    assert 1 <= len(failure.exceptions) <= MAX_EXCEPTIONS
    assert all(len(exception["frames"]) <= MAX_FRAMES for exception in failure.exceptions)
    assert all(e["of"] is None or e["of"] < index for index, e in enumerate(failure.exceptions))
    assert len(json.dumps(failure.exceptions)) <= MAX_JSON_BYTES
    assert len(json.dumps(failure.exceptions, ensure_ascii=False).encode()) <= MAX_JSON_BYTES


@pytest.mark.parametrize("text", ["x" * 10, "x" * 100_000, "\U0001f9f5" * 50_000, "\x01" * 50_000])
@pytest.mark.parametrize("count", [1, 19, 2_000])
def test_a_failure_has_an_end(count: int, text: str) -> None:
    error = chained(count if len(text) < 100 else min(count, 30), text)
    failure = describe(error, "chat", None)
    assert_bounded(failure)
    assert failure.exceptions[0]["message"][:10] == failure.message[:10]


def test_a_chain_of_endless_names_is_cut_short() -> None:
    thread = "\U0001f9f5" * 300
    kind = type(thread, (Exception,), {"__module__": thread})
    error = kind(thread)
    for _ in range(MAX_EXCEPTIONS):
        outer = kind(thread)
        outer.__cause__, error = error, outer
    assert_bounded(describe(error, "chat", None))


def errors() -> st.SearchStrategy[BaseException]:
    plain = st.builds(ValueError, st.text(st.characters(codec=None)))

    def linked(inner: st.SearchStrategy[BaseException]) -> st.SearchStrategy[BaseException]:
        def link(error: BaseException, cause: BaseException, context: BaseException) -> BaseException:
            error.__context__, error.__cause__ = context, cause
            return error

        members = st.lists(inner, min_size=1, max_size=30)
        return st.builds(link, inner, inner, inner) | st.builds(BaseExceptionGroup, st.text(), members)

    return st.recursive(plain, linked, max_leaves=40)


@given(errors(), st.none() | st.text())
def test_every_failure_can_be_kept(error: BaseException, node: str | None) -> None:
    failure = describe(error, "chat", node)
    assert_bounded(failure)
    json.dumps(failure.exceptions, ensure_ascii=False).encode()
    assert "\\u0000" not in json.dumps([failure.exceptions, failure.message, failure.traceback])


def test_the_bare_failure_has_the_same_shape(app: ModuleType) -> None:
    failure = describe_bare(raised(app.node, "{"), "chat")
    assert failure.exceptions[0].keys() == describe(ValueError(), "chat", None).exceptions[0].keys()
    assert (failure.message, failure.traceback, failure.exceptions[0]["frames"]) == ("", "", [])
    assert len(failure.fingerprint) == 16


def test_a_failure_without_a_traceback_is_told() -> None:
    failure = describe(WorkerLost(3, "SIGKILL"), "chat", "ask")
    assert failure.exceptions[0]["frames"] == []
    assert failure.message == "its worker was lost 3 times, at last by SIGKILL"


HOOKS = """
    def redact(text):
        return text.replace("hunter2", "***")

    def named(error, node):
        return f"{node}/{error.args[0]}"

    graph = lambda: None
"""


def registry(folder: Path, **policy: str) -> Registry:
    (folder / "agent.py").write_text(textwrap.dedent(HOOKS))
    content = {"graphs": {"chat": "./agent.py:graph"}, "threadmill": {"defaults": policy}}
    (folder / "langgraph.json").write_text(json.dumps(content))
    return Registry.read(folder / "langgraph.json")


def test_a_graphs_hooks_are_found_in_its_policy(tmp_path: Path) -> None:
    hooks = hooks_of(registry(tmp_path, redact="./agent.py:redact", fingerprint="./agent.py:named"), "chat")
    one, other = (describe(ValueError("hunter2", n), "chat", "ask", **hooks) for n in range(2))
    assert one.message == "('***', 0)"
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != describe(ValueError("hunter3"), "chat", "ask", **hooks).fingerprint
    assert one.fingerprint != describe(ValueError("hunter2"), "other", "ask", **hooks).fingerprint


def test_a_redaction_that_is_not_there_lets_nothing_through(tmp_path: Path) -> None:
    with capture_logs() as logs:
        hooks = hooks_of(registry(tmp_path, redact="./nowhere.py:redact"), "chat")
    assert [log["event"] for log in logs] == ["failure.hook_missing"]
    assert describe(ValueError("hunter2"), "chat", "ask", **hooks).message == ""


def test_a_fingerprint_that_is_not_there_leaves_the_text(tmp_path: Path) -> None:
    hooks = hooks_of(registry(tmp_path, fingerprint="./nowhere.py:named"), "chat")
    failure = describe(ValueError("a"), "chat", "ask", **hooks)
    assert failure.message == "a"
    assert failure.fingerprint == describe(ValueError("b"), "chat", "ask").fingerprint


def test_a_graph_that_is_not_served_has_no_hooks(tmp_path: Path) -> None:
    hooks = hooks_of(registry(tmp_path, redact="./nowhere.py:redact"), "gone")
    assert describe(ValueError("a"), "gone", None, **hooks).message == "a"


GRAPH = """
    from typing import TypedDict
    from langgraph.graph import START, StateGraph
    from threadmill.graphs import dependency

    class State(TypedDict):
        text: str

    async def look_up(text):
        async with dependency("search"):
            raise ConnectionError(f"no answer for {text}")

    async def ask(state):
        return {"text": await look_up(state["text"])}

    graph = StateGraph(State).add_node("ask", ask).add_edge(START, "ask").compile()
"""


async def test_of_a_nodes_failure_the_graphs_own_functions_are_told_apart_from_langgraphs(
    tmp_path: Path,
) -> None:
    (tmp_path / "langgraph.json").write_text('{"graphs": {"chat": "./src/agent.py:graph"}}')
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "agent.py").write_text(textwrap.dedent(GRAPH))
    served = Registry.read(tmp_path / "langgraph.json")
    graph = await served.graph("chat")
    failures = []
    for text in ("one", "two"):
        with pytest.raises(ConnectionError) as caught:
            await graph.ainvoke({"text": text})
        error = caught.value.with_traceback(caught.tb.tb_next)
        failures.append(describe(error, "chat", "ask", **hooks_of(served, "chat")))
    own = [(f["file"], f["function"]) for f in failures[0].exceptions[0]["frames"] if f["own"]]
    assert own == [("src/agent.py", "ask"), ("src/agent.py", "look_up")]
    assert {f["file"].partition("/")[0] for f in failures[0].exceptions[0]["frames"]} >= {"langgraph", "src"}
    assert failures[0].fingerprint == failures[1].fingerprint
    assert str(tmp_path) not in json.dumps(failures[0].exceptions)
