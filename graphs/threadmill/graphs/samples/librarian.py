"""An agent that answers questions about Python's standard library out of its docstrings.

    understand ──Send──▸ retrieve (one for each module) ──▸ cite ──▸ answer

It remembers the thread's earlier turns, so "and how do I write one?" is a question about the module of the
turn before. `cite` asks the service at LIBRARIAN_CATALOGUE_URL where a module is documented, if that is set;
it names that dependency, so that a breaker holds the librarian's runs back while the catalogue is down.
"""

from __future__ import annotations

import asyncio
import operator
import os
import ssl
from functools import cache
from typing import Annotated, Literal
from urllib.parse import quote

import httpx
from langgraph.graph import END, START, StateGraph
from langgraph.types import Overwrite, Send
from typing_extensions import TypedDict

from threadmill.graphs.dependency import dependency
from threadmill.graphs.samples.follow_up import resolve
from threadmill.graphs.samples.library import library

_DOCUMENTATION = "https://docs.python.org/3/library/{module}.html"
_CATALOGUE_TIMEOUT = 5.0


class Question(TypedDict):
    """The input."""

    question: str


class Citation(TypedDict):
    """Where an answer comes from. line: the first line of that docstring."""

    module: str
    name: str
    line: str


class Turn(TypedDict):
    """One question with its answer; the same whichever attempt gave it."""

    question: str
    modules: list[str]
    answer: str
    citations: list[Citation]


class Answer(TypedDict):
    """The output. documentation: module to address."""

    question: str
    modules: list[str]
    answer: str
    citations: list[Citation]
    documentation: dict[str, str]


class State(Answer):
    """turns: what was said on this thread; found: the citations of the present turn as they come in."""

    turns: Annotated[list[Turn], operator.add]
    found: Annotated[list[Citation], operator.add]


class Errand(TypedDict):
    """What one retrieve is sent for."""

    question: str
    module: str


async def understand(state: State) -> dict[str, object]:
    """Which modules the question is about, told from the turns before it where it does not say."""
    earlier = [turn["modules"] for turn in state.get("turns", [])]
    return {"modules": resolve(state["question"], earlier, await library()), "found": Overwrite([])}


def send_for_each_module(state: State) -> list[Send] | Literal["cite"]:
    errands = [Errand(question=state["question"], module=module) for module in state["modules"]]
    return [Send("retrieve", errand) for errand in errands] or "cite"


async def retrieve(state: Errand) -> dict[str, list[Citation]]:
    """The docstrings of one module that answer best."""
    passages = (await library()).search(state["question"], state["module"])
    return {"found": [Citation(module=p.module, name=p.name, line=p.line) for p in passages]}


async def cite(state: State) -> dict[str, dict[str, str]]:
    """Where the modules are documented. Raises httpx.HTTPError if the catalogue is away or refuses."""
    catalogue = os.environ.get("LIBRARIAN_CATALOGUE_URL")
    if not catalogue:
        return {"documentation": {m: _DOCUMENTATION.format(module=m) for m in state["modules"]}}
    # A proxy that the environment names for the world outside would not reach a service next door.
    async with (
        dependency("catalogue"),
        httpx.AsyncClient(timeout=_CATALOGUE_TIMEOUT, trust_env=False, verify=_tls()) as client,
    ):
        addresses = await asyncio.gather(*(_look_up(client, catalogue, m) for m in state["modules"]))
    return {"documentation": dict(zip(state["modules"], addresses, strict=True))}


async def answer(state: State) -> dict[str, object]:
    """The answer in words, and the turn as the next one will remember it."""
    lines = [f"{found['name']}: {found['line']}".removesuffix(": ") for found in state["found"]]
    lines += [f"{module} is documented at {state['documentation'][module]}" for module in state["modules"]]
    text = "\n".join(lines) or "I found nothing about that in the standard library."
    turn = Turn(question=state["question"], modules=state["modules"], answer=text, citations=state["found"])
    return {"answer": text, "citations": state["found"], "turns": [turn]}


async def _look_up(client: httpx.AsyncClient, catalogue: str, module: str) -> str:
    response = await client.get(f"{catalogue.rstrip('/')}/modules/{quote(module)}")
    response.raise_for_status()
    return str(response.json()["documentation"])


@cache
def _tls() -> ssl.SSLContext:
    # Loading the certificates anew for each client would cost more than the whole run.
    return ssl.create_default_context()


graph = (
    StateGraph(State, input_schema=Question, output_schema=Answer)
    .add_node(understand)
    .add_node("retrieve", retrieve, input_schema=Errand)
    .add_node(cite)
    .add_node(answer)
    .add_edge(START, "understand")
    .add_conditional_edges("understand", send_for_each_module, ["retrieve", "cite"])
    .add_edge("retrieve", "cite")
    .add_edge("cite", "answer")
    .add_edge("answer", END)
    .compile(name="librarian")
)
