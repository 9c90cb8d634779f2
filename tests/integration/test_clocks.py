"""Clocks that differ between machines do no harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.checkpoint.base import id as checkpoint_ids

from threadmill.producers import Producer

GRAPHS = """
    import operator
    from typing import Annotated
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    talk = (
        StateGraph(State).add_node("echo", lambda state: {"texts": ["echo"]}).add_edge(START, "echo")
    )
"""


def test_a_worker_whose_clock_is_behind_continues_the_thread_where_it_stands(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(GRAPHS, talk={})
    worker = start_local()
    behind = SimpleNamespace(time_ns=lambda: time.time_ns() - 60 * 10**9)

    for text in ("one", "two", "three"):
        run = producer.enqueue("talk", {"texts": [text]}, tenant="acme", thread_id="t")
        # As in another process, which has made no checkpoint yet; that of the second run is on a machine
        # whose clock is a minute behind.
        monkeypatch.setattr(checkpoint_ids, "_last_v6_timestamp", None)
        monkeypatch.setattr(checkpoint_ids, "time", behind if text == "two" else time)
        assert worker.answer(run).result(20) == "success"

    state = producer.state("acme", "t")
    assert state.values == {"texts": ["one", "echo", "two", "echo", "three", "echo"]}
