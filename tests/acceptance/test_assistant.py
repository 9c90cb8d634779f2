"""The assistant against an OpenAI-compatible server of the tests' own: answers, streams, tools, trouble."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from threadmill.graphs import Registry

GRAPHS_FILE = Path(__file__).parents[2] / "langgraph.json"
QUESTION = {"messages": [{"role": "user", "content": "How do I write a CSV file?"}]}
THREAD: Any = {"configurable": {"thread_id": "t"}}
LOOK_UP = {"name": "look_up", "arguments": json.dumps({"question": "How do I write with the csv module?"})}


class Model(ThreadingHTTPServer):
    """Gives its replies in turn, and keeps what it was asked."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: deque[Callable[[Handler, dict[str, Any]], None]] = deque()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        self.server.replies.popleft()(self, request)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def says(text: str = "", tool: dict[str, str] | None = None) -> Callable[[Handler, dict[str, Any]], None]:
    """A reply with this text, or with a call of this tool; streamed if that was asked for."""
    calls = [{"index": 0, "id": "call-1", "type": "function", "function": tool}] if tool else []
    finish = "tool_calls" if tool else "stop"

    def whole(handler: Handler) -> None:
        message = {"role": "assistant", "content": text or None, "tool_calls": calls or None}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        completion = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        handler.reply(200, json.dumps(completion).encode())

    def streamed(handler: Handler) -> None:
        deltas = [{"content": word + " "} for word in text.split()] or [{"tool_calls": calls}]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices += [{"index": 0, "delta": {}, "finish_reason": finish}]
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        events = [json.dumps({**head, "choices": [choice]}) for choice in choices]
        body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
        handler.reply(200, body, Content_Type="text/event-stream")

    return lambda handler, request: (streamed if request.get("stream") else whole)(handler)


def fails(status: int, **headers: str) -> Callable[[Handler, dict[str, Any]], None]:
    body = json.dumps({"error": {"message": "not now", "type": "trouble", "code": None}}).encode()
    return lambda handler, request: handler.reply(status, body, **headers)


def hangs(handler: Handler, request: dict[str, Any]) -> None:
    handler.server.released.wait(30)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    with Model() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "the-key")
        monkeypatch.delenv("ASSISTANT_MODEL", raising=False)
        monkeypatch.setenv("ASSISTANT_TIMEOUT", "20")
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
async def assistant(model: Model) -> Any:
    graph = await Registry.read(GRAPHS_FILE).graph("assistant")
    return graph.copy({"checkpointer": InMemorySaver()})


async def test_the_graph_is_described_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    description = await Registry.read(GRAPHS_FILE).describe("assistant")
    assert description.channels == ("messages",)


async def test_a_missing_extra_is_named(assistant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "threadmill\[dev\]"'):
        await assistant.ainvoke(QUESTION, THREAD)


async def test_an_answer_joins_the_conversation(assistant: Any, model: Model) -> None:
    model.replies += [says("With csv.writer."), says("You are welcome.")]
    await assistant.ainvoke(QUESTION, THREAD)
    state = await assistant.ainvoke({"messages": "Thanks!"}, THREAD)
    assert [type(message) for message in state["messages"]] == [HumanMessage, AIMessage] * 2
    assert state["messages"][-1].content == "You are welcome."
    assert [message["role"] for message in model.requests[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert model.requests[0]["model"] == "gpt-4o-mini"
    assert [tool["function"]["name"] for tool in model.requests[0]["tools"]] == ["look_up"]
    assert model.keys == ["Bearer the-key"] * 2


@pytest.mark.parametrize("tool", [LOOK_UP, {**LOOK_UP, "arguments": '{"question": "a temporary directory"}'}])
async def test_the_tool_gives_the_model_docstrings(
    assistant: Any, model: Model, tool: dict[str, str]
) -> None:
    model.replies += [says(tool=tool), says("Like this.")]
    state = await assistant.ainvoke(QUESTION, THREAD)
    assert [type(m) for m in state["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    found = state["messages"][2].content
    assert ("csv.writer: " if tool is LOOK_UP else "tempfile.TemporaryDirectory: ") in found
    assert model.requests[1]["messages"][-1]["content"] == found


async def test_an_answer_is_streamed_word_by_word(assistant: Any, model: Model) -> None:
    model.replies += [says(tool=LOOK_UP), says("With csv.writer of course.")]
    chunks = [
        message
        async for message, _ in assistant.astream(QUESTION, THREAD, stream_mode="messages")
        if isinstance(message, AIMessageChunk) and message.content
    ]
    assert [chunk.content for chunk in chunks] == ["With ", "csv.writer ", "of ", "course. "]
    assert all(request["stream"] for request in model.requests)
    state = await assistant.aget_state(THREAD)
    assert state.values["messages"][-1].content == "With csv.writer of course. "


async def test_a_rate_limit_surfaces_at_once_with_its_retry_after(assistant: Any, model: Model) -> None:
    model.replies += [fails(429, Retry_After="7"), says("Now.")]
    with pytest.raises(openai.RateLimitError) as error:
        await assistant.ainvoke(QUESTION, THREAD)
    assert error.value.response.headers["retry-after"] == "7"
    assert len(model.requests) == 1  # to try again is the ledger's business


async def test_a_run_goes_on_after_a_server_error_with_the_question_once(
    assistant: Any, model: Model
) -> None:
    model.replies += [fails(500), says("With csv.writer.")]
    with pytest.raises(openai.InternalServerError):
        await assistant.ainvoke(QUESTION, THREAD)
    assert (await assistant.aget_state(THREAD)).next == ("think",)
    state = await assistant.ainvoke(None, THREAD)
    assert [message.content for message in state["messages"]] == [
        "How do I write a CSV file?",
        "With csv.writer.",
    ]


async def test_a_model_that_does_not_answer_is_given_up(
    assistant: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSISTANT_TIMEOUT", "0.2")
    model.replies.append(hangs)
    with pytest.raises(openai.APITimeoutError):
        await assistant.ainvoke(QUESTION, THREAD)


async def test_another_model_can_be_named(
    assistant: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSISTANT_MODEL", "openai:another")
    model.replies.append(says("Yes."))
    await assistant.ainvoke(QUESTION, THREAD)
    assert model.requests[0]["model"] == "another"


async def test_a_missing_key_is_an_error_of_the_run_that_names_it(
    assistant: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        await assistant.ainvoke(QUESTION, THREAD)
