"""A dependency dies under two graphs of five tenants, and comes back; some of it fails for another reason."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from tests.chaos.form import Form

from threadmill.core.settings import Settings
from threadmill.dlq import ReplayWorker
from threadmill.producers import Producer

GRAPHS = """
    import asyncio, operator
    from typing import Annotated, TypedDict
    from langgraph.graph import START, StateGraph

    class State(TypedDict):
        said: Annotated[list[str], operator.add]
        place: str

    class Refused(ConnectionError):
        pass

    async def call(state):
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        try:
            writer.write(f"{state['place']}\\n".encode())
            answer = (await reader.readline()).decode().strip()
        finally:
            writer.close()
        if answer == "refused":
            raise Refused("the dependency does not want it")
        if answer != "done":
            raise ConnectionError("the dependency hung up")
        return {"said": [state["said"][-1].replace("in", "out")]}

    one = StateGraph(State).add_node("call", call).add_edge(START, "call")
    two = StateGraph(State).add_node("call", call).add_edge(START, "call")
"""
TENANTS = [f"tenant{n}" for n in range(5)]
GRAPH_NAMES = ("one", "two")
RUNS_PER_THREAD = 3
# Breakers apart: how little is called is to be the drain's doing.
POLICY = {"max_attempts": 1, "breaker_threshold": None}


@dataclass(frozen=True)
class Size:
    letters: int
    down: float  # seconds
    patience: float
    settings: dict[str, Any]


QUICK = {"sweep_interval": 0.3, "heartbeat_interval": 0.3, "heartbeat_timeout": 3}
SHORT = Size(300, 2.5, 60, {**QUICK, "replay_delay": 0.4, "replay_delay_max": 0.8, "replay_interval": 0.1})
LONG = Size(10_000, 30, 600, {"replay_delay": 2, "replay_delay_max": 8, "replay_interval": 0.5})


class Dependency:
    """A server that counts its calls: hangs up on all while it is down, later refuses what is marked."""

    def __init__(self) -> None:
        self.is_up = False
        self.calls: list[tuple[float, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = (await reader.readline()).decode().strip()
        self.calls.append((time.monotonic(), place))
        if self.is_up:
            writer.write(b"refused\n" if "refuse" in place else b"done\n")
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def dependency() -> Iterator[Dependency]:
    dependency = Dependency()
    yield dependency
    dependency.close()


@pytest.fixture
def size(form: Form) -> Size:
    return LONG if form.long else SHORT


@contextmanager
def draining(settings: Settings) -> Iterator[None]:
    drain = ReplayWorker(settings)
    thread = threading.Thread(target=drain.run)
    thread.start()
    try:
        yield
    finally:
        drain.stop()
        thread.join(30)
    assert not thread.is_alive()


def until(holds: Callable[[], bool], patience: float, what: str, figures: Callable[[], Any] = str) -> None:
    ends_at = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < ends_at, f"not in time: {what}; {figures()}"
        time.sleep(0.05)


@pytest.mark.chaos
def test_what_a_dead_dependency_has_failed_is_drained_when_it_is_back(
    size: Size,
    dependency: Dependency,
    settings: Settings,
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    producer: Producer,
    admin: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(f"PORT = {dependency.port}\n" + _dedented(GRAPHS), **dict.fromkeys(GRAPH_NAMES, POLICY))
    impatient = settings.model_copy(update={**size.settings, "max_replays": 100})
    for _ in range(2):
        start_worker(**size.settings)
    threads = bury(size, producer, admin)
    letters = RUNS_PER_THREAD * len(threads)
    refused = RUNS_PER_THREAD * sum(refused for *_, refused in threads)
    groups = dict(admin.execute("select graph, min(fingerprint) from dead_letters group by 1").fetchall())
    assert len(groups) == len(GRAPH_NAMES)
    assert admin.execute("select count(distinct fingerprint) from dead_letters").fetchone() == (2,)

    # It is down: a call for each back-off.
    dependency.calls.clear()
    with structlog.testing.capture_logs() as log, draining(impatient):
        time.sleep(size.down)
    calls_down = dependency.calls.copy()
    rests = defaultdict(list)
    for entry in log:
        if entry["event"] == "replay.backs_off":
            rests[entry["group"]].append(entry["seconds"])
    for graph, fingerprint in groups.items():
        times = [at for at, place in calls_down if place.startswith(f"{graph}/")]
        assert 1 <= len(times) <= len(rests[fingerprint]) + 1
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        for gap, rest in zip(gaps, rests[fingerprint], strict=False):
            assert gap > rest - 0.05, f"{graph}: {gaps} {rests[fingerprint]}"
    settle(admin)

    # It is back: all of it goes through, in order, beside fresh runs.
    dependency.calls.clear()
    dependency.is_up = True
    began = time.monotonic()
    fresh: list[str] = []
    with structlog.testing.capture_logs(), draining(impatient.model_copy(update={"max_replays": 5})):

        def is_drained() -> bool:
            if len(fresh) < 40:
                run = producer.enqueue(
                    "one",
                    {"said": ["in 1"], "place": "one/fresh"},
                    tenant="fresh",
                    thread_id=f"fresh{len(fresh)}",
                )
                fresh.append(run.id)
            return resolved(admin) == letters - refused

        until(is_drained, size.patience, "the others are resolved", lambda: standing(admin))
        took = time.monotonic() - began
        until(
            lambda: parked(admin) == refused, size.patience, "the refused are parked", lambda: standing(admin)
        )
        for run in fresh:
            assert producer.wait(run, tenant="fresh", timeout=30).status == "success"

    assert_in_thread_order(threads, dependency, producer)
    worst, overtaken = fresh_figures(admin)
    assert overtaken <= 2 * impatient.replay_window, "no more than was under way went before a fresh run"
    report = {
        "letters": letters,
        "calls while it was down": dict(Counter(place.split("/")[0] for _, place in calls_down)),
        "seconds down": size.down,
        "resolved per second": round((letters - refused) / took, 1),
        "seconds": round(took, 2),
        "slowest fresh run": round(worst, 3),
        "replays that ended while a fresh run waited, at most": overtaken,
    }
    with capsys.disabled():
        print(f"\n{json.dumps(report)}")


def _dedented(source: str) -> str:
    return "\n".join(line[4:] for line in source.splitlines())


def bury(size: Size, producer: Producer, admin: Any) -> list[tuple[str, str, str, bool]]:
    """Enqueues the runs, which all fail; returns the threads, with whether theirs will be refused."""
    threads = []
    for number in range(size.letters // RUNS_PER_THREAD):
        graph, tenant = GRAPH_NAMES[number % 2], TENANTS[number % 5]
        threads.append((graph, tenant, f"thread{number}", number // 10 % 5 == 0))
    for turn in range(1, RUNS_PER_THREAD + 1):
        requests = [
            {
                "graph": graph,
                "input": {
                    "said": [f"in {turn}"],
                    "place": f"{graph}/{thread}/{turn}{'/refuse' if refused else ''}",
                },
                "tenant": tenant,
                "thread_id": thread,
            }
            for graph, tenant, thread, refused in threads
        ]
        for start in range(0, len(requests), 500):
            producer.enqueue_many(requests[start : start + 500])
    until(lambda: count(admin, "true") == len(threads) * RUNS_PER_THREAD, size.patience, "all of them fail")
    return threads


def count(admin: Any, condition: str) -> int:
    return int(admin.execute(f"select count(*) from dead_letters where {condition}").fetchone()[0])


def standing(admin: Any) -> Any:
    return (
        admin.execute(
            "select fingerprint, l.status, r.status, l.replays, count(*) from dead_letters l "
            "join runs r on r.id = l.run_id group by 1, 2, 3, 4 order by 1, 2, 3, 4"
        ).fetchall()
        + admin.execute(
            'select fingerprint, "window", backoffs, strays, next_at - now() from replay_groups'
        ).fetchall()
    )


def resolved(admin: Any) -> int:
    return count(admin, "status = 'resolved'")


def parked(admin: Any) -> int:
    return count(admin, "status = 'parked'")


def settle(admin: Any) -> None:
    until(lambda: count(admin, "status = 'replaying'") == 0, 30, "nothing is under way")


def assert_in_thread_order(
    threads: list[tuple[str, str, str, bool]], dependency: Dependency, producer: Producer
) -> None:
    done = defaultdict(list)
    for _, place in dependency.calls:
        _, thread, *rest = place.split("/")
        if len(rest) == 1:  # neither refused nor fresh
            done[thread].append(int(rest[0]))
    turns = list(range(1, RUNS_PER_THREAD + 1))
    for _, tenant, thread, refused in threads:
        if not refused:
            assert done[thread] == turns
            said = producer.state(tenant, thread).values["said"]
            assert said == [word for turn in turns for word in (f"in {turn}", f"out {turn}")]


def fresh_figures(admin: Any) -> tuple[float, int]:
    """The longest that a fresh run took, and how many replays ended while one of them did, at most."""
    row = admin.execute(
        "select max(extract(epoch from finished_at - created_at))::float, "
        "max((select count(*) from dead_letters where status = 'resolved' "
        "and updated_at between runs.created_at and runs.finished_at)) "
        "from runs where tenant = 'fresh'"
    ).fetchone()
    return row[0], row[1]
