"""The published schema accepts what LangGraph accepts, and still refuses plain mistakes."""

from __future__ import annotations

import operator
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

import jsonschema_rs
import pytest
from langchain_core.messages import AnyMessage, HumanMessage
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from threadmill.graphs.input_schema import input_schema


def compiled(state: Any, input_type: Any = None) -> Pregel[Any, Any, Any, Any]:
    graph = StateGraph(state, input_schema=input_type) if input_type else StateGraph(state)
    return graph.add_node("n", lambda state: None).add_edge(START, "n").compile()


def accepts(graph: Pregel[Any, Any, Any, Any], value: Any) -> bool:
    return jsonschema_rs.validator_for(input_schema(graph)).is_valid(value)


class Ticket(TypedDict):
    title: str
    count: NotRequired[int]


class State(TypedDict):
    text: str
    ticket: Ticket
    log: Annotated[list[str], operator.add]
    total: Annotated[int, lambda old, new: old + int(new)]


class Draft(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    number: int = Field(default=1, alias="no")
    messages: list[AnyMessage] = []


@dataclass
class Form:
    text: str
    number: int = 1
    names: list[str] = field(default_factory=list)


class Tree(BaseModel):
    children: list[Tree] = []


class Forest(BaseModel):
    trees: list[Tree]


class Coded(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")

    code: str = Field(pattern=r"(a)?(?(1)b|c)")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hello"}],
        [{"type": "human", "content": "hello"}],
        [["user", "hello"]],
        ["hello"],
        "hello",
        {"role": "user", "content": "hello"},
        HumanMessage("hello").model_dump(mode="json"),
    ],
)
async def test_messages_are_accepted_in_every_spelling_of_langgraphs(messages: Any) -> None:
    for state in (MessagesState, TypedDict("Plain", {"messages": list[AnyMessage]}), Draft):
        assert accepts(compiled(state), {"messages": messages, "text": "a"}), state
    await compiled(MessagesState).ainvoke({"messages": messages})


def test_message_types_leave_no_definitions_behind() -> None:
    assert input_schema(compiled(MessagesState)) == {
        "type": "object",
        "properties": {"messages": {}},
        "anyOf": [{"required": ["messages"]}],
    }
    assert "$defs" not in input_schema(compiled(Draft))


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ({"text": "a"}, True),
        ({"ticket": {"title": "t"}}, True),
        ({"text": "a", "unknown": 1}, True),
        ({"log": ["a"]}, True),
        ({"log": {"__overwrite__": ["a"]}}, True),
        ({"log": {"type": "__overwrite__", "value": []}}, True),
        ({"total": "7"}, True),  # its reducer takes what it likes
        ({}, False),
        ({"unknown": 1}, False),
        ({"text": 5}, False),
        ({"ticket": {"count": 1}}, False),
        ({"ticket": "t"}, False),
        ({"log": 5}, False),
        ("text", False),
        (None, False),
    ],
)
def test_a_part_of_the_state_is_an_input(value: Any, accepted: bool) -> None:
    assert accepts(compiled(State), value) == accepted


@pytest.mark.parametrize(
    ("value", "accepted"),
    [({"title": "t"}, True), ({"title": "t", "count": 1}, True), ({"count": 1}, False), ({}, False)],
)
def test_an_input_schema_of_its_own_keeps_what_it_requires(value: Any, accepted: bool) -> None:
    assert accepts(compiled(State, Ticket), value) == accepted


def test_what_an_input_schema_says_of_a_key_gives_way_to_the_states_reducer() -> None:
    class Totals(TypedDict):
        total: int

    assert accepts(compiled(State, Totals), {"total": "7"})


@pytest.mark.parametrize("model", [Draft, Form])
@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ({"text": "a"}, True),
        ({"text": "a", "number": 2}, True),
        ({"text": "a", "number": "many"}, False),
        ({"text": "a", "unknown": 1}, True),  # LangGraph leaves it out before the model sees it
        ({"number": 1}, False),
    ],
)
def test_a_model_keeps_what_it_requires(model: Any, value: Any, accepted: bool) -> None:
    assert accepts(compiled(model), value) == accepted


def test_definitions_that_are_used_stay() -> None:
    assert accepts(compiled(Forest), {"trees": [{"children": [{}]}]})
    assert not accepts(compiled(Forest), {"trees": [{"children": [5]}]})
    assert accepts(compiled(Tree), {"children": [{"children": []}]})
    assert not accepts(compiled(Tree), {"children": [{"children": 5}]})


def test_a_type_without_a_schema_does_not_spoil_the_others() -> None:
    class Socket:
        pass

    # `typing`'s own, which pydantic refuses before Python 3.12.
    Old = typing.TypedDict("Old", {"name": str})  # noqa: UP013
    Mixed = typing.TypedDict(  # noqa: UP013
        "Mixed", {"text": str, "socket": Socket, "call": Callable[[], int], "old": Old}
    )
    graph = compiled(Mixed)
    assert accepts(graph, {"text": "a", "socket": 1, "call": 2, "old": {"name": "n"}})
    assert not accepts(graph, {"text": 5})


def test_a_pattern_that_only_python_understands_does_not_make_the_graph_unreachable() -> None:
    assert input_schema(compiled(Coded)) == {}


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (dict[str, Any], {"a": 1}, 5),
        (str, "a", 5),
        (Ticket, {"title": "t"}, {}),
        (list[AnyMessage], ["a"], ...),
    ],
)
def test_a_functional_graph_publishes_the_type_of_its_input(hint: Any, right: Any, wrong: Any) -> None:
    def run(value):  # type: ignore[no-untyped-def]
        return value

    run.__annotations__ = {"value": hint}
    graph = entrypoint()(run)
    assert accepts(graph, right)
    assert wrong is ... or not accepts(graph, wrong)


def test_a_state_without_keys_publishes_its_type() -> None:
    assert accepts(compiled(dict), {"a": 1})
    assert not accepts(compiled(dict), 5)
