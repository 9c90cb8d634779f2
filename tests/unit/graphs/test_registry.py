"""Graphs in every form that langgraph.json may name, and what is said of those that cannot be loaded."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.pregel import Pregel
from structlog.testing import capture_logs

from threadmill.core.errors import GraphLoadFailed, LeaseLost
from threadmill.graphs import Registry, Verdict, check, classify

FORMS = {
    "a compiled graph": "",
    "a builder": "graph = builder",
    "a factory": "def graph(): return builder",
    "an async factory": "async def graph(): return builder.compile()",
    "a factory that takes a config": "def graph(config): return builder",
    "an async factory that takes a config": "async def graph(config): return builder",
    "a factory whose config is optional": "def graph(config=None): return builder",
    "a factory with an option of its own": "def graph(punctuation='!'): return builder",
    "a functional graph": """
        from langgraph.func import entrypoint

        @entrypoint()
        def graph(state: dict) -> dict:
            return say(state)
    """,
}


@pytest.mark.parametrize("source", FORMS.values(), ids=list(FORMS))
async def test_every_form_of_a_graph_runs(project: Any, source: str) -> None:
    graph = await project.agent(source).graph("agent")
    assert isinstance(graph, Pregel)
    assert await graph.ainvoke({"text": "hello"}) == {"text": "hello!"}


async def test_a_graph_of_a_module_is_found_by_its_dependency(project: Any) -> None:
    project.agent("")
    project.write("code/my_package_of_graphs/agent.py", project.folder.joinpath("agent.py").read_text())
    registry = project.read(graphs={"agent": "my_package_of_graphs.agent:graph"}, dependencies=["./code"])
    registry.activate()
    try:
        assert await (await registry.graph("agent")).ainvoke({"text": "a"}) == {"text": "a!"}
    finally:
        for name in ("my_package_of_graphs.agent", "my_package_of_graphs"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("source", ["", "graph = builder", "def graph(): return builder"])
async def test_a_graph_is_loaded_once(project: Any, source: str) -> None:
    registry = project.agent(source)
    assert await registry.graph("agent") is await registry.graph("agent", {"configurable": {"a": 1}})


async def test_a_factory_is_called_once_by_callers_at_the_same_time(project: Any) -> None:
    registry = project.agent("""
        import asyncio
        calls = []

        async def graph():
            calls.append(1)
            await asyncio.sleep(0)
            return builder
    """)
    first, second = await asyncio.gather(registry.graph("agent"), registry.graph("agent"))
    assert first is second
    assert vars(sys.modules[first.builder.state_schema.__module__])["calls"] == [1]


async def test_a_factory_that_takes_a_config_is_called_for_each_attempt(project: Any) -> None:
    registry = project.agent("""
        def graph(config):
            name = config["configurable"].get("name", "nobody")
            return builder.compile(name=name)
    """)
    names = [
        (await registry.graph("agent", config)).name
        for config in ({"configurable": {"name": "a"}}, {"configurable": {"name": "b"}}, None)
    ]
    assert names == ["a", "b", "nobody"]


async def test_a_file_is_loaded_once_for_all_graphs_in_it(project: Any) -> None:
    project.agent("")
    registry = project.read(graphs={"a": "./agent.py:graph", "b": "agent.py:builder"})
    a, b = await registry.graph("a"), await registry.graph("b")
    assert a.builder is b.builder


async def test_files_of_one_name_do_not_collide(project: Any) -> None:
    project.agent("")
    source = project.folder.joinpath("agent.py").read_text()
    project.write("one/agent.py", source)
    project.write("two/agent.py", source)
    project.write("one_agent.py", source)
    registry = project.read(
        graphs={n: f"./{n}.py:graph" for n in ("agent", "one/agent", "two/agent", "one_agent")}
    )
    modules = {(await registry.graph(name)).builder.state_schema.__module__ for name in registry.names}
    assert len(modules) == 4


async def test_types_of_a_file_survive_pickling_between_processes(
    project: Any, forget_modules: Callable[[], None]
) -> None:
    source = """
        from dataclasses import dataclass

        @dataclass
        class Note:
            text: str

        class Notes(TypedDict):
            note: Note

        graph = StateGraph(Notes).add_node("n", lambda state: {"note": Note("kept")}).add_edge(START, "n")
    """
    registry = project.agent(source)
    state = await (await registry.graph("agent")).ainvoke({"note": None})
    blob = pickle.dumps(state["note"])
    forget_modules()
    await Registry.read(project.folder / "langgraph.json").graph("agent")
    assert pickle.loads(blob).text == "kept"


async def test_the_name_of_a_files_module_does_not_depend_on_where_the_project_lies(project: Any) -> None:
    project.agent("")
    source = project.folder.joinpath("agent.py").read_text()
    modules = set()
    for place in ("here", "there/deeper"):
        project.write(f"{place}/src/agent.py", source)
        path = project.write(f"{place}/langgraph.json", '{"graphs": {"agent": "./src/agent.py:graph"}}')
        modules.add((await Registry.read(path).graph("agent")).builder.state_schema.__module__)
    assert len(modules) == 1


BROKEN = {
    "raises while it is imported": ("1 / 0", "agent.py:13", "ZeroDivisionError: division by zero"),
    "is no Python": ("def :", "agent.py:13", "SyntaxError: invalid syntax"),
    "imports what is not there": (
        "import nowhere_at_all",
        "agent.py:13",
        "ModuleNotFoundError: No module named",
    ),
    "exits": ("raise SystemExit(3)", "agent.py:13", "SystemExit: 3"),
    "holds no such name": ("del graph", "agent.py", "holds nothing named 'graph'"),
    "is something else": (
        "graph = 3",
        "./agent.py",
        "TypeError: int is neither a graph nor a factory of one",
    ),
    "has a factory that raises": ("def graph():\n    return {}['x']", "agent.py:14", "KeyError: 'x'"),
    "has an async factory that raises": (
        "async def graph(c):\n    return {}['x']",
        "agent.py:14",
        "KeyError: 'x'",
    ),
    "has a factory of something else": ("def graph(): return 3", "./agent.py", "TypeError: int is neither"),
    "has a factory that wants too much": (
        "def graph(a, b): ...",
        "./agent.py",
        "TypeError: a factory takes a config",
    ),
    "cannot be compiled": (
        "graph = StateGraph(State)",
        "./agent.py",
        "ValueError: Graph must have an entrypoint",
    ),
    "is a factory that cannot be looked into": (
        "graph = type",
        "./agent.py",
        "ValueError: no signature found",
    ),
    "would not be durable": (
        "graph = builder.compile(checkpointer=False)",
        "./agent.py",
        "ValueError: compiled with",
    ),
}


@pytest.mark.parametrize(("source", "location", "reason"), BROKEN.values(), ids=list(BROKEN))
async def test_a_graph_that_cannot_be_loaded_says_where_and_why(
    project: Any, source: str, location: str, reason: str
) -> None:
    registry = project.agent(source)
    with pytest.raises(GraphLoadFailed) as error:
        await registry.graph("agent")
    assert (error.value.graph, error.value.location) == ("agent", location)
    assert error.value.reason.startswith(reason)


async def test_the_place_of_an_error_is_in_the_users_code_not_in_a_librarys(project: Any) -> None:
    project.write("parts/inner.py", "import json\n\njson.loads('no')\n")
    registry = project.agent("import inner")
    registry = project.read(graphs={"agent": "./agent.py:graph"}, dependencies=["./parts"])
    registry.activate()
    with pytest.raises(
        GraphLoadFailed, match=r"'agent' \(parts/inner.py:3\): JSONDecodeError: Expecting value"
    ):
        await registry.graph("agent")


async def test_a_file_that_failed_is_tried_again(project: Any) -> None:
    registry = project.agent("1 / 0")
    with pytest.raises(GraphLoadFailed):
        await registry.graph("agent")
    project.agent("")
    assert await registry.graph("agent")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("./nowhere.py:graph", r"'agent' \(./nowhere.py\): there is no such file"),
        ("./agent.ts:graph", r"'agent' \(./agent.ts\): is no Python file"),
        ("no_such_package.agent:graph", r"'agent' \(no_such_package.agent\): ModuleNotFoundError: "),
    ],
)
async def test_a_graph_that_is_not_there_is_named(project: Any, value: str, message: str) -> None:
    with pytest.raises(GraphLoadFailed, match=message):
        await project.agent("", value).graph("agent")


async def test_a_graph_that_the_file_does_not_name_is_refused_with_those_that_it_does(project: Any) -> None:
    registry = project.agent("")
    with pytest.raises(GraphLoadFailed, match=r"'other' \(langgraph.json\): not there; it names agent"):
        await registry.graph("other")
    with pytest.raises(GraphLoadFailed):
        registry.policy("other")


def judged(project: Any, source: str, classifier: str = "./judge.py:judge") -> Registry:
    """The registry of a graph whose policy names this classifier, and of one that has none."""
    project.agent("")
    project.write("judge.py", source)
    return project.read(
        graphs={"agent": "./agent.py:graph", "plain": "./agent.py:graph"},
        threadmill={"graphs": {"agent": {"classifier": classifier}}},
    )


JUDGE = """
    from threadmill.graphs import Verdict

    class Slow(Exception): pass
    class Odd(Exception): pass

    def judge(error):
        match type(error).__name__:
            case "Slow": return Verdict("rate_limited", retry_after=5, why="slow")
            case "Odd": return "transient"
            case "KeyError": raise ZeroDivisionError
            case "IndexError": return "perhaps"
            case "LeaseLost": return "permanent"
"""


def test_a_graphs_own_classifier_is_asked_and_threadmills_is_where_it_says_nothing(project: Any) -> None:
    registry = judged(project, JUDGE)
    classifier = registry.classifier("agent")
    module = sys.modules[next(name for name in sys.modules if name.startswith("graph_judge_"))]
    assert classifier(module.Slow()) == Verdict("rate_limited", 5, "slow")
    assert classifier(module.Odd()) == Verdict("transient", None, "Odd")
    assert classifier(ConnectionResetError()).kind == "transient"
    assert classifier(ValueError()) == classify(ValueError())
    assert registry.classifier("agent") is classifier
    assert registry.classifier("plain") is classify


@pytest.mark.parametrize(
    ("error", "event"),
    [(KeyError("a user's words"), "classifier.failed"), (IndexError(), "classifier.nonsense")],
)
def test_a_classifier_that_raises_or_returns_nonsense_is_told_and_replaced(
    project: Any, error: Exception, event: str
) -> None:
    with capture_logs() as logs:
        assert judged(project, JUDGE).classifier("agent")(error) == classify(error)
    assert [(log["event"], log["log_level"], log["owner"]) for log in logs] == [(event, "warning", "agent")]
    assert "a user's words" not in str(logs)


def test_what_is_infrastructure_is_not_a_graphs_to_judge(project: Any) -> None:
    assert judged(project, JUDGE).classifier("agent")(LeaseLost("r", 1)).kind == "infrastructure"


def test_a_classifier_of_a_module_is_found(project: Any) -> None:
    registry = judged(project, "", "threadmill.graphs.classifier:classify")
    assert registry.classifier("agent")(TimeoutError()).kind == "transient"


def test_the_classifier_of_the_defaults_is_every_graphs(project: Any) -> None:
    project.write("judge.py", "def judge(error): return 'transient'")
    registry = project.read(
        graphs={"agent": "./agent.py:graph"}, threadmill={"defaults": {"classifier": "./judge.py:judge"}}
    )
    assert registry.classifier("agent")(Exception()).kind == "transient"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", r"\(judge.py\): classifier: holds nothing named 'judge'"),
        ("judge = 3", r"\(./judge.py\): classifier: TypeError: must be a plain function, this is int"),
        ("async def judge(error): ...", r"TypeError: must be a plain function, this is an async function"),
        ("def judge(): ...", r"TypeError: must take one argument, the exception"),
        ("def judge(error, graph): ...", r"TypeError: must take one argument, the exception"),
        ("1 / 0", r"\(judge.py:1\): classifier: ZeroDivisionError: division by zero"),
    ],
)
async def test_a_classifier_that_cannot_be_used_is_named_before_a_run_needs_it(
    project: Any, source: str, reason: str
) -> None:
    registry = judged(project, source)
    with pytest.raises(GraphLoadFailed, match=reason):
        registry.classifier("agent")
    agent, plain = await check(registry)
    assert not agent.ok
    assert "classifier: " in str(agent.error)
    assert plain.ok


def test_a_classifier_that_is_not_there_is_named(project: Any) -> None:
    registry = judged(project, "", "./nowhere.py:judge")
    with pytest.raises(GraphLoadFailed, match=r"\(./nowhere.py\): classifier: there is no such file"):
        registry.classifier("agent")


def test_the_classifier_of_an_unknown_graph_is_refused(project: Any) -> None:
    with pytest.raises(GraphLoadFailed, match="not there; it names agent"):
        project.agent("").classifier("other")
