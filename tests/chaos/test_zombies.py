"""A worker is frozen just before a write, its run is finished elsewhere, then it wakes: refused each time.

The worker freezes itself (SIGSTOP) where the test's own code, put around the write in its process, tells it
to. Deaf, it does not notice how long it was gone either, so nothing but Postgres stands in its way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from threadmill.core.event_stream import stream_key
from threadmill.core.notice import connect_redis
from threadmill.core.settings import Settings
from threadmill.producers import Event, Producer, Run

QUICK = {"heartbeat_interval": 0.2, "heartbeat_timeout": 1.0, "sweep_interval": 0.2, "ring_again_after": 1}

GRAPHS = """
    import asyncio, operator, os, sys
    from typing import Annotated
    from langgraph.config import get_stream_writer
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    async def first(state, runtime):
        await runtime.store.aput(("notes",), str(os.getpid()), {"by": os.getpid()})
        return {"texts": [f"first {os.getpid()}"]}

    async def second(state):
        get_stream_writer()("second begins")
        if hasattr(sys, "zombie") and os.environ.get("WAITS"):
            await asyncio.to_thread(sys.zombie.wait, 20)
        if state["texts"][0] == os.environ.get("FAILS"):
            raise ConnectionError("the zombie's own trouble")
        if state["texts"][0] == os.environ.get("BREAKS"):
            raise ValueError("the zombie's own mistake")
        return {"texts": [f"second {os.getpid()}"]}

    work = (
        StateGraph(State).add_node("first", first).add_node("second", second)
        .add_edge(START, "first").add_edge("first", "second")
    )
"""

# Freezes before the first call of the function that the test names.
BOOTSTRAP = """
import importlib, signal, sys, threading
from threadmill.core.settings import Settings
from threadmill.workers.heartbeat import Heartbeat
from threadmill.workers.runtime import Runtime
from threadmill.workers.worker import run_worker

module, owner, name, count = sys.argv[1].split(":")
place = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
original = getattr(place, name)
calls = 0
sys.zombie = threading.Event()  # set when it freezes

async def freezing(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(count):
        print("zombie.freezes", file=sys.stderr, flush=True)
        sys.zombie.set()
        # To this very thread: sent to the process, it might go on for a moment.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        print("zombie.wakes", file=sys.stderr, flush=True)
    return await original(*args, **kwargs)

setattr(place, name, freezing)
if sys.argv[2] == "deaf":
    Heartbeat._check = lambda self: None
    Heartbeat._compare = lambda self, before, runs: None
    Heartbeat.is_alive = True
    Runtime._cut_off = lambda self: None
sys.exit(run_worker(Settings()))
"""

SENDS = "threadmill.workers.write_group::_execute"
# What is written when, with durability sync: the input's checkpoint; the first node's writes and checkpoint;
# the second's.
PLACES = {
    "a checkpoint": (f"{SENDS}:1", {}),
    "pending writes": ("threadmill.workers.checkpointer:BoundSaver:aput_writes:1", {}),
    "a later checkpoint": (f"{SENDS}:4", {}),
    "a stream event": ("threadmill.workers.event_writer:EventWriter:_send:2", {"WAITS": "for it"}),
    "a store item": ("threadmill.workers.store:_FencedStore:abatch:1", {}),
    "its success": ("threadmill.workers.executor:Executor:_send:1", {}),
    "its retry": ("threadmill.workers.executor:Executor:_end:1", {"FAILS": "go"}),
    "its dead letter": ("threadmill.workers.executor:Executor:_end:1", {"BREAKS": "go"}),
}


class Zombie:
    """A worker process that freezes where it is told to."""

    def __init__(self, settings: Settings, place: str, hearing: str, environment: dict[str, str]) -> None:
        values = {**settings.model_dump(mode="json"), **QUICK}
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, place, hearing],
            env={
                **os.environ,
                **environment,
                **{
                    f"THREADMILL_{name.upper()}": str(value)
                    for name, value in values.items()
                    if value is not None
                },
            },
            cwd=settings.graphs_file.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: any(text in line for line in self.lines), 30)
        assert found, "".join(self.lines[:40])

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.wake()
        self.process.kill()
        self.process.wait()
        self._reader.join(10)


@pytest.fixture
def zombie(settings: Settings, serve: Callable[..., None]) -> Iterator[Callable[..., Zombie]]:
    serve(GRAPHS, work={"durability": "sync"})
    started: list[Zombie] = []

    def start(place: str, hearing: str, environment: dict[str, str]) -> Zombie:
        started.append(Zombie(settings, place, hearing, environment))
        started[-1].wait_for("worker.ready")
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.mark.parametrize(
    ("kind", "hearing"), [*((kind, "deaf") for kind in PLACES), ("a later checkpoint", "hearing")]
)
def test_what_a_zombie_goes_on_to_write_is_refused(
    kind: str,
    hearing: str,
    zombie: Callable[..., Zombie],
    start_worker: Callable[..., Any],
    producer: Producer,
    settings: Settings,
    admin: Any,
) -> None:
    place, environment = PLACES[kind]
    frozen = zombie(place, hearing, environment)
    request: dict[str, Any] = {"tenant": "acme", "thread_id": "t", "stream_mode": ["updates", "custom"]}
    run = producer.enqueue("work", {"texts": ["go"]}, **request)
    shown: list[Event] = []
    reader = threading.Thread(target=lambda: shown.extend(producer.stream(run.id, tenant="acme")))
    reader.start()
    following = producer.enqueue("work", {"texts": ["next"]}, tenant="acme", thread_id="t")
    frozen.wait_for("zombie.freezes")

    start_worker(**QUICK)
    for one in (run, following):
        assert producer.wait(one.id, tenant="acme", timeout=30).status == "success"
    before = evidence(admin)
    frozen.wake()
    frozen.wait_for("zombie.wakes")
    frozen.wait_for("run.fenced")

    frozen.wait_for("run.ended")
    reader.join(30)
    assert evidence(admin) == before, "nothing has changed since"
    attempts = [event.attempt for event in shown]
    assert attempts == sorted(attempts)
    late = [event.attempt for event in producer.stream(run.id, tenant="acme")]
    assert set(late) <= {2}
    if kind == "a stream event":
        assert (attempts, late) == ([1, 2, 2], [2, 2])
        wait_for_event(1, 2, run, settings)  # it did write its second one
        assert [event.attempt for event in producer.stream(run.id, tenant="acme")] == [2, 2]
    texts = producer.state("acme", "t").values["texts"]
    assert [text.split()[0] for text in texts] == ["go", "first", "second", "next", "first", "second"]
    assert admin.execute("select attempt, outcome, cause from attempts").fetchall() == [
        (1, "lost", "heartbeat stale")
    ]
    refused = [json.loads(line) for line in frozen.lines if "write.refused" in line]
    assert refused or hearing == "hearing"
    assert len({entry["run"] for entry in refused}) <= 1


def wait_for_event(attempt: int, number: int, run: Run, settings: Settings) -> None:
    redis = connect_redis(settings, timeout=30)
    assert redis is not None
    last, seen = "0", set()
    with redis:
        while (attempt, number) not in seen:
            found: Any = redis.xread({stream_key(run.id): last}, block=20_000)
            assert found, "nothing more is written"
            for entry_id, fields in found[0][1]:
                last = entry_id
                seen.add((int(fields[b"attempt"]), int(fields[b"number"])))


def evidence(admin: Any) -> list[Any]:
    """All that a zombie could have written."""
    return [
        admin.execute(f"select {columns} from {table} order by 1, 2, 3").fetchall()
        for table, columns in {
            "checkpoints": "thread_id, checkpoint_ns, checkpoint_id, metadata::text",
            "checkpoint_blobs": "thread_id, channel, version",
            "checkpoint_writes": "checkpoint_id, task_id, idx",
            "store": "prefix, key, value::text",
            "runs": "id, status, attempt, worker_id, finished_at, dispatched_at",
            "dead_letters": "id, status, reason",
            "threads": "tenant, thread_id, status, updated_at",
        }.items()
    ]
