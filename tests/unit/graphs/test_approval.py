"""A large refund waits for a person, a small one does not."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from threadmill.graphs.samples import approval

Graph = CompiledStateGraph[Any, Any, Any, Any]
THREAD: Any = {"configurable": {"thread_id": "t"}}


@pytest.fixture
def graph() -> Graph:
    return approval.graph.copy({"checkpointer": InMemorySaver()})


async def test_a_small_refund_needs_nobody(graph: Graph) -> None:
    outcome = await graph.ainvoke({"amount": 100, "reason": "broken cup"}, THREAD)
    assert outcome["decision"]["approved"]
    assert outcome["decision"]["by"] == "policy"
    assert outcome["letter"] == "We refund 100.00: broken cup"


@pytest.mark.parametrize(
    ("answer", "approved", "note", "letter"),
    [
        (True, True, "", "We refund 100.50: broken table"),
        ({"approved": True}, True, "", "We refund 100.50: broken table"),
        ({"approved": False, "note": "not ours"}, False, "not ours", "We cannot refund this: not ours"),
    ],
)
async def test_a_large_refund_waits_for_a_person(
    graph: Graph, answer: Any, approved: bool, note: str, letter: str
) -> None:
    stopped = await graph.ainvoke({"amount": 100.5, "reason": "broken table"}, THREAD)
    (question,) = stopped["__interrupt__"]
    assert question.value["amount"] == 100.5
    assert question.value["letter"] == "We refund 100.50: broken table"
    outcome = await graph.ainvoke(Command(resume=answer), THREAD)
    assert outcome["letter"] == letter
    decision = outcome["decision"]
    assert (decision["approved"], decision["by"], decision["note"]) == (approved, "person", note)


async def test_an_answer_that_is_not_understood_is_asked_again(graph: Graph) -> None:
    await graph.ainvoke({"amount": 500, "reason": "broken table"}, THREAD)
    again = await graph.ainvoke(Command(resume="perhaps"), THREAD)
    assert again["__interrupt__"][0].value["problem"].startswith("answer true, false")
    outcome = await graph.ainvoke(Command(resume=True), THREAD)
    assert outcome["decision"]["approved"]


async def test_a_thread_keeps_all_its_decisions_and_no_old_problem(graph: Graph) -> None:
    for amount in (10, 500, 600):
        stopped = await graph.ainvoke({"amount": amount, "reason": "broken"}, THREAD)
        if amount > 100:
            assert stopped["__interrupt__"][0].value["problem"] == ""
            await graph.ainvoke(Command(resume="perhaps"), THREAD)
            await graph.ainvoke(Command(resume=False), THREAD)
    decisions = (await graph.aget_state(THREAD)).values["decisions"]
    assert [(d["amount"], d["approved"]) for d in decisions] == [(10, True), (500, False), (600, False)]
