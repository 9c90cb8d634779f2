from __future__ import annotations
import time
ECHO = """
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START, add_messages

    class State(TypedDict):
        messages: Annotated[list, add_messages]

    async def answer(state):
        return {"messages": [("ai", "x")]}

    echo = StateGraph(State).add_node("answer", answer).add_edge(START, "answer")
"""
import pytest
@pytest.mark.parametrize("n", range(3))
def test_x(serve, start_local, producer, settings, n):
    serve(ECHO, echo={})
    t = time.time()
    w = start_local()
    print("start", time.time() - t); t = time.time()
    w.listen()
    run = producer.enqueue("echo", {"messages": [("user", "hi")]}, tenant="a", thread_id="t")
    print("enq", time.time() - t); t = time.time()
    done = producer.wait(run.id, tenant="a", timeout=20)
    print("wait", time.time() - t); t = time.time()
    assert done.status == "success"
    w.stop()
    print("stop", time.time() - t)
    w.stop = lambda: None
