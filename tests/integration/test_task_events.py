"""Whoever watches the tasks of Celery, as Flower does, sees every run, whether it was rung for or taken."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from threadmill.core.celery_app import create_celery_app
from threadmill.core.settings import Settings
from threadmill.producers import Producer

GRAPHS = """
    import asyncio
    from pathlib import Path
    from typing import TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict, total=False):
        text: str

    async def do(state):
        while state["text"] == "waits" and not Path("gate").exists():
            await asyncio.sleep(0.02)
        if state["text"] == "fails":
            raise ValueError(state["text"])

    work = StateGraph(State).add_node("do", do).add_edge(START, "do")
"""
Seen = dict[str, list[dict[str, Any]]]


@pytest.fixture
def watch(settings: Settings) -> Iterator[Callable[[], Seen]]:
    """Switches task events on, and gives what was seen of each task."""
    app = create_celery_app(settings)
    seen: Seen = defaultdict(list)
    stopping = threading.Event()

    def receive() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": note})
            while not stopping.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.2, wakeup=False)
                except TimeoutError:
                    continue

    def note(event: dict[str, Any]) -> None:
        if event["type"].startswith("task-"):
            seen[event["uuid"]].append(event)

    thread = threading.Thread(target=receive)

    def watch() -> Seen:
        thread.start()
        replies = app.control.broadcast("enable_events", reply=True, timeout=3)
        assert replies
        return seen

    yield watch
    stopping.set()
    if thread.ident is not None:
        thread.join()
    app.close()


def test_every_run_is_shown_and_never_its_input(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    producer: Producer,
    watch: Callable[[], Seen],
) -> None:
    serve(GRAPHS, work={"max_attempts": 1})
    start_worker()
    seen = watch()
    texts = ["secret"] * 20 + ["fails"]
    runs = producer.enqueue_many(
        {"graph": "work", "input": {"text": text}, "tenant": "acme", "thread_id": f"t{number}"}
        for number, text in enumerate(texts)
    )
    statuses = [producer.wait(run.id, tenant="acme", timeout=20).status for run in runs]
    assert statuses == ["success"] * 20 + ["error"]

    ends_at = time.monotonic() + 10
    ended = ["task-succeeded"] * 20 + ["task-failed"]
    while [seen[run.id][-1]["type"] if seen[run.id] else None for run in runs] != ended:
        assert time.monotonic() < ends_at, [[event["type"] for event in seen[run.id]] for run in runs]
        time.sleep(0.05)
    for number, run in enumerate(runs):
        received, *_ = seen[run.id]
        assert received["args"] == f"tenant=acme thread=t{number} graph=work"
        assert [event["type"] for event in seen[run.id]][:2] == ["task-received", "task-started"]
    assert "secret" not in str(dict(seen))


def test_what_is_being_executed_is_active_for_celery_too(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    producer: Producer,
    settings: Settings,
    tmp_path: Path,
) -> None:
    serve(GRAPHS, work={})
    start_worker()
    runs = producer.enqueue_many(
        {"graph": "work", "input": {"text": "waits"}, "tenant": "acme", "thread_id": f"t{number}"}
        for number in range(5)
    )
    app = create_celery_app(settings)

    def active() -> list[dict[str, Any]]:
        (tasks,) = (app.control.inspect(timeout=2).active() or {"nobody": []}).values()
        return list(tasks)

    ends_at = time.monotonic() + 20
    while len(tasks := active()) < len(runs):
        assert time.monotonic() < ends_at, tasks
    assert {task["id"]: task["args"] for task in tasks} == {
        run.id: f"tenant=acme thread={run.thread_id} graph=work" for run in runs
    }

    (tmp_path / "gate").touch()
    for run in runs:
        producer.wait(run.id, tenant="acme", timeout=20)
    while tasks := active():
        assert time.monotonic() < ends_at, tasks
    app.close()
