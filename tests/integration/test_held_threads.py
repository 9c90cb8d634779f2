"""`on_dead_letter: hold`: what comes after a dead letter waits, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import Producer
from threadmill.workers.executor import RunFailed

GRAPH = """
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        word: str

    def speak(state):
        if state["word"] == "boom":
            raise ValueError("boom")
        return {}

    speaker = StateGraph(State).add_node("speak", speak).add_edge(START, "speak")
"""


def test_a_held_thread_takes_no_run_until_its_dead_letter_is_discarded(
    settings: Settings, serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer
) -> None:
    serve(GRAPH, speaker={"max_attempts": 1, "on_dead_letter": "hold"})
    worker = start_local()

    def enqueue(word: str, thread_id: str) -> Any:
        return producer.enqueue("speaker", {"word": word}, tenant="acme", thread_id=thread_id)

    assert isinstance(worker.answer(enqueue("boom", "held")).exception(20), RunFailed)
    behind = enqueue("hello", "held")
    assert worker.drops(behind)
    assert worker.answer(enqueue("hello", "other")).result(20) == "success"

    with Desk(settings) as desk:
        (letter,) = desk.list()
        desk.discard(letter.id)
    assert worker.answer(behind).result(20) == "success"
