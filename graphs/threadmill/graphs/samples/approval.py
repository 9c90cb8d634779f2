"""A refund that a person must approve if it is large.

    draft ──▸ decide (stops at interrupt() above the limit) ──▸ record

Resume with true, false, or {"approved": true, "note": "…"}. Anything else is asked again, so that a slip of
the pen does not fail the run.
"""

from __future__ import annotations

import operator
from typing import Annotated, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

LIMIT = 100.0


class Request(TypedDict):
    """The input. amount: in the shop's currency."""

    amount: float
    reason: str


class Decision(TypedDict):
    """What became of one request. by: "policy" where no person was asked."""

    amount: float
    reason: str
    approved: bool
    by: Literal["person", "policy"]
    note: str


class Outcome(TypedDict):
    """The output."""

    letter: str
    decision: Decision


class State(Request, Outcome):
    """decisions: all those of the thread. problem: why the last answer of a person was not understood."""

    decisions: Annotated[list[Decision], operator.add]
    problem: NotRequired[str]


def draft(state: State) -> dict[str, str]:
    """The letter as it will go out if the refund is approved."""
    return {"letter": f"We refund {state['amount']:.2f}: {state['reason']}", "problem": ""}


def decide(state: State) -> Command[Literal["decide", "record"]]:
    """The decision, by a person if the amount is above the limit."""
    if state["amount"] <= LIMIT:
        return _decided(state, approved=True, by="policy", note="")
    question = {"amount": state["amount"], "reason": state["reason"], "letter": state["letter"]}
    answer = interrupt({"question": "Approve this refund?", **question, "problem": state.get("problem", "")})
    if isinstance(answer, bool):
        answer = {"approved": answer}
    if not isinstance(answer, dict) or not isinstance(answer.get("approved"), bool):
        problem = 'answer true, false, or {"approved": true, "note": "…"}'
        return Command(goto="decide", update={"problem": problem})
    return _decided(state, approved=answer["approved"], by="person", note=str(answer.get("note", "")))


def record(state: State) -> dict[str, object]:
    """The decision among the thread's others, and the letter that fits it."""
    decision = state["decision"]
    letter = state["letter"] if decision["approved"] else f"We cannot refund this: {decision['note']}"
    return {"decisions": [decision], "letter": letter}


def _decided(
    state: State, *, approved: bool, by: Literal["person", "policy"], note: str
) -> Command[Literal["decide", "record"]]:
    decision = Decision(amount=state["amount"], reason=state["reason"], approved=approved, by=by, note=note)
    return Command(goto="record", update={"decision": decision})


graph = (
    StateGraph(State, input_schema=Request, output_schema=Outcome)
    .add_node(draft)
    .add_node(decide)
    .add_node(record)
    .add_edge(START, "draft")
    .add_edge("draft", "decide")
    .add_edge("record", END)
    .compile(name="approval")
)
