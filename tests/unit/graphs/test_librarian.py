"""The librarian answers its 300 questions, and needs the thread's earlier turns to do so."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph

from threadmill.graphs.samples import librarian, library
from threadmill.graphs.samples.questions import Conversation, conversations

Graph = CompiledStateGraph[Any, Any, Any, Any]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.delenv("LIBRARIAN_CATALOGUE_URL", raising=False)
    return librarian.graph.copy({"checkpointer": InMemorySaver()})


async def ask(graph: Graph, question: str, thread: str) -> dict[str, Any]:
    return await graph.ainvoke({"question": question}, {"configurable": {"thread_id": thread}})


def cited(answer: dict[str, Any]) -> set[str]:
    return {citation["module"] for citation in answer["citations"]}


def test_there_are_30_conversations_of_10_questions() -> None:
    assert [len(conversation.turns) for conversation in conversations()] == [10] * 30
    questions = {turn.question for conversation in conversations() for turn in conversation.turns}
    assert len(questions) > 270  # people do ask the same follow-ups
    assert all(turn.modules for conversation in conversations() for turn in conversation.turns)
    assert {m for c in conversations() for t in c.turns for m in t.modules} <= set(library.MODULES)


@pytest.mark.parametrize("conversation", conversations(), ids=lambda c: c.title)
async def test_every_question_is_answered_out_of_the_right_modules(
    graph: Graph, conversation: Conversation
) -> None:
    for turn in conversation.turns:
        answer = await ask(graph, turn.question, conversation.title)
        assert cited(answer) == set(turn.modules), turn.question
        assert all(citation["name"] in answer["answer"] for citation in answer["citations"])
        assert set(answer["documentation"]) == set(turn.modules)
    state = await graph.aget_state({"configurable": {"thread_id": conversation.title}})
    assert [turn["question"] for turn in state.values["turns"]] == [t.question for t in conversation.turns]


async def test_many_follow_ups_are_beyond_it_without_the_earlier_turns(graph: Graph) -> None:
    turns = [turn for conversation in conversations() for turn in conversation.turns]
    answers = [await ask(graph, turn.question, f"alone-{n}") for n, turn in enumerate(turns)]
    lost = [turn for turn, answer in zip(turns, answers, strict=True) if cited(answer) != set(turn.modules)]
    assert len(lost) > 75


async def test_threads_do_not_mix(graph: Graph) -> None:
    await asyncio.gather(ask(graph, "What is csv for?", "a"), ask(graph, "What is json for?", "b"))
    about_csv, about_json = await asyncio.gather(
        ask(graph, "And how do I write to a file?", "a"), ask(graph, "And how do I write to a file?", "b")
    )
    assert (cited(about_csv), cited(about_json)) == ({"csv"}, {"json"})


async def test_a_question_about_several_modules_is_retrieved_for_each(graph: Graph) -> None:
    config = {"configurable": {"thread_id": "t"}}
    question = {"question": "How do csv, json and pickle differ?"}
    nodes = [node async for step in graph.astream(question, config, stream_mode="updates") for node in step]
    assert nodes == ["understand", "retrieve", "retrieve", "retrieve", "cite", "answer"]


@pytest.mark.parametrize(
    ("earlier", "question", "modules"),
    [
        ("How do I use pickle?", "How does it differ from shelve?", ["pickle", "shelve"]),
        ("How do csv and json differ?", "And what does `dumps` do?", ["json"]),
        ("How do csv and json differ?", "What are they good for?", ["csv", "json"]),
        ("How do I use csv?", "How do I make a temporary directory?", ["tempfile"]),
        ("How do I use csv?", "What about `OrderedDict`, how does it compare?", ["csv", "collections"]),
        ("How do I use csv?", "Can a select statement wait for a signal?", ["signal"]),
        ("How do I use csv?", "Zyzzyva quux?", ["csv"]),
    ],
)
async def test_a_follow_up_is_understood(
    graph: Graph, earlier: str, question: str, modules: list[str]
) -> None:
    await ask(graph, earlier, "t")
    assert (await ask(graph, question, "t"))["modules"] == modules


async def test_a_question_about_nothing_gets_an_answer_that_says_so(graph: Graph) -> None:
    answer = await ask(graph, "Zyzzyva quux?", "t")
    assert answer["answer"] == "I found nothing about that in the standard library."
    assert (answer["modules"], answer["citations"]) == ([], [])


async def test_an_answer_depends_only_on_what_was_said(graph: Graph) -> None:
    states = []
    for thread in ("a", "b"):
        for question in ("How do I read a file with csv?", "And how do I write one?"):
            await ask(graph, question, thread)
        states.append((await graph.aget_state({"configurable": {"thread_id": thread}})).values)
    assert states[0] == states[1]


async def test_the_library_is_built_once_by_callers_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_built", [])
    one, two = await asyncio.gather(library.library(), library.library())
    assert one is two


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "threadmill\[dev\]"'):
        library.Library()


class Catalogue(BaseHTTPRequestHandler):
    """Knows where each module is documented; answers 503 while it is closed."""

    def do_GET(self) -> None:
        asked: list[str] = self.server.asked  # type: ignore[attr-defined]
        asked.append(self.path)
        body = json.dumps({"module": "m", "documentation": f"http://catalogue{self.path}.html"}).encode()
        self.send_response(503 if self.server.closed else 200)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def catalogue(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Catalogue) as server:
        server.asked, server.closed = [], False  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("LIBRARIAN_CATALOGUE_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        yield server
        server.shutdown()
        thread.join()


async def test_the_catalogue_is_asked_for_each_module(graph: Graph, catalogue: Any) -> None:
    answer = await ask(graph, "How do json and os.path differ?", "t")
    assert sorted(catalogue.asked) == ["/modules/json", "/modules/os.path"]
    assert answer["documentation"]["os.path"] == "http://catalogue/modules/os.path.html"
    assert "http://catalogue/modules/os.path.html" in answer["answer"]


async def test_a_catalogue_that_is_closed_fails_the_run_at_cite_and_it_goes_on_from_there(
    graph: Graph, catalogue: Any
) -> None:
    config = {"configurable": {"thread_id": "t"}}
    catalogue.closed = True
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        await ask(graph, "How do I use csv?", "t")
    assert (await graph.aget_state(config)).next == ("cite",)
    catalogue.closed = False
    nodes = [node async for step in graph.astream(None, config, stream_mode="updates") for node in step]
    assert nodes == ["cite", "answer"]
    assert len((await graph.aget_state(config)).values["turns"]) == 1


async def test_a_catalogue_that_is_away_fails_the_run(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBRARIAN_CATALOGUE_URL", "http://127.0.0.1:9")
    with pytest.raises(httpx.ConnectError):
        await ask(graph, "How do I use csv?", "t")
