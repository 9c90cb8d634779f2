"""With history "durable" a thread holds fewer checkpoints, and nothing else is different."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from threadmill.producers import Producer
from threadmill.workers.write_group import WriteGroup

GRAPHS = """
    import asyncio, operator
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict, total=False):
        said: Annotated[list, operator.add]
        last: str

    calls, fails = [], []

    def node(name):
        async def do(state):
            calls.append(name)
            if name in fails:
                fails.remove(name)
                raise ConnectionError(name)
            return {"said": [name], "last": name}
        return do

    graph = StateGraph(State)
    before = START
    for name in "abcdefgh":
        graph.add_node(name, node(name)).add_edge(before, name)
        before = name
    full = durable = graph
"""
NODES = list("abcdefgh")


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    quick = {"retry_delay": 0, "retry_delay_max": 0}
    serve(GRAPHS, full=quick, durable={**quick, "history": "durable"})
    worker = start_local()
    worker.listen()
    return worker


@pytest.fixture
def say(worker: Any, producer: Producer) -> Callable[[str], None]:
    """A run of this graph, on the thread of that name."""

    def say(graph: str) -> None:
        run = producer.enqueue(graph, {"said": ["in"]}, tenant="acme", thread_id=graph)
        assert producer.wait(run.id, tenant="acme", timeout=20).status == "success"

    return say


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres is so slow that all that an attempt writes goes out with its end."""
    send = WriteGroup._send_next

    async def late(group: WriteGroup) -> None:
        while group._waiting:
            await asyncio.sleep(0.001)
        await send(group)

    monkeypatch.setattr(WriteGroup, "_send_next", late)


@pytest.mark.usefixtures("slow")
def test_fewer_checkpoints_and_the_same_state(
    say: Callable[[str], None], producer: Producer, admin: Any
) -> None:
    for _ in range(3):
        say("full")
        say("durable")

    assert producer.state("acme", "durable").values == producer.state("acme", "full").values
    counts = dict(
        admin.execute("select split_part(thread_id, ':', 2), count(*) from checkpoints group by 1").fetchall()
    )
    assert counts == {"full": 3 * (len(NODES) + 2), "durable": 3}
    # It is one chain, and nothing hangs upon what is not there.
    for query in (
        "select 1 from checkpoints c where thread_id = 'acme:durable' and parent_checkpoint_id is not null"
        " and not exists (select from checkpoints p where p.thread_id = c.thread_id"
        " and p.checkpoint_id = c.parent_checkpoint_id)",
        "select 1 from checkpoints where thread_id = 'acme:durable'"
        " group by parent_checkpoint_id having count(*) > 1",
        "select 1 from checkpoint_writes w where thread_id = 'acme:durable' and not exists (select"
        " from checkpoints c where c.thread_id = w.thread_id and c.checkpoint_id = w.checkpoint_id)",
        "select 1 from checkpoint_blobs b where thread_id = 'acme:durable' and not exists (select"
        " from checkpoints c where c.thread_id = b.thread_id"
        " and c.checkpoint -> 'channel_versions' ->> b.channel = b.version)",
    ):
        assert admin.execute(query).fetchall() == []


def test_a_retry_goes_on_from_the_last_that_is_kept(
    say: Callable[[str], None], worker: Any, producer: Producer
) -> None:
    say("durable")
    worker.graphs.calls.clear()
    worker.graphs.fails += ["d", "h"]

    say("durable")

    assert worker.graphs.calls == ["a", "b", "c", "d", "d", "e", "f", "g", "h", "h"]
    assert producer.state("acme", "durable").values["said"] == ["in", *NODES, "in", *NODES]
